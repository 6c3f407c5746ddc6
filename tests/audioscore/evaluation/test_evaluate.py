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
    """The other figures are compared with scipy in test_report_figures.py."""
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
    with pytest.raises(UsageError, match=r"muq_frozen .*baseline, hybrid"):
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
