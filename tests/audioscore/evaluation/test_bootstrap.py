import itertools
import math
import re
from collections.abc import Callable
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from audioscore.errors import DataError, UsageError
from audioscore.evaluation.bootstrap import (
    NO_SOURCE,
    WILSON,
    ResampledClips,
    cluster_counts,
    estimate,
    holm,
    interval,
    paired_difference,
    resample_test_split,
    singer_clusters,
    two_sided_p,
    undefined_resamples,
    wilson,
)
from audioscore.evaluation.metrics import bias, mae, spearman
from audioscore.evaluation.predictions import Prediction


def test_whole_clusters_are_drawn_as_many_as_there_are() -> None:
    clusters = np.array([0, 0, 1, 2, 2, 2])
    counts = cluster_counts(clusters, 500, seed=1)
    assert counts.shape == (500, 6)
    assert np.issubdtype(counts.dtype, np.integer)
    for number in range(3):
        of_cluster = counts[:, clusters == number]
        assert (of_cluster == of_cluster[:, :1]).all()  # its clips are drawn together
    assert (counts[:, [0, 2, 3]].sum(axis=1) == 3).all()
    assert counts[:, 2].mean() == pytest.approx(1, abs=0.15)


def test_draws_repeat_with_the_seed_and_only_with_it() -> None:
    clusters = ["a", "b", "c", "a"]
    assert np.array_equal(cluster_counts(clusters, 50, 3), cluster_counts(clusters, 50, 3))
    assert not np.array_equal(cluster_counts(clusters, 50, 3), cluster_counts(clusters, 50, 4))


