import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from audioscore.muq_cpu import int16_kernels
from audioscore.muq_cpu import matmul as int16
from audioscore.muq_cpu.matmul import Columns, Int16Linear


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


# Full and partial blocks of rows and columns; more rows and channels than are multiplied at once.
@pytest.mark.parametrize(
    ("rows", "channels", "made"),
    [(1, 2, 1), (7, 30, 16), (12, 512, 64), (13, 512, 40), (247, 64, 33), (24, 2_600, 32), (5, 2_600, 17)],
)
def test_products_are_close(rows: int, channels: int, made: int) -> None:
    values, weight, bias = random(rows, channels), random(made, channels, seed=1), random(made, seed=2)
    expected = F.linear(values.double(), weight.double(), bias.double())
    apart = Int16Linear(weight, bias)(values) - expected
    assert 0 < apart.square().mean().sqrt() < 1e-3 * channels**0.5
    without = Int16Linear(weight, None)(values.view(1, rows, channels))
    assert without.shape == (1, rows, made)
    assert (without[0] - (expected - bias)).abs().max() < 5e-3 * channels**0.5


def test_the_largest_sums_do_not_overflow() -> None:
    for channels in (2, 512, 2_048, 8_192):
        values = torch.ones(2, channels) * torch.tensor([[1.0], [-1.0]])
        made = Int16Linear(torch.ones(16, channels), None)(values)
        torch.testing.assert_close(made, values.sum(1, keepdim=True).expand(2, 16), rtol=1e-3, atol=0)


def test_large_numbers_scales_and_zeros_are_exact() -> None:
    values, weight = 1e-3 * random(3, 64), 1e-3 * random(16, 64, seed=1)
    values[1, 5], weight[2, 5] = 3.0, -4.0
    torch.testing.assert_close(Int16Linear(weight, None)(values), F.linear(values, weight), rtol=1e-3, atol=1e-3)
    values, weight = random(4, 128), random(32, 128, seed=1)
    sizes, widths = torch.tensor([1e-12, 1e-3, 1.0, 1e12])[:, None], torch.logspace(-6, 6, 32)
    made = Int16Linear(weight * widths[:, None], None)(values * sizes)
    apart = made.double() / sizes / widths - F.linear(values.double(), weight.double())
    assert apart.abs().max() < 0.02
    weight, bias = random(16, 8), random(16, seed=1)
    weight[3] = 0
    made = Int16Linear(weight, bias)(torch.stack([torch.zeros(8), random(8, seed=2)]))
    assert torch.equal(made[0], bias)
    assert made[1, 3] == bias[3]
    assert made[1, 2] != bias[2]


