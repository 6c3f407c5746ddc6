import pytest
import torch
from torch import nn

from audioscore.encoders.int8 import Int8Linear, Int8Matrix, in_int8


def test_whole_numbers_within_the_levels_are_exact_though_all_are_at_the_end_of_the_scale() -> None:
    # Pairs of products are added in 16 bits by some processors: 2 * 127 * 255 must not be cut off.
    rows, weight = torch.full((2, 256), 127.0), torch.full((3, 256), 127.0)
    rows[1] = -127.0
    made = Int8Matrix(weight)(rows)
    torch.testing.assert_close(made, rows @ weight.T, rtol=1e-6, atol=0)


def test_random_numbers_are_close_and_no_row_depends_on_another() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, weight = torch.randn(6, 300, generator=generator), torch.randn(40, 300, generator=generator)
    rows[3] *= 1e4
    rows[5] = 0.0
    matrix = Int8Matrix(weight)
    made, expected = matrix(rows), rows @ weight.T
    assert ((made - expected).std(1) <= 0.03 * expected.std(1)).all()
    for place in range(6):
        torch.testing.assert_close(matrix(rows[place : place + 1])[0], made[place], rtol=1e-6, atol=1e-6)


def test_wide_layers_are_replaced_in_a_copy_and_narrow_ones_stay() -> None:
    module = nn.ModuleDict({
        "wide": nn.Linear(256, 256), "narrow": nn.Linear(256, 8), "single": nn.Conv1d(256, 512, 1, bias=False),
        "long": nn.Conv1d(256, 256, 3),
    })  # fmt: skip
    made = in_int8(module)
    assert isinstance(made["wide"], Int8Linear)
    assert type(module["wide"]) is nn.Linear
    assert [type(made[name]) for name in ("narrow", "long")] == [nn.Linear, nn.Conv1d]
    with torch.inference_mode():
        values = torch.randn(2, 256, 7)
        expected = module["single"](values)
        assert (made["single"](values) - expected).std() < 0.03 * expected.std()
        frames = torch.randn(2, 7, 256)
        assert (made["wide"](frames) - module["wide"](frames)).std() < 0.03 * module["wide"](frames).std()


@pytest.mark.parametrize("shape", [(1, 256), (3, 2, 256)])
def test_any_number_of_leading_dimensions(shape: tuple[int, ...]) -> None:
    layer = Int8Linear(torch.randn(5, 256), torch.randn(5))
    assert layer(torch.randn(shape)).shape == (*shape[:-1], 5)
