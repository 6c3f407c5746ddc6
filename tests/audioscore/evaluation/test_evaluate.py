import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from audioscore.errors import UsageError
from audioscore.evaluation.bootstrap import SLICE_SINGERS, ResampledClips, resample_test_split
from audioscore.evaluation.evaluate import (
    METRICS,
    calibration_curve,
    evaluate,
    interval_coverage,
    plan_metrics,
    predicted_scores,
    resampled_ranks,
)
from audioscore.evaluation.predictions import Prediction, align_runs

Make = Callable[..., list[Prediction]]
BOTH = {"baseline": 0, "hybrid": 1}


def test_figures_are_those_of_the_representative_test_rows(make_predictions: Make) -> None:
    """The other figures are compared with scipy in report/test_figures.py."""
    rows = make_predictions()
    hybrid = evaluate(rows, {}, BOTH, resamples=200)["plans"]["hybrid"]
    test = [r for r in rows if (r.plan, r.seed, r.split) == ("hybrid", 1, "test")]
    human, predicted = np.array([r.human for r in test]), np.array([r.predicted for r in test])
    assert hybrid["spearman"]["value"] == pytest.approx(stats.spearmanr(human, predicted).statistic)
    assert hybrid["spearman"]["lo"] < hybrid["spearman"]["value"] < hybrid["spearman"]["hi"]
    assert (hybrid["per_source"]["ktv"]["clips"], hybrid["coverage"]["clips"]) == (24, 48)
    assert sum(band["clips"] for band in hybrid["per_band"].values()) == 48
    assert list(hybrid["pairwise_accuracy_by_gap"]) == ["0-2", "2-5", "5-10", "over 10"]


def test_counts_clusters_and_seeds(make_predictions: Make) -> None:
    found = evaluate(make_predictions(), {}, BOTH, resamples=50)
    assert found["counts"] == {"clips": 48, "singers": 12, "songs": 5, "without_singer": 0}
    assert (found["clusters"], found["warnings"]) == ("singer", [])
    per_seed = found["plans"]["baseline"]["per_seed"]
    assert [entry["seed"] for entry in per_seed] == [0, 1]
    assert per_seed[0]["test_spearman"] == found["plans"]["baseline"]["spearman"]["value"]
    assert per_seed[0]["val_spearman"] not in (None, per_seed[0]["test_spearman"])


def test_comparison_is_hybrid_minus_baseline(make_predictions: Make) -> None:
    rows = make_predictions()
    found = evaluate(rows, {}, BOTH, resamples=200)
    plans = found["plans"]
    expected = plans["hybrid"]["spearman"]["value"] - plans["baseline"]["spearman"]["value"]
    assert found["comparison"]["delta"] == pytest.approx(expected)
    assert 0 < found["comparison"]["lo"] < expected < found["comparison"]["hi"]
    within = found["comparison"]["within_source"]
    ours, theirs = (found["plans"][plan]["spearman_within_source"]["value"] for plan in ("hybrid", "baseline"))
    assert within["delta"] == pytest.approx(ours - theirs)
    assert within["lo"] < within["delta"] < within["hi"]
    only = evaluate([r for r in rows if r.plan == "hybrid"], {}, {"hybrid": 1}, resamples=10)
    assert only["comparison"] is None


def test_the_order_of_rows_changes_nothing_and_all_is_json(make_predictions: Make) -> None:
    rows = make_predictions()
    shuffled = random.Random(0).sample(rows, len(rows))
    first, second = (json.dumps(evaluate(part, {}, BOTH, resamples=50), allow_nan=False) for part in (rows, shuffled))
    assert first == second


