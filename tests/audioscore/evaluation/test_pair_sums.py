import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audioscore.evaluation import metrics as pair_sums
from audioscore.evaluation.metrics import drawn_together, pair_sum


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 5))
def test_equals_the_sum_over_pairs_of_each_expanded_sample(seed: int, clips: int, singers: int) -> None:
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.integers(-1, 2, (clips, clips)), 1)
    matrix = upper + upper.T
    weights = rng.integers(0, 4, (6, singers))[:, rng.integers(0, singers, clips)].astype(np.float64)
    for value, row in zip(pair_sum(weights, lambda part: matrix[part]), weights.astype(int), strict=True):
        expanded = np.repeat(np.arange(clips), row)
        assert value == np.triu(matrix[np.ix_(expanded, expanded)], 1).sum()


def test_large_sums_are_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = 1.0 - np.eye(3)
    weights = np.array([[30_001.0, 30_001.0, 30_003.0]])
    expected = 30_001.0**2 + 2 * 30_001.0 * 30_003.0
    assert pair_sum(weights, lambda part: matrix[part])[0] == expected
    monkeypatch.setattr(pair_sums, "EXACT_IN_FLOAT32", 0.0)
    assert pair_sum(weights, lambda part: matrix[part])[0] == expected


def test_only_equal_columns_are_one_set() -> None:
    weights = np.array([[1, 0, 1, 1], [2, 2, 2, 1]], dtype=np.float64)
    first, group = drawn_together(weights)
    assert len(first) == 3
    assert np.array_equal(weights[:, first][:, group], weights)
