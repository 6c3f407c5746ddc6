import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from audioscore.errors import DataError, UsageError
from audioscore.evaluation.bootstrap import (
    cluster_counts,
    estimate,
    interval,
    paired_difference,
    singer_clusters,
    undefined_resamples,
)
from audioscore.evaluation.metrics import bias, mae, spearman


def test_whole_clusters_are_drawn_as_many_as_there_are() -> None:
    clusters = np.array([0, 0, 1, 2, 2, 2])
    counts = cluster_counts(clusters, 500, seed=1)
    assert counts.shape == (500, 6)
    assert np.issubdtype(counts.dtype, np.integer)
    for number in range(3):
        of_cluster = counts[:, clusters == number]
        assert (of_cluster == of_cluster[:, :1]).all()  # its clips come and go together
    assert (counts[:, [0, 2, 3]].sum(axis=1) == 3).all()
    assert counts[:, 2].mean() == pytest.approx(1, abs=0.15)


def test_draws_repeat_with_the_seed_and_only_with_it() -> None:
    clusters = ["a", "b", "c", "a"]
    assert np.array_equal(cluster_counts(clusters, 50, 3), cluster_counts(clusters, 50, 3))
    assert not np.array_equal(cluster_counts(clusters, 50, 3), cluster_counts(clusters, 50, 4))


@pytest.mark.parametrize(("call", "error", "match"), [
    (lambda: cluster_counts(["a", "a"], 10, 0), DataError, r"2 clusters .*\b1\b"),
    (lambda: cluster_counts(["a", "b"], 0, 0), UsageError, r"resamples .*\b0\b"),
    (lambda: interval([1.0], 95), UsageError, r"0\.95\b.*\b95\b"),
])  # fmt: skip
def test_bad_arguments_are_errors(call: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()


def test_unknown_singers_are_clusters_of_their_own() -> None:
    assert singer_clusters([None, "a", None, "a"]).tolist() == [0, 1, 2, 1]


def test_interval_ignores_undefined_resamples_and_they_are_counted() -> None:
    values = [math.nan, *range(101), math.nan]
    assert (interval(values, 0.9), undefined_resamples(values)) == (pytest.approx((5.0, 95.0)), 2)
    assert all(math.isnan(end) for end in interval([math.nan]))


def test_estimate_counts_resamples_without_a_value() -> None:
    found = estimate(spearman, [60, 70, 80], [1, 2, 3], [[1, 1, 1], [3, 0, 0], [0, 2, 1]])
    assert (found.value, found.lo, found.hi, found.undefined) == (1.0, 1.0, 1.0, 1)
    assert found.as_dict() == {"value": 1.0, "lo": 1.0, "hi": 1.0, "undefined_resamples": 1}


def test_a_figure_without_an_interval_has_a_reason() -> None:
    most = estimate(spearman, [60, 70, 80], [1, 2, 3], [[1, 1, 1], [3, 0, 0], [0, 2, 0]])
    assert math.isnan(most.lo)
    assert "2 of 3 resamples" in most.no_interval
    never = estimate(spearman, [60, 70, 80], [2, 2, 2], [[1, 1, 1]])
    assert never.no_interval
    assert never.as_dict() == dict.fromkeys(("value", "lo", "hi")) | {
        "undefined_resamples": 1, "no_interval": never.no_interval
    }  # fmt: skip


def test_no_resamples_give_a_value_without_an_interval() -> None:
    found = estimate(mae, [60.0, 70.0], [61.0, 70.0], np.zeros((0, 2), dtype=int))
    assert found.no_interval
    assert found.as_dict() == {"value": 0.5, "lo": None, "hi": None, "no_interval": found.no_interval}


def test_interval_of_a_mean_has_the_width_theory_gives() -> None:
    rng = np.random.default_rng(0)
    scores = np.zeros(2000)
    errors = np.repeat(rng.normal(0, 1, 200), 10)  # ten clips of a singer, all wrong alike
    found = estimate(bias, scores, errors, cluster_counts(np.repeat(np.arange(200), 10), 2000, 0))
    assert found.hi - found.lo == pytest.approx(2 * 1.96 * errors.std() / math.sqrt(200), rel=0.1)


def test_paired_difference_uses_the_same_resamples() -> None:
    rng = np.random.default_rng(2)
    scores = rng.uniform(50, 99, 60)
    first = scores + rng.normal(0, 5, 60)
    counts = cluster_counts(np.arange(60) // 3, 400, 0)
    same = paired_difference(spearman, scores, first, first, counts)
    assert (same.value, same.lo, same.hi) == (0.0, 0.0, 0.0)
    # A constant shift between two models is known exactly when both see the same draws.
    shifted = paired_difference(bias, scores, first + 2, first, counts)
    assert (shifted.value, shifted.lo, shifted.hi) == pytest.approx((2, 2, 2))