def test_controls_have_figures(make_predictions: Make) -> None:
    rows = make_predictions()
    scores = {r.sha256: r.human for r in rows}
    some = {sha256: score for index, (sha256, score) in enumerate(sorted(scores.items())) if index >= 8}
    found = evaluate(rows, {"level": scores, "duration": some, "empty": {}}, BOTH, resamples=50)
    controls = found["controls"]
    assert list(controls) == ["level", "duration", "empty", "source", "constant"]
    assert (controls["level"]["spearman"]["value"], controls["duration"]["clips"]) == (1.0, 40)
    assert controls["empty"]["spearman"]["value"] is None
    # Two constants, half of the clips each: the shortcut of the two domains.
    assert controls["source"]["spearman"]["value"] == pytest.approx(np.sqrt(0.75), abs=0.01)
    assert controls["source"]["spearman_within_source"]["value"] is None
    assert any("duration" in text and "40 of 48" in text for text in found["warnings"])


def test_unknown_and_few_singers_give_warnings(make_predictions: Make) -> None:
    rows = make_predictions()
    clips = evaluate([replace(r, singer_id=None) for r in rows], {}, BOTH, resamples=20)
    assert (clips["clusters"], clips["counts"]["without_singer"]) == ("clip", 48)
    assert "48 of 48" in clips["warnings"][0]
    few = evaluate([r for r in rows if r.sha256 < f"{12:064x}"], {}, BOTH, resamples=20)
    assert "3 test singers" in few["warnings"][0]
    assert "constant" in few["warnings"][1]


def test_a_constant_model_is_undefined_and_not_an_error(make_predictions: Make) -> None:
    rows = [replace(r, predicted=75.0) if r.plan == "hybrid" else r for r in make_predictions()]
    found = evaluate(rows, {}, BOTH, resamples=20)
    assert found["plans"]["hybrid"]["spearman"]["value"] is None
    assert found["plans"]["hybrid"]["pairwise_accuracy"]["value"] == 0.5
    assert (found["plans"]["hybrid"]["undefined_resamples"]["spearman"], found["comparison"]["delta"]) == (20, None)


def test_a_reference_that_was_not_evaluated_is_an_error(make_predictions: Make) -> None:
    with pytest.raises(UsageError, match=r"muq_frozen\b.*baseline, hybrid"):
        evaluate(make_predictions(), {}, BOTH, reference="muq_frozen")


