import pytest
import torch
import torch.nn.functional as F

from audioscore.muq_cpu.matmul import FastDtype
from audioscore.muq_cpu.winograd import Scratch, ScratchPool, WinogradConv

DTYPES: tuple[FastDtype, ...] = ("float32", "int16")
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
    torch.testing.assert_close(conv(values, Scratch(), "output").double(), expected, rtol=0, atol=5e-5 * (9 * 3) ** 0.5)


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 13, 9), (130, 7, 20)])
def test_a_residual_is_added(channels: int, height: int, width: int) -> None:
    weight = random(channels, channels, 3, 3, seed=4)
    both = random(height, width, 2 * channels, seed=5)
    left, added = both[..., :channels].relu().permute(2, 0, 1)[None].double(), both[..., channels:].double()
    expected = (F.conv2d(left, weight.double(), padding=1)[0].permute(1, 2, 0) + added).relu()
    output = WinogradConv(weight, torch.zeros(channels)).residual(both, Scratch(), "output")
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=5e-5 * (9 * channels) ** 0.5)


def both_dtypes(weight: torch.Tensor, stride: int = 1) -> list[WinogradConv]:
    return [WinogradConv(weight, torch.ones(len(weight)), stride, dtype=dtype) for dtype in DTYPES]


@pytest.mark.parametrize(("stride", "most"), [(1, 5e-3), (2, 1e-3)])
def test_int16_is_close(stride: int, most: float) -> None:
    weight, values = random(70, 256, 3, 3, seed=6), random(20, 12, 256, seed=7)
    exact, rounded = (conv(values, Scratch(), "output") for conv in both_dtypes(weight, stride))
    assert 0 < (rounded - exact).std() / exact.std() < most


def test_int16_is_close_with_a_residual_and_unused_for_odd_channels() -> None:
    weight, both = random(134, 134, 3, 3, seed=7), random(7, 20, 268, seed=8)
    exact, rounded = (conv.residual(both, Scratch(), "output") for conv in both_dtypes(weight))
    assert 0 < (rounded - exact).std() / exact.std() < 0.02
    odd = both_dtypes(random(4, 3, 3, 3, seed=9))
    assert torch.equal(*(conv(random(9, 9, 3), Scratch(), "output") for conv in odd))


class Dirty(Scratch):
    """Memory that holds other values each time it is requested."""

    def tensor(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return super().tensor(name, *shape, dtype=dtype).fill_(float("nan") if dtype.is_floating_point else 32_767)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [1, 2])
def test_earlier_memory_contents_do_not_matter(stride: int, dtype: FastDtype) -> None:
    conv = WinogradConv(random(18, 4, 3, 3, seed=12), torch.zeros(18), stride, dtype=dtype)
    for height, width in SIZES:
        values = random(height, width, 4, seed=13)
        assert torch.equal(conv(values, Dirty(), "output"), conv(values, Scratch(), "output"))


def test_rounding_over_many_channels_is_small() -> None:
    weight, values = random(64, 512, 3, 3, seed=14), random(12, 12, 512, seed=15)
    expected = F.conv2d(values.permute(2, 0, 1)[None].double(), weight.double(), padding=1)[0].permute(1, 2, 0)
    output = WinogradConv(weight, torch.zeros(64))(values, Scratch(), "output")
    assert (output - expected).std() / expected.std() < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_tiles_do_not_change_the_result(dtype: FastDtype, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, values = random(4, 4, 3, 3, seed=16), random(50, 6, 4, seed=17)
    conv = WinogradConv(weight, torch.zeros(4), dtype=dtype)
    whole = conv(values, Scratch(), "output")
    monkeypatch.setattr("audioscore.muq_cpu.winograd.TILES", 4)
    torch.testing.assert_close(conv(values, Scratch(), "output"), whole, rtol=0, atol=5e-5 * (9 * 4) ** 0.5)


def test_a_name_is_the_same_memory_in_any_shape() -> None:
    scratch = Scratch()
    first = scratch.tensor("a", 4, 5)
    again = scratch.tensor("a", 2, 3)
    assert (tuple(first.shape), tuple(again.shape)) == ((4, 5), (2, 3))
    assert first.data_ptr() == again.data_ptr()
    assert scratch.tensor("b", 2, 3).data_ptr() != again.data_ptr()
    scratch.tensor("a", 2).fill_(1.0)
    assert scratch.tensor("a", 300).numel() == 300
    assert scratch.tensor("a", 2, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_scratch_is_not_shared_and_is_reused() -> None:
    pool = ScratchPool()
    with pool.scratch() as first, pool.scratch() as second:
        assert first is not second
    with pool.scratch() as again:
        assert again is first or again is second
    pool.release()
    with pool.scratch() as new:
        assert new is not first
        assert new is not second
