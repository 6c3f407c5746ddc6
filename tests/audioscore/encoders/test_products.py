import pytest
import torch
from torch import nn

from audioscore.encoders import products
from audioscore.encoders.half import HalfLinear
from audioscore.encoders.int16 import Int16Linear
from audioscore.encoders.products import Numbers, linear, multiplying, quick_numbers


@pytest.mark.parametrize(("numbers", "kind"), [("bfloat16", HalfLinear), ("int16", Int16Linear)])
def test_wide_layers_are_replaced_in_a_copy_and_narrow_ones_stay(numbers: Numbers, kind: type[nn.Module]) -> None:
    module = nn.ModuleDict({
        "wide": nn.Linear(256, 256), "narrow": nn.Linear(256, 8), "single": nn.Conv1d(256, 512, 1, bias=False),
        "long": nn.Conv1d(256, 256, 3), "grouped": nn.Conv1d(512, 512, 1, groups=2),
    })  # fmt: skip
    made = multiplying(module, numbers)
    assert isinstance(made["wide"], kind)
    assert type(module["wide"]) is nn.Linear
    assert [type(made[name]) for name in ("narrow", "long", "grouped")] == [nn.Linear, nn.Conv1d, nn.Conv1d]
    with torch.inference_mode():
        values = torch.randn(2, 256, 7)
        expected = module["single"](values)
        assert 0 < (made["single"](values) - expected).std() < 0.01 * expected.std()


def test_what_does_not_suit_integers_stays() -> None:
    assert type(multiplying(nn.Linear(257, 256), "int16")) is nn.Linear
    weight, values = torch.randn(4, 3), torch.randn(2, 3)
    assert torch.equal(linear(weight, None, "int16")(values), values @ weight.T)


@pytest.mark.parametrize(
    ("can", "expected"),
    [
        ({"avx512_bf16": True, "avx512_f": True, "avx2": True}, "bfloat16"),
        ({"amx_bf16": True, "avx512_f": True, "avx2": True}, "bfloat16"),
        ({"avx512_f": True, "avx2": True}, "float32"),
        ({"avx512_f": False, "avx2": True}, "int16"),
        ({}, "float32"),
    ],
)
def test_each_processor_multiplies_what_it_is_quick_with(
    can: dict[str, bool], expected: Numbers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products.torch.cpu, "get_capabilities", lambda: can)
    assert quick_numbers("cpu") == expected
    assert quick_numbers("cuda:0") == "float32"