def estimates(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every value with `lo` and `hi`, with its path in the document."""
    if isinstance(value, dict):
        if "lo" in value:
            yield path, value
        for key, below in value.items():
            yield from estimates(below, f"{path}/{key}")
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from estimates(below, f"{path}/{index}")


def variants(rows: list[Prediction]) -> list[list[Prediction]]:
    """The rows unchanged, of one singer, without singer, song and source, with equal scores, with one test clip."""
    return [
        rows, [replace(r, singer_id="only") for r in rows],
        [replace(r, singer_id=None, song_id=None, source=None, lo=None, hi=None) for r in rows],
        [replace(r, score=70.0, predicted=75.0) for r in rows],
        [r for r in rows if r.split != "test" or r.sha256 == f"{0:064x}"]
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(5))
def test_every_figure_has_an_interval_or_a_reason(number: int, make_predictions: Make) -> None:
    rows = variants(make_predictions())[number]
    ratings = {r.clip: (r.human, min(100.0, r.human + index % 5)) for index, r in enumerate(rows)}
    found = evaluate(rows, {"level": {r.sha256: r.human for r in rows}}, BOTH, ratings=ratings, resamples=20)
    json.dumps(found, allow_nan=False)
    listed = list(estimates(found))
    assert len(listed) > 80
    for path, figure in listed:
        bounds = (figure["lo"] is not None, figure["hi"] is not None)
        assert bounds == (True, True) or (bounds == (False, False) and figure.get("no_interval")), path
        assert bounds == (False, False) or "no_interval" not in figure, path


def test_ratings_and_reference_reach_their_figures(make_predictions: Make) -> None:
    rows = make_predictions({"baseline": 6.0, "hybrid": 2.0, "muq_frozen": 9.0})
    chosen = {**BOTH, "muq_frozen": 0}
    ratings = {r.clip: (r.human - 1, r.human + 1 + r.human % 1) for r in rows}
    found = evaluate(rows, {}, chosen, ratings=ratings, reference="hybrid", resamples=100)
    assert found["noise_ceiling"]["clips"] == 48
    assert 0.9 < found["noise_ceiling"]["overall"]["value"] < 1
    assert found["variants"]["reference"] == "hybrid"
    assert list(found["variants"]["compared"]) == ["baseline", "muq_frozen"]
    assert evaluate(rows, {}, chosen, resamples=10)["variants"]["reference"] == "baseline"
    assert evaluate(rows, {}, chosen, resamples=10)["noise_ceiling"]["overall"]["value"] is None


Make = Callable[..., list[Prediction]]


def figures(rows: list[Prediction], resamples: int = 40) -> tuple[dict[str, Any], ResampledClips]:
    """Of plan baseline, seed 0."""
    runs = align_runs(rows, {"baseline": 0})
    test, _ = resample_test_split([row for _, row in sorted(runs["baseline", 0]["test"].items())], resamples, 0.9, 0)
    ranks = resampled_ranks(predicted_scores(runs, "baseline", 0, test), test)
    return plan_metrics(runs, "baseline", 0, ranks, test), test


def test_within_source_is_resampled_like_the_overall_figure(make_predictions: Make) -> None:
    """The values are compared with scipy in report/test_figures.py."""
    rows = make_predictions({"baseline": 6.0}, (0, 1, 2))
    found, test = figures(rows)
    own = sorted((row for row in rows if row.split == "test" and row.seed == 0), key=lambda row: row.clip)
    human, predicted = test.scores, np.array([row.predicted for row in own])
    ktv = np.array([source == "ktv" for source in test.sources])
    assert list(found["within_source"]) == list(METRICS)
    assert all(one["lo"] < one["hi"] for one in found["within_source"].values())
    assert found["within_source"]["spearman"] == found["spearman_within_source"]

    def rmse(drawn: np.ndarray) -> float:
        parts = [(np.repeat(human[part], drawn[part]), np.repeat(predicted[part], drawn[part])) for part in (ktv, ~ktv)]
        return float(sum(len(x) * np.sqrt(((y - x) ** 2).mean()) for x, y in parts if len(x)) / drawn.sum())

    assert found["within_source"]["rmse"]["value"] == pytest.approx(rmse(np.ones(48, dtype=int)))
    resampled = [rmse(drawn) for drawn in test.counts]
    assert found["within_source"]["rmse"]["lo"] == pytest.approx(np.quantile(resampled, 0.05))


def test_the_spread_is_over_training_seeds(make_predictions: Make) -> None:
    found, _ = figures(make_predictions({"baseline": 6.0}, (0, 1, 2)))
    values = [entry["test_spearman"] for entry in found["per_seed"]]
    spread = found["seed_spread"]["test_spearman"]
    assert (spread["seeds"], spread["mean"]) == (3, pytest.approx(np.mean(values)))
    assert spread["sd"] == pytest.approx(np.std(values, ddof=1))
    assert (spread["min"], spread["max"]) == (min(values), max(values))
    assert spread["no_interval"]
    assert found["seed_spread"]["val_spearman"]["mean"] != spread["mean"]


def test_one_seed_or_an_undefined_one_has_no_spread(make_predictions: Make) -> None:
    rows = make_predictions({"baseline": 6.0}, (0, 1))
    one, _ = figures([row for row in rows if row.seed == 0])
    assert one["seed_spread"]["test_spearman"]["sd"] is None
    assert "1 of 1 seeds" in one["seed_spread"]["test_spearman"]["no_interval"]
    constant, _ = figures([replace(row, predicted=70.0) if row.seed == 1 else row for row in rows])
    assert constant["seed_spread"]["test_spearman"]["sd"] is None
    assert "1 of 2 seeds" in constant["seed_spread"]["test_spearman"]["no_interval"]


def test_undefined_figures_have_a_reason_each(make_predictions: Make) -> None:
    found, _ = figures([replace(row, score=70.0) for row in make_predictions({"baseline": 6.0}, (0,))])
    undefined = (
        found["spearman"], found["pairwise_accuracy"], found["pairwise_accuracy_by_gap"]["2-5"],
        found["within_source"]["kendall"]
    )  # fmt: skip
    assert ([one["value"] for one in undefined], len({one["no_interval"] for one in undefined})) == ([None] * 4, 4)
    assert found["undefined_resamples"]["spearman"] == 40
    assert found["mae"]["value"] is not None


def unrated(clips: int) -> list[Prediction]:
    return [
        Prediction(f"{n:064x}", f"{n}.wav", "test", "a", None, None, 60.0 + n, "baseline", 0, 0.0, 60.0, None, None)
        for n in range(clips)
    ]


def test_bins_are_equally_full_and_hold_the_means(rows: list[Prediction], test: ResampledClips) -> None:
    predicted = np.array([row.predicted for row in rows])
    curve = calibration_curve(predicted, test)
    assert [point["clips"] for point in curve] == [6, 6, 6, 5, 5, 5, 5, 5, 5]
    order = sorted(range(48), key=lambda index: predicted[index])
    for point, own in zip(curve, (order[:6], order[6:12], order[12:18]), strict=False):
        assert point["predicted"] == pytest.approx(predicted[own].mean())
        assert point["human"]["value"] == pytest.approx(test.scores[own].mean())
        means = [np.repeat(test.scores[own], drawn).mean() for drawn in test.counts[:, own] if drawn.sum()]
        enough = test.singer_count(own) >= SLICE_SINGERS
        assert point["human"]["lo"] == (pytest.approx(np.quantile(means, 0.05)) if enough else None)
    assert sum("no_interval" in point["human"] for point in curve) in range(1, 8)
    assert curve[-1]["predicted"] == pytest.approx(predicted[order[-5:]].mean())


def test_a_perfect_model_lies_on_the_diagonal_and_few_clips_make_one_bin(test: ResampledClips) -> None:
    for point in calibration_curve(test.scores, test):
        assert point["human"]["value"] == pytest.approx(point["predicted"])
    few, _ = resample_test_split([replace(row, singer_id="a") for row in unrated(4)], 20, 0.9, 0)
    curve = calibration_curve(few.scores, few)
    assert len(curve) == 1
    assert "4 clips" in curve[0]["human"]["no_interval"]


def test_coverage_counts_the_edges_and_the_clips_with_an_interval(rows: list[Prediction], test: ResampledClips) -> None:
    inside = [abs(row.predicted - row.human) <= 5 for row in rows]
    found = interval_coverage(rows, test)
    assert (found["share"], found["clips"]) == (pytest.approx(np.mean(inside)), 48)
    assert found["lo"] < found["share"] < found["hi"]
    assert found["mean_width"] == pytest.approx(10)
    ends = [(row.human, row.human + 2) if n < 12 else (None, None) for n, row in enumerate(rows)]
    touching = [replace(row, lo=lo, hi=hi) for row, (lo, hi) in zip(rows, ends, strict=True)]
    found = interval_coverage(touching, test)
    assert (found["share"], found["hi"], found["clips"], found["mean_width"]) == (1.0, 1.0, 12, pytest.approx(2))
    assert 0.4 < found["lo"] < 0.6  # of three singers, however many clips they have
    assert "Wilson" in found["method"]


def test_a_model_without_intervals_has_no_coverage(rows: list[Prediction], test: ResampledClips) -> None:
    found = interval_coverage([replace(row, lo=None, hi=None) for row in rows], test)
    assert found.pop("no_interval")
    assert found == {**dict.fromkeys(("share", "lo", "hi", "mean_width")), "clips": 0}
