import pytest
import torch
import torch.nn.functional as F

from audioscore.muq_cpu.matmul import Numbers
from audioscore.muq_cpu.winograd import Scratch, WinogradConv

NUMBERS: tuple[Numbers, ...] = ("float32", "int16")
SIZES = [(1, 1), (1, 8), (2, 7), (13, 9), (40, 33)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_convolution_equals_torchs(height: int, width: int, stride: int) -> None:
    weight, bias = random(5, 3, 3, 3, seed=1), random(5, seed=2)
    values = random(height, width, 3, seed=3)
    wide = values.permute(2, 0, 1)[None].double()
    expected = F.conv2d(wide, weight.double(), bias.double(), stride=stride, padding=1)[0].permute(1, 2, 0)
    conv = WinogradConv(weight, bias, stride)
    torch.testing.assert_close(conv(values, Scratch(), "made").double(), expected, rtol=0, atol=5e-5 * (9 * 3) ** 0.5)


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 13, 9), (130, 7, 20)])
def test_two_adjacent_inputs_are_joined(channels: int, height: int, width: int) -> None:
    weight = random(channels, channels, 3, 3, seed=4)
    both = random(height, width, 2 * channels, seed=5)
    left, beside = both[..., :channels].relu().permute(2, 0, 1)[None].double(), both[..., channels:].double()
    expected = (F.conv2d(left, weight.double(), padding=1)[0].permute(1, 2, 0) + beside).relu()
    made = WinogradConv(weight, torch.zeros(channels)).joined(both, Scratch(), "made")
    torch.testing.assert_close(made.double(), expected, rtol=0, atol=5e-5 * (9 * channels) ** 0.5)


def both_numbers(weight: torch.Tensor, stride: int = 1) -> list[WinogradConv]:
    return [WinogradConv(weight, torch.ones(len(weight)), stride, numbers=numbers) for numbers in NUMBERS]


@pytest.mark.parametrize(("stride", "most"), [(1, 5e-3), (2, 1e-3)])
def test_int16_is_close(stride: int, most: float) -> None:
    weight, values = random(70, 256, 3, 3, seed=6), random(20, 12, 256, seed=7)
    exact, rounded = (conv(values, Scratch(), "made") for conv in both_numbers(weight, stride))
    assert 0 < (rounded - exact).std() / exact.std() < most


def test_int16_is_close_in_joined_inputs_and_unused_for_odd_channels() -> None:
    weight, both = random(134, 134, 3, 3, seed=7), random(7, 20, 268, seed=8)
    exact, rounded = (conv.joined(both, Scratch(), "made") for conv in both_numbers(weight))
    assert 0 < (rounded - exact).std() / exact.std() < 0.02
    odd = both_numbers(random(4, 3, 3, 3, seed=9))
    assert torch.equal(*(conv(random(9, 9, 3), Scratch(), "made") for conv in odd))


class Dirty(Scratch):
    """Memory that holds other values each time it is requested."""

    def take(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return super().take(name, *shape, dtype=dtype).fill_(float("nan") if dtype.is_floating_point else 32_767)


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("stride", [1, 2])
def test_earlier_memory_contents_do_not_matter(stride: int, numbers: Numbers) -> None:
    conv = WinogradConv(random(18, 4, 3, 3, seed=12), torch.zeros(18), stride, numbers=numbers)
    for height, width in SIZES:
        values = random(height, width, 4, seed=13)
        assert torch.equal(conv(values, Dirty(), "made"), conv(values, Scratch(), "made"))


def test_rounding_over_many_channels_is_small() -> None:
    weight, values = random(64, 512, 3, 3, seed=14), random(12, 12, 512, seed=15)
    expected = F.conv2d(values.permute(2, 0, 1)[None].double(), weight.double(), padding=1)[0].permute(1, 2, 0)
    made = WinogradConv(weight, torch.zeros(64))(values, Scratch(), "made")
    assert (made - expected).std() / expected.std() < 1e-5


@pytest.mark.parametrize("numbers", NUMBERS)
def test_tiles_do_not_change_the_result(numbers: Numbers, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, values = random(4, 4, 3, 3, seed=16), random(50, 6, 4, seed=17)
    conv = WinogradConv(weight, torch.zeros(4), numbers=numbers)
    whole = conv(values, Scratch(), "made")
    monkeypatch.setattr("audioscore.muq_cpu.winograd.TILES", 4)
    torch.testing.assert_close(conv(values, Scratch(), "made"), whole, rtol=0, atol=5e-5 * (9 * 4) ** 0.5)
