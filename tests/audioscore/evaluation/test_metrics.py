import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from audioscore.errors import DataError
from audioscore.evaluation import metrics
from audioscore.evaluation.bootstrap import cluster_counts
from audioscore.evaluation.metrics import (
    GAPS,
    Metric,
    drawn_together,
    gap_name,
    pair_sum,
    pairwise_accuracy_in_gap,
    within_source_spearman,
)

Array = NDArray[np.float64]


def sample(seed: int, clips: int = 40) -> tuple[Array, Array]:
    """Scores and predictions with ties on both sides."""
    rng = np.random.default_rng(seed)
    scores = np.round(rng.uniform(50, 99, clips) * 2) / 2
    return scores, np.round(scores / 3 + rng.normal(0, 4, clips))


def draws(seed: int, clips: int = 40, resamples: int = 25) -> NDArray[np.int64]:
    return np.random.default_rng(seed).multinomial(clips, np.full(clips, 1 / clips), size=resamples)


def counted_pairs(scores: Array, predictions: Array, low: float = 0, high: float = math.inf) -> float:
    """Pairwise accuracy by its definition, pair by pair."""
    credit, pairs = 0.0, 0
    for i in range(len(scores)):
        for j in range(len(scores)):
            if scores[i] > scores[j] and low < round(scores[i] - scores[j], 9) <= high:
                pairs += 1
                credit += 0.5 if predictions[i] == predictions[j] else float(predictions[i] > predictions[j])
    return credit / pairs if pairs else math.nan


REFERENCES: dict[str, tuple[Metric, Callable[[Array, Array], float]]] = {
    "spearman": (metrics.spearman, lambda x, y: float(stats.spearmanr(x, y).statistic)),
    "kendall": (metrics.kendall, lambda x, y: float(stats.kendalltau(x, y, variant="b").statistic)),
    "pearson": (metrics.pearson, lambda x, y: float(stats.pearsonr(x, y).statistic)),
    "pairwise": (metrics.pairwise_accuracy, counted_pairs),
    "mae": (metrics.mae, lambda x, y: float(np.mean(np.abs(y - x)))),
    "rmse": (metrics.rmse, lambda x, y: float(np.sqrt(np.mean((y - x) ** 2)))),
    "bias": (metrics.bias, lambda x, y: float(np.mean(y - x))),
    **{gap_name(*gap): (pairwise_accuracy_in_gap(*gap), lambda x, y, gap=gap: counted_pairs(x, y, *gap))
    for gap in GAPS}
}  # fmt: skip


@pytest.mark.parametrize("name", REFERENCES)
def test_equals_an_independent_computation(name: str) -> None:
    metric, reference = REFERENCES[name]
    for seed in range(3):
        scores, predictions = sample(seed)
        assert metric(scores, predictions) == pytest.approx(reference(scores, predictions), abs=1e-12)


@pytest.mark.parametrize("weights", [draws(6), cluster_counts(np.random.default_rng(13).integers(0, 9, 40), 25, 14)])
@pytest.mark.parametrize("name", REFERENCES)
def test_weights_equal_the_expanded_sample(name: str, weights: NDArray[np.int64]) -> None:
    metric, reference = REFERENCES[name]
    scores, predictions = sample(5)
    values = metric(scores, predictions, weights)
    assert values.shape == (25,)
    for value, row in zip(values, weights, strict=True):
        expanded = np.repeat(scores, row), np.repeat(predictions, row)
        assert value == pytest.approx(metric(*expanded), abs=1e-12)
        assert value == pytest.approx(reference(*expanded), abs=1e-12)


def test_pearson_of_what_hardly_differs_is_still_exact() -> None:
    far = np.array([0.0, 1e6, 50.0, 50.000001, 50.000003])
    other = np.array([3.0, -1e6, 7.000004, 7.000001, 7.000002])
    values = metrics.pearson(far, other, [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 2, 0, 1], [0, 0, 0, 3, 0]])
    assert values[1] == pytest.approx(stats.pearsonr(far[2:], other[2:]).statistic, abs=1e-6)
    assert values[2] == pytest.approx(-1, abs=1e-9)
    assert math.isnan(values[3])


def test_blocks_and_rows_of_the_sign_matrices_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, predictions = sample(7)
    weights = draws(8)
    whole = {name: metric(scores, predictions, weights) for name, (metric, _) in REFERENCES.items()}
    monkeypatch.setattr(metrics, "BLOCK_VALUES", 90)
    monkeypatch.setattr(metrics, "PAIR_ROWS", 7)
    for name, (metric, _) in REFERENCES.items():
        np.testing.assert_allclose(metric(scores, predictions, weights), whole[name], rtol=0, atol=1e-12)


def test_a_perfect_order_is_exactly_one() -> None:
    scores = np.random.default_rng(0).permutation(np.linspace(50, 99, 333))
    for metric in (metrics.spearman, metrics.kendall, metrics.pairwise_accuracy):
        assert metric(scores, np.exp(scores / 20)) == 1.0
    assert (metrics.spearman(scores, -scores), metrics.pairwise_accuracy(scores, -scores)) == (-1.0, 0.0)


