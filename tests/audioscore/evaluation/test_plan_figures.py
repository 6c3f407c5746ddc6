from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from audioscore.evaluation.held_out import HeldOut, hold_out
from audioscore.evaluation.plan_figures import METRICS, plan_figures, predicted_scores, resampled_ranks
from audioscore.evaluation.predictions import Prediction
from audioscore.evaluation.runs import align_runs

Make = Callable[..., list[Prediction]]


def figures(rows: list[Prediction], resamples: int = 40) -> tuple[dict[str, Any], HeldOut]:
    """Of plan baseline, seed 0."""
    runs = align_runs(rows, {"baseline": 0})
    test, _ = hold_out([row for _, row in sorted(runs["baseline", 0]["test"].items())], resamples, 0.9, 0)
    ranks = resampled_ranks(predicted_scores(runs, "baseline", 0, test), test)
    return plan_figures(runs, "baseline", 0, ranks, test), test


def test_within_source_is_the_mean_over_sources_by_clips_for_every_metric(make_predictions: Make) -> None:
    rows = make_predictions({"baseline": 6.0}, (0, 1, 2))
    found, test = figures(rows)
    human = test.scores
    predicted = np.array([row.predicted for row in sorted(
        (row for row in rows if row.split == "test" and row.seed == 0), key=lambda row: row.clip)])  # fmt: skip
    judges: dict[str, Callable[[Any, Any], float]] = {
        "spearman": lambda x, y: stats.spearmanr(x, y).statistic,
        "kendall": lambda x, y: stats.kendalltau(x, y).statistic,
        "pearson": lambda x, y: stats.pearsonr(x, y).statistic,
        "pairwise_accuracy": lambda x, y: (stats.kendalltau(x, y).statistic + 1) / 2,  # where nothing is tied
        "mae": lambda x, y: np.abs(y - x).mean(),
        "rmse": lambda x, y: np.sqrt(((y - x) ** 2).mean()),
        "bias": lambda x, y: (y - x).mean(),
    }
    ktv = np.array([source == "ktv" for source in test.sources])
    assert list(found["within_source"]) == list(METRICS)
    for name, judge in judges.items():
        parts = [judge(human[part], predicted[part]) for part in (ktv, ~ktv)]
        if name == "pairwise_accuracy" and any(len(np.unique(human[part])) < part.sum() for part in (ktv, ~ktv)):
            continue
        assert found["within_source"][name]["value"] == pytest.approx(np.mean(parts)), name
        assert found["within_source"][name]["lo"] < found["within_source"][name]["hi"]
    assert found["within_source"]["spearman"] == found["spearman_within_source"]
    resampled = []
    for drawn in test.counts:
        total, clips = 0.0, 0
        for part in (ktv, ~ktv):
            x, y = np.repeat(human[part], drawn[part]), np.repeat(predicted[part], drawn[part])
            total, clips = total + len(x) * float(np.sqrt(((y - x) ** 2).mean())) if len(x) else total, clips + len(x)
        resampled.append(total / clips)
    assert found["within_source"]["rmse"]["lo"] == pytest.approx(np.quantile(resampled, 0.05))


def test_the_spread_is_over_training_seeds(make_predictions: Make) -> None:
    found, _ = figures(make_predictions({"baseline": 6.0}, (0, 1, 2)))
    values = [entry["test_spearman"] for entry in found["per_seed"]]
    spread = found["seed_spread"]["test_spearman"]
    assert spread["seeds"] == 3
    assert spread["mean"] == pytest.approx(np.mean(values))
    assert spread["sd"] == pytest.approx(np.std(values, ddof=1))
    assert (spread["min"], spread["max"]) == (min(values), max(values))
    assert spread["no_interval"] == "a spread over training seeds, not over singers"
    assert found["seed_spread"]["val_spearman"]["mean"] != spread["mean"]


def test_one_seed_or_an_undefined_one_has_no_spread_and_says_so(make_predictions: Make) -> None:
    rows = make_predictions({"baseline": 6.0}, (0, 1))
    one, _ = figures([row for row in rows if row.seed == 0])
    assert one["seed_spread"]["test_spearman"]["sd"] is None
    assert one["seed_spread"]["test_spearman"]["no_interval"].endswith("none from 1 seed")
    constant, _ = figures([replace(row, predicted=70.0) if row.seed == 1 else row for row in rows])
    assert constant["seed_spread"]["test_spearman"]["no_interval"].endswith("none from 1 of 2 seeds have a value")


def test_what_is_undefined_says_why(make_predictions: Make) -> None:
    found, _ = figures([replace(row, score=70.0) for row in make_predictions({"baseline": 6.0}, (0,))])
    assert found["spearman"]["no_interval"] == "fewer than 2 different human scores or predictions"
    assert found["pairwise_accuracy"]["no_interval"] == "no two clips differ in human score"
    assert found["pairwise_accuracy_by_gap"]["2-5"]["no_interval"] == "no two human scores are so far apart"
    assert found["within_source"]["kendall"]["no_interval"].startswith("in every source: fewer than 2")
    assert found["undefined_resamples"]["spearman"] == 40
    assert found["mae"]["value"] is not None
