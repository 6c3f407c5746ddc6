import pytest
import torch
import torch.nn.functional as F

from audioscore.encoders.winograd import WinogradConv

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
    torch.testing.assert_close(conv(values).double(), expected, rtol=0, atol=2e-5)
    add = torch.randn(expected.shape, generator=generator)
    torch.testing.assert_close(conv(values, add).double(), (expected + add).relu(), rtol=0, atol=2e-5)


def test_a_sum_over_many_channels_rounds_little_more_than_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, values = torch.randn(64, 512, 3, 3, generator=generator), torch.randn(12, 12, 512, generator=generator)
    expected = F.conv2d(values.permute(2, 0, 1)[None].double(), weight.double(), padding=1)[0].permute(1, 2, 0)
    made = WinogradConv(weight, torch.zeros(64))(values)
    assert (made - expected).std() / expected.std() < 5e-6


def test_more_rows_than_are_multiplied_together(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    weight, values = torch.randn(4, 4, 3, 3, generator=generator), torch.randn(50, 6, 4, generator=generator)
    conv = WinogradConv(weight, torch.zeros(4))
    whole = conv(values)
    monkeypatch.setattr("audioscore.encoders.winograd.TILES", 4)
    torch.testing.assert_close(conv(values), whole, rtol=0, atol=1e-5)
