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
from torch import Tensor, nn

from audioscore.muq_cpu import int16_kernels, matmul
from audioscore.muq_cpu.matmul import (
    Columns,
    FastDtype,
    Float32Linear,
    Int16Linear,
    fast_dtype,
    linear,
    optimize_module,
    product,
)  # fmt: skip
from audioscore.muq_cpu.winograd import Scratch, WinogradConv


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
    ("rows", "channels", "output"),
    [(1, 2, 1), (7, 30, 16), (12, 512, 64), (13, 512, 40), (247, 64, 33), (24, 2_600, 32), (5, 2_600, 17)],
)
def test_products_are_close(rows: int, channels: int, output: int) -> None:
    values, weight, bias = random(rows, channels), random(output, channels, seed=1), random(output, seed=2)
    expected = F.linear(values.double(), weight.double(), bias.double())
    apart = Int16Linear(weight, bias)(values) - expected
    assert 0 < apart.square().mean().sqrt() < 1e-3 * channels**0.5
    without = Int16Linear(weight, None)(values.view(1, rows, channels))
    assert without.shape == (1, rows, output)
    assert (without[0] - (expected - bias)).abs().max() < 5e-3 * channels**0.5


def test_the_largest_sums_do_not_overflow() -> None:
    for channels in (2, 512, 2_048, 8_192):
        values = torch.ones(2, channels) * torch.tensor([[1.0], [-1.0]])
        output = Int16Linear(torch.ones(16, channels), None)(values)
        torch.testing.assert_close(output, values.sum(1, keepdim=True).expand(2, 16), rtol=1e-3, atol=0)


def test_large_values_scales_and_zeros_are_exact() -> None:
    values, weight = 1e-3 * random(3, 64), 1e-3 * random(16, 64, seed=1)
    values[1, 5], weight[2, 5] = 3.0, -4.0
    torch.testing.assert_close(Int16Linear(weight, None)(values), F.linear(values, weight), rtol=1e-3, atol=1e-3)
    values, weight = random(4, 128), random(32, 128, seed=1)
    sizes, widths = torch.tensor([1e-12, 1e-3, 1.0, 1e12])[:, None], torch.logspace(-6, 6, 32)
    output = Int16Linear(weight * widths[:, None], None)(values * sizes)
    apart = output.double() / sizes / widths - F.linear(values.double(), weight.double())
    assert apart.abs().max() < 0.02
    weight, bias = random(16, 8), random(16, seed=1)
    weight[3] = 0
    output = Int16Linear(weight, bias)(torch.stack([torch.zeros(8), random(8, seed=2)]))
    assert torch.equal(output[0], bias)
    assert output[1, 3] == bias[3]
    assert output[1, 2] != bias[2]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_non_finite_values_become_nan(value: float) -> None:
    values, weight = random(9, 64), random(16, 64, seed=1)
    whole = Int16Linear(weight, None)(values)
    values[4, 7] = value  # the square of 1e30 overflows float32
    output = Int16Linear(weight, None)(values)
    assert output[4].isnan().all()
    assert torch.equal(output[torch.arange(9) != 4], whole[torch.arange(9) != 4])
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
    monkeypatch.setattr(matmul, "SHARED", 1)
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
    block, output = torch.load(given)
    return block, output, Int16Linear(weight, bias)(values)


@pytest.mark.parametrize("features", ["+avx2,+fma", ""])
def test_narrower_vectors_multiply_the_same(features: str, tmp_path: Path) -> None:
    can = torch.cpu.get_capabilities()
    if features and not (can.get("avx2") and can.get("fma3")):
        pytest.skip("this processor has no AVX2")
    # The name of a processor implies its features: a generic one has none.
    settings = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features}
    block, output, here = multiplied_elsewhere(settings, tmp_path)
    assert block == 16
    assert here.std() > 50
    # Another order of addition may round a factor the other way.
    torch.testing.assert_close(output, here, rtol=0, atol=0.02)


def test_debug_information_does_not_change_the_product(tmp_path: Path) -> None:
    """With debug information, LLVM moves the comparison before the loop unless the loop declares its flags."""
    _, output, here = multiplied_elsewhere({"NUMBA_DEBUGINFO": "1"}, tmp_path)
    torch.testing.assert_close(output, here, rtol=1e-5, atol=1e-5)


