import pytest
import torch
from torch import nn

from audioscore.encoders import half
from audioscore.encoders.half import HalfLinear, in_half, multiplies_half


def test_whole_numbers_that_bfloat16_holds_are_exact() -> None:
    rows, weight = torch.full((2, 8), 3.0), torch.full((3, 8), 7.0)
    layer = HalfLinear(weight, torch.tensor([1.0, 0.0, -8.0]))
    assert layer(rows).tolist() == [[169.0, 168.0, 160.0]] * 2
    assert layer(rows).dtype == torch.float32


def test_random_numbers_are_close() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, weight = torch.randn(6, 300, generator=generator), torch.randn(40, 300, generator=generator)
    made, expected = HalfLinear(weight, None)(rows), rows @ weight.T
    assert 0 < (made - expected).std() <= 0.006 * expected.std()


def test_wide_layers_are_replaced_in_a_copy_and_narrow_ones_stay() -> None:
    module = nn.ModuleDict({
        "wide": nn.Linear(256, 256), "narrow": nn.Linear(256, 8), "single": nn.Conv1d(256, 512, 1, bias=False),
        "long": nn.Conv1d(256, 256, 3),
    })  # fmt: skip
    made = in_half(module)
    assert isinstance(made["wide"], HalfLinear)
    assert type(module["wide"]) is nn.Linear
    assert [type(made[name]) for name in ("narrow", "long")] == [nn.Linear, nn.Conv1d]
    with torch.inference_mode():
        values = torch.randn(2, 256, 7)
        expected = module["single"](values)
        assert (made["single"](values) - expected).std() < 0.01 * expected.std()


@pytest.mark.parametrize(("can", "expected"), [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({}, False)])
def test_only_processors_that_multiply_it_do(
    can: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half.torch.cpu, "get_capabilities", lambda: can)
    assert multiplies_half("cpu") == expected
    assert not multiplies_half("cuda:0")