@pytest.mark.parametrize(("call", "error", "match"), [
    (lambda: cluster_counts(["a", "a"], 10, 0), DataError, r"2 clusters .*\b1\b"),
    (lambda: cluster_counts(["a", "b"], 0, 0), UsageError, r"resamples\b.*\b0\b"),
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


def test_a_value_without_an_interval_has_a_reason() -> None:
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
    errors = np.repeat(rng.normal(0, 1, 200), 10)  # ten clips of a singer with the same error
    found = estimate(bias, scores, errors, cluster_counts(np.repeat(np.arange(200), 10), 2000, 0))
    assert found.hi - found.lo == pytest.approx(2 * 1.96 * errors.std() / math.sqrt(200), rel=0.1)


def test_paired_difference_uses_the_same_resamples() -> None:
    rng = np.random.default_rng(2)
    scores = rng.uniform(50, 99, 60)
    first = scores + rng.normal(0, 5, 60)
    counts = cluster_counts(np.arange(60) // 3, 400, 0)
    same = paired_difference(spearman, scores, first, first, counts)
    assert (same.value, same.lo, same.hi) == (0.0, 0.0, 0.0)
    # With shared draws, a constant shift between two models has an interval of width 0.
    shifted = paired_difference(bias, scores, first + 2, first, counts)
    assert (shifted.value, shifted.lo, shifted.hi) == pytest.approx((2, 2, 2))


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0, -2.0, 3.0])
def test_p_of_normal_resamples_is_the_normal_ones(shift: float) -> None:
    quantiles = np.array([NormalDist(shift, 1).inv_cdf((k + 0.5) / 20_000) for k in range(20_000)])
    assert two_sided_p(quantiles) == pytest.approx(2 * NormalDist().cdf(-abs(shift)), abs=2e-4)


@given(st.lists(st.floats(-1, 1), min_size=40, max_size=200))
def test_p_is_in_range_and_independent_of_the_sign(values: list[float]) -> None:
    p = two_sided_p(values)
    assert 2 / (len(values) + 1) <= p <= 1
    assert p == two_sided_p([-value for value in values])


def test_p_is_small_where_the_interval_leaves_zero_out() -> None:
    rng = np.random.default_rng(0)
    for shift in np.linspace(1.5, 2.5, 21):
        values = rng.normal(shift, 1, 2000)
        lo, hi = interval(values)
        if abs(two_sided_p(values) - 0.05) > 2e-3:
            assert (two_sided_p(values) < 0.05) == (lo > 0 or hi < 0)


def test_undefined_resamples_are_left_out_of_p() -> None:
    assert two_sided_p([math.nan, *[0.1] * 19, math.nan]) == pytest.approx(0.1)
    assert math.isnan(two_sided_p([math.nan]))
    assert math.isnan(two_sided_p([]))
    assert two_sided_p([0.0] * 50) == 1.0


def by_closed_testing(p_values: dict[str, float]) -> dict[str, float]:
    """Closed testing: reject a hypothesis if Bonferroni rejects every intersection that contains it."""
    subsets = [
        subset for size in range(1, len(p_values) + 1) for subset in itertools.combinations(sorted(p_values), size)
    ]
    return {
        name: max(min(1.0, len(s) * min(p_values[one] for one in s)) for s in subsets if name in s) for name in p_values
    }


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_equals_closed_testing(values: list[float]) -> None:
    p_values = {f"plan {index}": value for index, value in enumerate(values)}
    assert holm(p_values) == pytest.approx(by_closed_testing(p_values))


def test_an_undefined_p_does_not_count_in_the_family() -> None:
    adjusted = holm({"a": 0.02, "b": math.nan, "c": 0.03})
    assert (adjusted["a"], adjusted["c"]) == (pytest.approx(0.04), pytest.approx(0.04))
    assert math.isnan(adjusted["b"])
    assert holm({}) == {}


@pytest.mark.parametrize(("hits", "draws"), [(0, 7), (3, 7), (7, 7), (1, 1), (180, 200)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_equals_scipy(hits: int, draws: int, confidence: float) -> None:
    expected = stats.binomtest(hits, draws).proportion_ci(confidence, method="wilson")
    assert wilson(hits / draws, draws, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_mean_is_that_of_each_expanded_resample(test: ResampledClips) -> None:
    values, member = np.random.default_rng(1).normal(0, 1, 48), np.arange(0, 48, 3)
    found = test.mean(values, member)
    means = [np.repeat(values[member], drawn).mean() for drawn in test.counts[:, member]]
    assert found.value == pytest.approx(values[member].mean())
    assert (found.lo, found.hi) == pytest.approx(tuple(np.quantile(means, [0.05, 0.95])))


def test_a_share_that_never_changes_has_wilsons_interval_over_singers(test: ResampledClips) -> None:
    every = test.share(np.ones(48, dtype=bool))
    assert (every.value, every.lo, every.hi) == (1.0, *wilson(1.0, 12, 0.9))
    assert every.as_dict()["method"] == WILSON
    some = test.share(np.arange(48) % 7 > 0)
    assert 0 < some.lo < some.value < some.hi < 1
    assert "method" not in some.as_dict()


def test_clips_of_one_singer_or_none_have_no_interval(test: ResampledClips) -> None:
    predicted = test.scores + 1
    of_one = test.estimate(mae, predicted, np.arange(4))
    assert "4 clips" in of_one.no_interval
    assert of_one.as_dict() == {"value": pytest.approx(1), "lo": None, "hi": None, "no_interval": of_one.no_interval}
    assert test.estimate(mae, predicted, np.arange(1)).no_interval not in (None, of_one.no_interval)
    none = test.estimate(mae, predicted, np.arange(0), "reason")
    assert none.as_dict() == {"value": None, "lo": None, "hi": None, "no_interval": "reason"}
    assert test.singer_count(np.arange(8)) == 2


def test_few_singers_have_wilsons_interval_of_a_share_alone(test: ResampledClips) -> None:
    member, predicted = np.arange(16), test.scores + np.arange(48) % 3
    four = test.estimate(mae, predicted, member)
    assert math.isnan(four.lo)
    assert re.search(r"\b4 singers.*\b5\b", four.no_interval)
    assert test.estimate(mae, predicted, np.arange(20)).no_interval is None
    share = test.share(np.arange(48) % 4 > 0, member)
    assert (share.value, share.lo, share.hi) == (0.75, *wilson(0.75, 4, 0.9))
    assert share.as_dict()["method"] == WILSON


def test_all_clips_of_few_singers_have_an_interval(rows: list[Prediction]) -> None:
    test, warnings = resample_test_split(rows[:12], 100, 0.9, 0)
    assert len(warnings) == 1
    assert "3 test singers" in warnings[0]
    assert test.estimate(mae, test.scores + np.arange(12) % 5).no_interval is None


def test_a_value_that_most_resamples_lack_has_no_interval(rows: list[Prediction]) -> None:
    test, _ = resample_test_split(rows, 400, 0.95, 0)
    lone = replace(test, counts=np.where(np.arange(400)[:, None] % 3 == 0, test.counts, 0))
    found = lone.estimate(mae, test.scores + 1)
    assert (found.value, found.undefined) == (pytest.approx(1), 266)
    assert "266 of 400 resamples" in found.no_interval


def test_missing_and_single_singers_give_warnings(rows: list[Prediction]) -> None:
    test, warnings = resample_test_split([replace(row, source=None, singer_id=None) for row in rows], 20, 0.95, 0)
    assert [("48 of 48" in text) for text in warnings] == [True]
    assert set(test.sources) == {NO_SOURCE}
    alone, warnings = resample_test_split([replace(row, singer_id="a") for row in rows], 20, 0.95, 0)
    assert len(warnings) == 1
    assert alone.counts.shape == (0, 48)