@pytest.mark.parametrize("metric", [metrics.spearman, metrics.kendall, metrics.pearson])
def test_undefined_without_two_distinct_values(metric: Metric) -> None:
    assert math.isnan(metric([], []))
    assert math.isnan(metric([70.1], [3.3]))
    assert math.isnan(metric([70.1, 70.1, 70.1], [1, 2, 3]))
    assert math.isnan(metric([60, 70, 80], [0.1, 0.1, 0.1]))
    # The second resample holds one clip three times, the third only clips with equal predictions.
    values = metric([60, 70, 80, 90], [1.1, 2.2, 2.2, 5.5], [[1, 1, 1, 1], [3, 0, 0, 0], [0, 2, 1, 0]])
    assert np.isnan(values).tolist() == [False, True, True]


def test_undefined_errors_and_pairs() -> None:
    assert math.isnan(metrics.mae([], []))
    assert math.isnan(metrics.pairwise_accuracy([70, 70], [1, 2]))
    assert metrics.pairwise_accuracy([60, 70], [5, 5]) == 0.5
    assert np.isnan(metrics.bias([60, 70], [5, 5], [[0, 0]])).all()
    assert metrics.mae([60.0], [61.0], np.zeros((0, 1))).shape == (0,)


def test_a_gap_of_two_points_is_two_points_in_binary_too() -> None:
    scores = [62.4, 64.4]
    assert 64.4 - 62.4 > 2.0
    assert pairwise_accuracy_in_gap(0, 2)(scores, [1, 2]) == 1.0
    assert math.isnan(pairwise_accuracy_in_gap(2, 5)(scores, [1, 2]))


def test_within_source_is_the_mean_over_sources_by_clips() -> None:
    scores = [60, 65, 70, 90, 92, 94, 96, 98]
    predictions = [1, 2, 3, 9, 8, 7, 6, 5]  # right inside the first source, upside down inside the second
    sources = ["ktv"] * 3 + ["acapella"] * 5
    assert metrics.spearman(scores, predictions) > 0.5
    assert within_source_spearman(scores, predictions, sources) == pytest.approx((3 * 1 + 5 * -1) / 8)


def test_within_source_leaves_out_an_undefined_source() -> None:
    assert within_source_spearman([60, 70, 90, 90], [1, 2, 3, 4], ["a", "a", "b", "b"]) == 1.0
    assert math.isnan(within_source_spearman([60, 70], [1, 2], ["a", "b"]))


def test_within_one_source_or_none_is_the_overall_figure() -> None:
    scores, predictions = sample(9)
    overall = metrics.spearman(scores, predictions)
    assert within_source_spearman(scores, predictions, ["ktv"] * 40) == pytest.approx(overall, abs=1e-15)
    assert within_source_spearman(scores, predictions, [None] * 40) == pytest.approx(overall, abs=1e-15)


def test_within_source_weights_equal_the_expanded_sample() -> None:
    scores, predictions = sample(10)
    sources = np.array(["ktv", "acapella", "live"])[np.arange(40) % 3]
    weights = draws(11)
    values = metrics.within_sources(list(sources))(scores, predictions, weights)
    for value, row in zip(values, weights, strict=True):
        expanded = [np.repeat(part, row) for part in (scores, predictions, sources)]
        parts = [(expanded[2] == name) for name in ("ktv", "acapella", "live")]
        by_hand = sum(p.sum() * stats.spearmanr(expanded[0][p], expanded[1][p]).statistic for p in parts) / row.sum()
        assert value == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.parametrize(("metric", "arguments", "match"), [
    (metrics.spearman, ([1, 2, 3], [1, 2]), r"\[3\] .*\[2\]"),
    (metrics.mae, ([1, 2, 3], [1, 2, math.nan]), r"predictions: 1 of 3 .*\b2\b"),
    (metrics.mae, ([1, 2], [1, 2], [[1, 1, 1]]), r"\[B, 2\].*\[1, 3\]"),
    (metrics.mae, ([1, 2], [1, 2], [[0.5, 1]]), "whole numbers"),
    (within_source_spearman, ([1, 2], [1, 2], ["ktv"]), r"\b1 sources .*2 clips"),
])  # fmt: skip
def test_bad_input_is_named(metric: Callable[..., Any], arguments: tuple[Any, ...], match: str) -> None:
    with pytest.raises(DataError, match=match):
        metric(*arguments)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 5))
def test_pair_sum_equals_the_sum_over_pairs_of_each_resample(seed: int, clips: int, singers: int) -> None:
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
    monkeypatch.setattr(metrics, "EXACT_IN_FLOAT32", 0.0)
    assert pair_sum(weights, lambda part: matrix[part])[0] == expected


def test_only_equal_columns_are_grouped() -> None:
    weights = np.array([[1, 0, 1, 1], [2, 2, 2, 1]], dtype=np.float64)
    first, group = drawn_together(weights)
    assert len(first) == 3
    assert np.array_equal(weights[:, first][:, group], weights)