@pytest.mark.parametrize("fault", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_non_finite_values_become_nan(fault: float) -> None:
    values, weight = random(9, 64), random(16, 64, seed=1)
    whole = Int16Linear(weight, None)(values)
    values[4, 7] = fault  # the square of 1e30 is no float32
    made = Int16Linear(weight, None)(values)
    assert made[4].isnan().all()
    assert torch.equal(made[torch.arange(9) != 4], whole[torch.arange(9) != 4])
    weight[5, 0] = float("nan")
    assert Int16Linear(weight, None)(random(2, 64)).isnan().any(0).nonzero().tolist() == [[5]]


def test_rows_and_parts_do_not_depend_on_others() -> None:
    values, layer = random(300, 96), Int16Linear(random(48, 96, seed=1), None)
    together = layer(values)
    for row in (0, 5, 6, 11, 12, 13, 239, 240, 299):
        assert torch.equal(layer(values[row]), together[row])
    values, layer = random(3, 40), Int16Linear(random(48, 40, seed=1), random(48, seed=2))
    whole, rows = layer(values), torch.tensor([47, 0, 16, 17, 3])
    assert torch.equal(layer.part(rows)(values), whole[:, rows])
    assert torch.equal(layer(values), whole)


def test_threads_share_a_large_product(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = Columns.of(random(3, 64, 80))
    wide, blocks = columns.width, columns.blocks.shape[1]
    ints, scales, start = torch.empty(3, 24, 64, dtype=torch.int16), torch.empty(3, 24), random(wide, seed=2)
    for one in range(3):
        columns.to_ints(random(20, 64, seed=one), ints[one], scales[one])
    alone, shared = torch.zeros(3, 24, wide), torch.zeros(3, 24, wide)
    columns.multiply(ints, scales, 20, start, alone)
    monkeypatch.setattr(int16, "SHARED", 1)
    ran = []
    real = int16_kernels.multiply
    monkeypatch.setattr(int16_kernels, "multiply", lambda *given: (ran.append(given[-2:]), real(*given)))
    columns.multiply(ints, scales, 20, start, shared)
    assert sorted(ran) == [(0, blocks // 2), (blocks // 2, blocks)]
    assert torch.equal(shared[:, :20], alone[:, :20])
    expected = random(20, 64, seed=2) @ random(3, 64, 80)[2] + start[:80]
    assert (alone[2, :20, :80] - expected).abs().max() < 0.05


def test_a_layer_can_be_copied_and_pickled() -> None:
    layer, values = Int16Linear(random(16, 8), None), random(2, 8, seed=1)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(again(values), layer(values))


MULTIPLIED_ELSEWHERE = """
import sys, torch
from audioscore.muq_cpu.matmul import Int16Linear
from audioscore.muq_cpu.int16_kernels import BLOCK

values, weight, bias = torch.load(sys.argv[1])
torch.save((BLOCK, Int16Linear(weight, bias)(values)), sys.argv[1])
"""


def multiplied_elsewhere(settings: dict[str, str], folder: Path) -> tuple[int, Tensor, Tensor]:
    """Multiply in a new process with settings of Numba: return its block, its result and the result here."""
    values, weight, bias = random(29, 2_600), random(70, 2_600, seed=1), random(70, seed=2)
    given = folder / "given.pt"
    torch.save((values, weight, bias), given)
    subprocess.run(
        [sys.executable, "-c", MULTIPLIED_ELSEWHERE, str(given)], check=True,
        env=os.environ | settings | {"NUMBA_CACHE_DIR": str(folder)},
    )  # fmt: skip
    block, made = torch.load(given)
    return block, made, Int16Linear(weight, bias)(values)


@pytest.mark.parametrize("features", ["+avx2,+fma", ""])
def test_narrower_vectors_multiply_the_same(features: str, tmp_path: Path) -> None:
    can = torch.cpu.get_capabilities()
    if features and not (can.get("avx2") and can.get("fma3")):
        pytest.skip("this processor has no AVX2")
    # The name of a processor implies its features: a generic one has none.
    settings = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features}
    block, made, here = multiplied_elsewhere(settings, tmp_path)
    assert block == 16
    assert here.std() > 50
    # Another order of addition may round a factor the other way.
    torch.testing.assert_close(made, here, rtol=0, atol=0.02)


def test_debug_information_does_not_change_the_product(tmp_path: Path) -> None:
    """With debug information, LLVM moves the comparison before the loop unless the loop declares its flags."""
    _, made, here = multiplied_elsewhere({"NUMBA_DEBUGINFO": "1"}, tmp_path)
    torch.testing.assert_close(made, here, rtol=1e-5, atol=1e-5)


def test_odd_channels_and_other_block_widths_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, wide = Int16Linear(random(16, 8), None), int16_kernels.BLOCK
    monkeypatch.setattr(int16_kernels, "BLOCK", 2 * wide)
    with pytest.raises(ValueError, match=rf"\b{wide}\b.*\b{2 * wide}\b"):
        layer(random(2, 8))
    assert [Int16Linear.suits(torch.zeros(shape)) for shape in ((5, 4), (4, 5))] == [True, False]
