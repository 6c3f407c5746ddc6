import torch

from audioscore.encoders.half import HalfLinear


def test_whole_numbers_that_bfloat16_holds_are_exact() -> None:
    rows, weight = torch.full((2, 8), 3.0), torch.full((3, 8), 7.0)
    layer = HalfLinear(weight, torch.tensor([1.0, 0.0, -8.0]))
    assert layer(rows).tolist() == [[169.0, 168.0, 160.0]] * 2
    assert layer(rows).dtype == torch.float32
    assert layer.part(torch.tensor([2, 0]))(rows).tolist() == [[160.0, 169.0]] * 2
    assert HalfLinear(weight, None).part(torch.tensor([1]))(rows).tolist() == [[168.0]] * 2


def test_random_numbers_are_close() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, weight = torch.randn(6, 300, generator=generator), torch.randn(40, 300, generator=generator)
    made, expected = HalfLinear(weight, None)(rows), rows @ weight.T
    assert 0 < (made - expected).std() <= 0.006 * expected.std()
