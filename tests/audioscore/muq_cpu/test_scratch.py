import torch

from audioscore.muq_cpu.winograd import Scratch, Scratches


def test_a_name_is_the_same_memory_in_any_shape() -> None:
    scratch = Scratch()
    first = scratch.take("a", 4, 5)
    again = scratch.take("a", 2, 3)
    assert (tuple(first.shape), tuple(again.shape)) == ((4, 5), (2, 3))
    assert first.data_ptr() == again.data_ptr()
    assert scratch.take("b", 2, 3).data_ptr() != again.data_ptr()
    scratch.take("a", 2).fill_(1.0)
    assert scratch.take("a", 300).numel() == 300
    assert scratch.take("a", 2, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_scratches_are_not_shared_and_are_reused() -> None:
    scratches = Scratches()
    with scratches.one() as first, scratches.one() as second:
        assert first is not second
    with scratches.one() as again:
        assert again is first or again is second
    scratches.forget()
    with scratches.one() as new:
        assert new is not first
        assert new is not second
