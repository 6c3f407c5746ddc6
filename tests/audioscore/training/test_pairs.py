import torch
from hypothesis import given
from hypothesis import strategies as st

from audioscore.training.losses import ordered_pairs


@given(st.lists(st.integers(50, 54), max_size=12))
def test_every_ordered_pair_is_there_once_better_first_and_no_tie(scores: list[int]) -> None:
    pairs = ordered_pairs(torch.tensor(scores, dtype=torch.float32))
    found = list(zip(pairs.better.tolist(), pairs.worse.tolist(), pairs.gap.tolist(), strict=True))
    wanted = [
        (i, j, float(scores[i] - scores[j]))
        for i in range(len(scores))
        for j in range(len(scores))
        if scores[i] > scores[j]
    ]
    assert sorted(found) == sorted(wanted)
