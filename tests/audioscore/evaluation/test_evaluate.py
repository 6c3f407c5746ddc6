import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from audioscore.errors import UsageError
from audioscore.evaluation.evaluate import evaluate
from audioscore.evaluation.predictions import Prediction

Make = Callable[..., list[Prediction]]
BOTH = {"baseline": 0, "hybrid": 1}


def test_figures_are_those_of_the_representative_test_rows(make_predictions: Make) -> None:
    rows = make_predictions()
    found = evaluate(rows, {}, BOTH, resamples=200)
    test = [r for r in rows if (r.plan, r.seed, r.split) == ("hybrid", 1, "test")]
    human, predicted = np.array([r.human for r in test]), np.array([r.predicted for r in test])
    hybrid = found["plans"]["hybrid"]
    assert hybrid["spearman"]["value"] == pytest.approx(stats.spearmanr(human, predicted).statistic)
    assert hybrid["kendall"]["value"] == pytest.approx(stats.kendalltau(human, predicted).statistic)
    assert hybrid["pearson"]["value"] == pytest.approx(stats.pearsonr(human, predicted).statistic)
    assert hybrid["mae"]["value"] == pytest.approx(np.abs(predicted - human).mean())
    assert hybrid["spearman"]["lo"] < hybrid["spearman"]["value"] < hybrid["spearman"]["hi"]
    ktv = human < 85
    assert hybrid["per_source"]["ktv"]["clips"] == 24
    assert hybrid["per_source"]["ktv"]["spearman"]["value"] == pytest.approx(
        stats.spearmanr(human[ktv], predicted[ktv]).statistic
    )
    assert hybrid["coverage"]["share"] == pytest.approx(np.mean(np.abs(predicted - human) <= 5))
    assert hybrid["coverage"]["clips"] == 48
    assert sum(band["clips"] for band in hybrid["per_band"].values()) == 48
    top = (human >= 95) & (human <= 100)
    assert hybrid["per_band"]["95-100"]["bias"]["value"] == pytest.approx((predicted - human)[top].mean())
    assert list(hybrid["pairwise_accuracy_by_gap"]) == ["0-2", "2-5", "5-10", "over 10"]


def test_counts_clusters_and_seeds(make_predictions: Make) -> None:
    found = evaluate(make_predictions(), {}, BOTH, resamples=50)
    assert found["counts"] == {"clips": 48, "singers": 12, "songs": 5, "without_singer": 0}
    assert found["clusters"] == "singer"
    assert found["warnings"] == []
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


def test_controls_stand_beside_the_plans(make_predictions: Make) -> None:
    rows = make_predictions()
    scores = {r.sha256: r.human for r in rows}
    some = {sha256: score for index, (sha256, score) in enumerate(sorted(scores.items())) if index >= 8}
    found = evaluate(rows, {"level": scores, "duration": some, "empty": {}}, BOTH, resamples=50)
    controls = found["controls"]
    assert list(controls) == ["level", "duration", "empty", "source", "constant"]
    assert controls["level"]["spearman"]["value"] == 1.0
    assert controls["duration"]["clips"] == 40
    assert controls["empty"]["spearman"]["value"] is None
    # Two constants, half of the clips each: the shortcut of the two domains.
    assert controls["source"]["spearman"]["value"] == pytest.approx(np.sqrt(0.75), abs=0.01)
    assert controls["source"]["spearman_within_source"]["value"] is None
    assert "Control duration is known for 40 of 48 test clips." in found["warnings"]


def test_unknown_singers_and_few_singers_are_said(make_predictions: Make) -> None:
    rows = make_predictions()
    clips = evaluate([replace(r, singer_id=None) for r in rows], {}, BOTH, resamples=20)
    assert clips["clusters"] == "clip"
    assert clips["counts"]["without_singer"] == 48
    assert "48 of 48 test clips have no singer" in clips["warnings"][0]
    few = evaluate(
        [
            replace(r, singer_id=(r.singer_id or "")[-1])
            for r in rows
            if r.sha256 < f"{4:064x}" or (r.split == "test" and r.sha256 < f"{12:064x}")
        ],
        {},
        BOTH,
        resamples=20,
    )
    assert "Only 3 test singers" in few["warnings"][0]
    assert "source-only and constant controls are left out" in few["warnings"][1]


def test_one_singer_gives_values_without_intervals(make_predictions: Make) -> None:
    rows = [replace(r, singer_id="only") for r in make_predictions()]
    found = evaluate(rows, {}, BOTH, resamples=20)
    estimate = found["plans"]["hybrid"]["spearman"]
    assert estimate["value"] > 0.5
    assert (estimate["lo"], estimate["hi"]) == (None, None)
    assert found["warnings"] == ["All test clips are by one singer: there are no intervals."]


def test_a_constant_model_is_undefined_and_not_an_error(make_predictions: Make) -> None:
    rows = [replace(r, predicted=75.0) if r.plan == "hybrid" else r for r in make_predictions()]
    found = evaluate(rows, {}, BOTH, resamples=20)
    assert found["plans"]["hybrid"]["spearman"]["value"] is None
    assert found["plans"]["hybrid"]["pairwise_accuracy"]["value"] == 0.5
    assert found["plans"]["hybrid"]["undefined_resamples"]["spearman"] == 20
    assert found["comparison"]["delta"] is None


def test_a_reference_that_was_not_evaluated_is_refused(make_predictions: Make) -> None:
    with pytest.raises(UsageError, match=r"reference plan muq_frozen was not evaluated; got baseline, hybrid"):
        evaluate(make_predictions(), {}, BOTH, reference="muq_frozen")


def estimates(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every figure with an interval, by its place in the document."""
    if isinstance(value, dict):
        if "lo" in value:
            yield path, value
        for key, below in value.items():
            yield from estimates(below, f"{path}/{key}")
    elif isinstance(value, list):
        for place, below in enumerate(value):
            yield from estimates(below, f"{path}/{place}")


def variants(rows: list[Prediction]) -> list[list[Prediction]]:
    """The corpus as it is, by one singer, without singers, songs and sources, all equal, and of one test clip."""
    return [
        rows,
        [replace(r, singer_id="only") for r in rows],
        [replace(r, singer_id=None, song_id=None, source=None, lo=None, hi=None) for r in rows],
        [replace(r, score=70.0, predicted=75.0) for r in rows],
        [r for r in rows if r.split != "test" or r.sha256 == f"{0:064x}"],
    ]


@pytest.mark.parametrize("number", range(5))
def test_every_figure_has_an_interval_or_says_why_it_has_none(number: int, make_predictions: Make) -> None:
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
