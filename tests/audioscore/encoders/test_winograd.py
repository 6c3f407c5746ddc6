import pytest
import torch
import torch.nn.functional as F

from audioscore.encoders.products import Numbers
from audioscore.encoders.scratch import Scratch
from audioscore.encoders.winograd import WinogradConv

NUMBERS: tuple[Numbers, ...] = ("float32", "int16")
SIZES = [(1, 1), (1, 8), (2, 7), (13, 9), (40, 33)]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_it_is_torchs_convolution(height: int, width: int, stride: int) -> None:
    generator = torch.Generator().manual_seed(height * width)
    weight, bias = torch.randn(5, 3, 3, 3, generator=generator), torch.randn(5, generator=generator)
    values = torch.randn(height, width, 3, generator=generator)
    wide = values.permute(2, 0, 1)[None].double()
    expected = F.conv2d(wide, weight.double(), bias.double(), stride=stride, padding=1)[0].permute(1, 2, 0)
    conv = WinogradConv(weight, bias, stride)
    torch.testing.assert_close(conv(values, Scratch(), "made").double(), expected, rtol=0, atol=5e-5 * (9 * 3) ** 0.5)


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 13, 9), (130, 7, 20)])
def test_two_inputs_beside_each_other_are_joined(channels: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(channels)
    weight = torch.randn(channels, channels, 3, 3, generator=generator)
    both = torch.randn(height, width, 2 * channels, generator=generator)
    heard, beside = both[..., :channels].relu().permute(2, 0, 1)[None].double(), both[..., channels:].double()
    expected = (F.conv2d(heard, weight.double(), padding=1)[0].permute(1, 2, 0) + beside).relu()
    made = WinogradConv(weight, torch.zeros(channels)).joined(both, Scratch(), "made")
    torch.testing.assert_close(made.double(), expected, rtol=0, atol=5e-5 * (9 * channels) ** 0.5)


@pytest.mark.parametrize(("stride", "most"), [(1, 5e-3), (2, 1e-3)])
def test_in_integers_it_is_close(stride: int, most: float) -> None:
    generator = torch.Generator().manual_seed(5)
    weight, values = torch.randn(70, 256, 3, 3, generator=generator), torch.randn(20, 12, 256, generator=generator)
    exact, rounded = (
        WinogradConv(weight, torch.zeros(70), stride, numbers=numbers)(values, Scratch(), "made") for numbers in NUMBERS
    )
    assert 0 < (rounded - exact).std() / exact.std() < most


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("stride", [1, 2])
def test_nothing_is_heard_of_what_was_in_the_memory_before(stride: int, numbers: Numbers) -> None:
    generator = torch.Generator().manual_seed(9)
    conv = WinogradConv(torch.randn(18, 4, 3, 3, generator=generator), torch.zeros(18), stride, numbers=numbers)
    for height, width in SIZES:
        values, scratch = torch.randn(height, width, 4, generator=generator), Scratch()
        first = conv(values, scratch, "made").clone()
        for kept in scratch._kept.values():
            kept.fill_(float("nan") if kept.is_floating_point() else 32_767)
        assert torch.equal(conv(values, scratch, "made"), first)


def test_integers_are_joined_too() -> None:
    generator = torch.Generator().manual_seed(7)
    weight, both = torch.randn(134, 134, 3, 3, generator=generator), torch.randn(7, 20, 268, generator=generator)
    exact, rounded = (
        WinogradConv(weight, torch.ones(134), numbers=numbers).joined(both, Scratch(), "made") for numbers in NUMBERS
    )
    assert 0 < (rounded - exact).std() / exact.std() < 0.02


def test_an_odd_number_of_channels_is_not_multiplied_as_integers() -> None:
    generator = torch.Generator().manual_seed(8)
    weight, values = torch.randn(4, 3, 3, 3, generator=generator), torch.randn(9, 9, 3, generator=generator)
    exact, same = (
        WinogradConv(weight, torch.zeros(4), numbers=numbers)(values, Scratch(), "made") for numbers in NUMBERS
    )
    assert torch.equal(exact, same)


def test_a_sum_over_many_channels_rounds_little_more_than_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, values = torch.randn(64, 512, 3, 3, generator=generator), torch.randn(12, 12, 512, generator=generator)
    expected = F.conv2d(values.permute(2, 0, 1)[None].double(), weight.double(), padding=1)[0].permute(1, 2, 0)
    made = WinogradConv(weight, torch.zeros(64))(values, Scratch(), "made")
    assert (made - expected).std() / expected.std() < 1e-5


@pytest.mark.parametrize("numbers", NUMBERS)
def test_more_rows_than_are_multiplied_together(numbers: Numbers, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    weight, values = torch.randn(4, 4, 3, 3, generator=generator), torch.randn(50, 6, 4, generator=generator)
    conv = WinogradConv(weight, torch.zeros(4), numbers=numbers)
    whole = conv(values, Scratch(), "made")
    monkeypatch.setattr("audioscore.encoders.winograd.TILES", 4)
    torch.testing.assert_close(conv(values, Scratch(), "made"), whole, rtol=0, atol=5e-5 * (9 * 4) ** 0.5)
