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

from audioscore.encoders import int16
from audioscore.encoders.int16 import Columns, Int16Linear


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


# Rows and columns that fill blocks and that do not; more rows and more channels than are multiplied at once.
@pytest.mark.parametrize(
    ("rows", "channels", "made"),
    [(1, 2, 1), (7, 30, 16), (12, 512, 64), (13, 512, 40), (247, 64, 33), (24, 2_600, 32), (5, 2_600, 17)],
)
def test_random_numbers_are_close(rows: int, channels: int, made: int) -> None:
    values, weight, bias = random(rows, channels), random(made, channels, seed=1), random(made, seed=2)
    expected = F.linear(values.double(), weight.double(), bias.double())
    apart = Int16Linear(weight, bias)(values) - expected
    assert 0 < apart.square().mean().sqrt() < 1e-3 * channels**0.5
    without = Int16Linear(weight, None)(values.view(1, rows, channels))
    assert without.shape == (1, rows, made)
    assert (without[0] - (expected - bias)).abs().max() < 5e-3 * channels**0.5


def test_sums_as_large_as_can_be_do_not_overflow() -> None:
    for channels in (2, 512, 2_048, 8_192):
        layer = Int16Linear(torch.ones(16, channels), None)
        for values in (torch.ones(1, channels), -torch.ones(1, channels)):
            torch.testing.assert_close(layer(values), values.sum().expand(1, 16), rtol=1e-3, atol=0)


def test_a_single_large_number_is_kept() -> None:
    values, weight = 1e-3 * random(3, 64), 1e-3 * random(16, 64, seed=1)
    values[1, 5], weight[2, 5] = 3.0, -4.0
    torch.testing.assert_close(Int16Linear(weight, None)(values), F.linear(values, weight), rtol=1e-3, atol=1e-3)


def test_rows_and_columns_of_any_size_are_as_exact() -> None:
    values, weight = random(4, 128), random(32, 128, seed=1)
    sizes, widths = torch.tensor([1e-12, 1e-3, 1.0, 1e12])[:, None], torch.logspace(-6, 6, 32)
    made = Int16Linear(weight * widths[:, None], None)(values * sizes)
    apart = made.double() / sizes / widths - F.linear(values.double(), weight.double())
    assert apart.abs().max() < 0.02


def test_zeros_leave_the_bias() -> None:
    weight, bias = random(16, 8), random(16, seed=1)
    weight[3] = 0
    made = Int16Linear(weight, bias)(torch.stack([torch.zeros(8), random(8, seed=2)]))
    assert torch.equal(made[0], bias)
    assert made[1, 3] == bias[3]
    assert made[1, 2] != bias[2]


@pytest.mark.parametrize("fault", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_what_is_no_number_is_none_afterwards(fault: float) -> None:
    values, weight = random(9, 64), random(16, 64, seed=1)
    whole = Int16Linear(weight, None)(values)
    values[4, 7] = fault  # the square of 1e30 is no float32
    made = Int16Linear(weight, None)(values)
    assert made[4].isnan().all()
    assert torch.equal(made[torch.arange(9) != 4], whole[torch.arange(9) != 4])
    weight[5, 0] = float("nan")
    assert Int16Linear(weight, None)(random(2, 64)).isnan().any(0).nonzero().tolist() == [[5]]


def test_a_row_is_the_same_beside_any_others() -> None:
    values, layer = random(300, 96), Int16Linear(random(48, 96, seed=1), None)
    together = layer(values)
    for row in (0, 5, 6, 11, 12, 13, 239, 240, 299):
        assert torch.equal(layer(values[row]), together[row])


def test_threads_share_what_is_large(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = Columns.of(random(3, 64, 80))
    wide, blocks = columns.width, columns.blocks.shape[1]
    ints, scales, start = torch.empty(3, 24, 64, dtype=torch.int16), torch.empty(3, 24), random(wide, seed=2)
    for one in range(3):
        columns.to_ints(random(20, 64, seed=one), ints[one], scales[one])
    alone, shared = torch.zeros(3, 24, wide), torch.zeros(3, 24, wide)
    columns.multiply(ints, scales, 20, start, alone)
    monkeypatch.setattr(int16, "SHARED", 1)
    ran = []
    real = int16._kernels().multiply
    monkeypatch.setattr(int16._kernels(), "multiply", lambda *given: (ran.append(given[-2:]), real(*given)))
    columns.multiply(ints, scales, 20, start, shared)
    assert sorted(ran) == [(0, blocks // 2), (blocks // 2, blocks)]
    assert torch.equal(shared[:, :20], alone[:, :20])
    expected = random(20, 64, seed=2) @ random(3, 64, 80)[2] + start[:80]
    assert (alone[2, :20, :80] - expected).abs().max() < 0.05


def test_a_layer_can_be_copied_and_pickled() -> None:
    layer, values = Int16Linear(random(16, 8), None), random(2, 8, seed=1)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(again(values), layer(values))


def test_a_part_of_a_layer_makes_a_part_of_what_it_makes() -> None:
    values, layer = random(3, 40), Int16Linear(random(48, 40, seed=1), random(48, seed=2))
    whole, rows = layer(values), torch.tensor([47, 0, 16, 17, 3])
    assert torch.equal(layer.part(rows)(values), whole[:, rows])
    assert torch.equal(layer(values), whole)


MULTIPLIED_ELSEWHERE = """
import sys, torch
from audioscore.encoders.int16 import Int16Linear
from audioscore.encoders.int16_kernels import BLOCK

values, weight, bias = torch.load(sys.argv[1])
torch.save((BLOCK, Int16Linear(weight, bias)(values)), sys.argv[1])
"""


def multiplied_elsewhere(settings: dict[str, str], folder: Path) -> tuple[int, Tensor, Tensor]:
    """In a process of its own, compiled anew with settings of Numba: columns in a block, what is made, and what is
    made here.
    """
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
def test_processors_with_narrower_vectors_multiply_the_same(features: str, tmp_path: Path) -> None:
    can = torch.cpu.get_capabilities()
    if features and not (can.get("avx2") and can.get("fma3")):
        pytest.skip("this processor has no AVX2")
    # By its name a processor has its features, whatever is said of them: one that has none to speak of.
    settings = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features}
    block, made, here = multiplied_elsewhere(settings, tmp_path)
    assert block == 16
    assert here.std() > 50
    # Squares are added up in another order, which may round a factor the other way.
    torch.testing.assert_close(made, here, rtol=0, atol=0.02)


def test_what_llvm_knows_before_the_loop_is_not_taken_for_known_after_it(tmp_path: Path) -> None:
    """With debugging information it compares before the loop what decides after it, unless told of flags."""
    _, made, here = multiplied_elsewhere({"NUMBA_DEBUGINFO": "1"}, tmp_path)
    torch.testing.assert_close(made, here, rtol=1e-5, atol=1e-5)


def test_columns_in_blocks_of_another_width_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, wide = Int16Linear(random(16, 8), None), int16._kernels().BLOCK
    monkeypatch.setattr(int16._kernels(), "BLOCK", 2 * wide)
    with pytest.raises(ValueError, match=f"columns in blocks of {wide}: here they are of {2 * wide}"):
        layer(random(2, 8))


def test_channels_come_in_pairs() -> None:
    assert Int16Linear.suits(torch.zeros(5, 4))
    assert not Int16Linear.suits(torch.zeros(4, 5))
