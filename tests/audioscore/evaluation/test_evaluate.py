import json
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from audioscore.errors import DataError, UsageError
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
    assert hybrid["coverage"] == {"share": pytest.approx(np.mean(np.abs(predicted - human) <= 5)), "clips": 48}
    assert sum(band["n"] for band in hybrid["bands"].values()) == 48
    top = (human >= 95) & (human <= 100)
    assert hybrid["bands"]["95-100"]["bias"] == pytest.approx((predicted - human)[top].mean())
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
    assert list(controls) == ["level", "duration", "empty", "source"]
    assert controls["level"]["spearman"]["value"] == 1.0
    assert controls["duration"]["clips"] == 40
    assert controls["empty"]["spearman"] == {"value": None, "lo": None, "hi": None}
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
    assert "source-only control is left out" in few["warnings"][1]


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


def test_what_cannot_be_compared_is_refused(make_predictions: Make) -> None:
    rows = make_predictions()
    with pytest.raises(DataError, match=r"1 evaluated clips have no score \(audio/000.m4a\)"):
        evaluate([replace(rows[0], score=None), *rows[1:]], {}, BOTH)
    with pytest.raises(DataError, match=r"audio/000.m4a is listed twice for plan baseline, seed 0"):
        evaluate([*rows, rows[0]], {}, BOTH)
    with pytest.raises(DataError, match=r"baseline, seed 1 and plan baseline, seed 0 differ in 1 .*\(audio/000.m4a\)"):
        evaluate([replace(rows[0], score=1.0), *rows[1:]], {}, BOTH)
    with pytest.raises(DataError, match=r"differ in 1 test clips"):
        evaluate(rows[1:], {}, BOTH)
    with pytest.raises(DataError, match=r"representative runs \(hybrid seed 9\)"):
        evaluate(rows, {}, {"baseline": 0, "hybrid": 9})
    with pytest.raises(DataError, match=r"named for 1 plans \(hybrid\)"):
        evaluate(rows, {}, {"baseline": 0})
    with pytest.raises(DataError, match="has no test clips"):
        evaluate([r for r in rows if r.split != "test"], {}, BOTH)
    with pytest.raises(DataError, match="split is 'dev'"):
        evaluate([replace(rows[0], split="dev")], {}, BOTH)
    with pytest.raises(DataError, match="none named"):
        evaluate([], {}, {})
    with pytest.raises(UsageError, match="may not be named source"):
        evaluate(rows, {"source": {}}, BOTH)