def test_odd_channels_and_other_block_widths_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, wide = Int16Linear(random(16, 8), None), int16_kernels.BLOCK
    monkeypatch.setattr(int16_kernels, "BLOCK", 2 * wide)
    with pytest.raises(ValueError, match=rf"\b{wide}\b.*\b{2 * wide}\b"):
        layer(random(2, 8))
    layers = [linear(torch.zeros(shape), None, "int16") for shape in ((5, 4), (4, 5))]
    assert [type(layer) for layer in layers] == [Int16Linear, Float32Linear]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Layers draw their weights from the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_only_wide_layers_are_replaced_in_a_copy() -> None:
    module = nn.ModuleDict({
        "wide": nn.Linear(256, 256), "narrow": nn.Linear(256, 8), "single": nn.Conv1d(256, 512, 1, bias=False),
        "long": nn.Conv1d(256, 256, 3), "grouped": nn.Conv1d(512, 512, 1, groups=2),
    })  # fmt: skip
    output = optimize_module(module, "int16")
    assert isinstance(output["wide"], Int16Linear)
    assert type(module["wide"]) is nn.Linear
    assert [type(output[name]) for name in ("narrow", "long", "grouped")] == [nn.Linear, nn.Conv1d, nn.Conv1d]
    with torch.inference_mode():
        values = random(2, 256, 7)
        expected = module["single"](values)
        assert 0 < (output["single"](values) - expected).std() < 0.01 * expected.std()
    assert isinstance(optimize_module(nn.Linear(257, 256), "int16"), Float32Linear)
    weight, values = random(4, 3), random(2, 3, seed=1)
    torch.testing.assert_close(linear(weight, None, "int16")(values), values @ weight.T, rtol=0, atol=1e-6)


@pytest.fixture(params=[False, True], ids=["torch's own", "oneDNN"])
def faster_library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Each of the two libraries."""
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(matmul, "has_faster_library", lambda: request.param)
    return bool(request.param)


@torch.inference_mode()
@pytest.mark.usefixtures("faster_library")
def test_products_are_close_to_torchs() -> None:
    weight, bias, values = random(40, 300), random(40, seed=1), random(2, 7, 300, seed=2)
    for given in (values, values.transpose(0, 1), values[:, ::2], values[0], values[0, :0]):
        torch.testing.assert_close(product(given, weight, bias), F.linear(given, weight, bias), rtol=0, atol=1e-4)
        torch.testing.assert_close(product(given, weight), F.linear(given, weight), rtol=0, atol=1e-4)
    across = weight.T.contiguous().T  # as Winograd's weights lie
    torch.testing.assert_close(product(values, across), F.linear(values, weight), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="gradient"), torch.inference_mode(False):
        product(random(2, 3).requires_grad_(), random(4, 3))


@torch.inference_mode()
def test_float32_layers_use_the_faster_library(faster_library: bool) -> None:
    module = nn.Sequential(nn.Linear(256, 300), nn.Linear(300, 8))
    output, values = optimize_module(module, "float32"), random(5, 256)
    assert (output is module) != faster_library
    torch.testing.assert_close(output(values), module(values), rtol=0, atol=1e-5)
    if faster_library:
        assert output[0].weight.data_ptr() == module[0].weight.data_ptr()
        assert output[1].weight is module[1].weight
        rows = torch.tensor([4, 0, 299])
        torch.testing.assert_close(output[0].part(rows)(values), module[0](values)[:, rows], rtol=0, atol=1e-5)


@torch.inference_mode()
@pytest.mark.usefixtures("faster_library")
def test_convolutions_are_the_same_by_either_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audioscore.muq_cpu.winograd.has_faster_library", matmul.has_faster_library)
    weight, values = random(10, 6, 3, 3), random(30, 9, 6, seed=1)
    for stride in (1, 2):
        expected = F.conv2d(values.permute(2, 0, 1)[None], weight, stride=stride, padding=1)[0].permute(1, 2, 0)
        output = WinogradConv(weight, torch.zeros(10), stride)(values, Scratch(), "output")
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("avx512", "name", "expected"),
    [(True, "AMD EPYC 9015", True), (True, "Intel(R) Xeon(R)", False), (False, "AMD EPYC", False), (None, "", False)],
)
def test_amds_widest_vectors_are_used(
    avx512: bool | None, name: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    can = {} if avx512 is None else {"avx512_f": avx512, "cpu_name": name}
    monkeypatch.setattr(matmul.torch.cpu, "get_capabilities", lambda: can)
    monkeypatch.setattr(matmul.torch.backends.mkldnn, "is_available", lambda: True)
    assert matmul.has_faster_library.__wrapped__() == expected


@pytest.mark.parametrize(
    ("can", "expected"),
    [
        ({"avx512_vnni": True, "avx512_f": True, "avx2": True}, "int16"),
        ({"avx512_vnni": False, "avx512_f": True, "avx2": True}, "float32"),
        ({"avx512_f": False, "avx2": True}, "int16"),
        ({}, "float32"),
    ],
)
def test_the_fast_dtype_depends_on_the_processor(
    can: dict[str, bool], expected: FastDtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matmul.torch.cpu, "get_capabilities", lambda: can)
    assert fast_dtype("cpu") == expected
    assert fast_dtype("cuda:0") == "float32"
