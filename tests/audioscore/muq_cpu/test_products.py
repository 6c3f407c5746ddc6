from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from audioscore.muq_cpu import matmul as products
from audioscore.muq_cpu.matmul import Float32Linear, Int16Linear, Numbers, linear, multiplying, product, quick_numbers
from audioscore.muq_cpu.winograd import Scratch, WinogradConv


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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
    made = multiplying(module, "int16")
    assert isinstance(made["wide"], Int16Linear)
    assert type(module["wide"]) is nn.Linear
    assert [type(made[name]) for name in ("narrow", "long", "grouped")] == [nn.Linear, nn.Conv1d, nn.Conv1d]
    with torch.inference_mode():
        values = random(2, 256, 7)
        expected = module["single"](values)
        assert 0 < (made["single"](values) - expected).std() < 0.01 * expected.std()
    assert isinstance(multiplying(nn.Linear(257, 256), "int16"), Float32Linear)
    weight, values = random(4, 3), random(2, 3, seed=1)
    torch.testing.assert_close(linear(weight, None, "int16")(values), values @ weight.T, rtol=0, atol=1e-6)


@pytest.fixture(params=[False, True], ids=["torch's own", "oneDNN"])
def quicker_library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Each of the two libraries."""
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(products, "has_quicker_library", lambda: request.param)
    return bool(request.param)


@torch.inference_mode()
@pytest.mark.usefixtures("quicker_library")
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
def test_float32_layers_use_the_quicker_library(quicker_library: bool) -> None:
    module = nn.Sequential(nn.Linear(256, 300), nn.Linear(300, 8))
    made, values = multiplying(module, "float32"), random(5, 256)
    assert (made is module) != quicker_library
    torch.testing.assert_close(made(values), module(values), rtol=0, atol=1e-5)
    if quicker_library:
        assert made[0].weight.data_ptr() == module[0].weight.data_ptr()
        assert made[1].weight is module[1].weight
        rows = torch.tensor([4, 0, 299])
        torch.testing.assert_close(made[0].part(rows)(values), module[0](values)[:, rows], rtol=0, atol=1e-5)


@torch.inference_mode()
@pytest.mark.usefixtures("quicker_library")
def test_convolutions_are_the_same_by_either_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audioscore.muq_cpu.winograd.has_quicker_library", products.has_quicker_library)
    weight, values = random(10, 6, 3, 3), random(30, 9, 6, seed=1)
    for stride in (1, 2):
        expected = F.conv2d(values.permute(2, 0, 1)[None], weight, stride=stride, padding=1)[0].permute(1, 2, 0)
        made = WinogradConv(weight, torch.zeros(10), stride)(values, Scratch(), "made")
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("avx512", "name", "expected"),
    [(True, "AMD EPYC 9015", True), (True, "Intel(R) Xeon(R)", False), (False, "AMD EPYC", False), (None, "", False)],
)
def test_amds_widest_vectors_are_used(
    avx512: bool | None, name: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    can = {} if avx512 is None else {"avx512_f": avx512, "cpu_name": name}
    monkeypatch.setattr(products.torch.cpu, "get_capabilities", lambda: can)
    monkeypatch.setattr(products.torch.backends.mkldnn, "is_available", lambda: True)
    assert products.has_quicker_library.__wrapped__() == expected


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
    can: dict[str, bool], expected: Numbers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products.torch.cpu, "get_capabilities", lambda: can)
    assert quick_numbers("cpu") == expected
    assert quick_numbers("cuda:0") == "float32"
