from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from audioscore.evaluation.estimates import HeldOut, hold_out
from audioscore.evaluation.evaluate import METRICS, plan_figures, predicted_scores, resampled_ranks
from audioscore.evaluation.predictions import Prediction, align_runs

Make = Callable[..., list[Prediction]]


def figures(rows: list[Prediction], resamples: int = 40) -> tuple[dict[str, Any], HeldOut]:
    """Of plan baseline, seed 0."""
    runs = align_runs(rows, {"baseline": 0})
    test, _ = hold_out([row for _, row in sorted(runs["baseline", 0]["test"].items())], resamples, 0.9, 0)
    ranks = resampled_ranks(predicted_scores(runs, "baseline", 0, test), test)
    return plan_figures(runs, "baseline", 0, ranks, test), test


def test_within_source_is_resampled_like_the_overall_figure(make_predictions: Make) -> None:
    """The values are compared with scipy in test_report_figures.py."""
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
    assert one["seed_spread"]["test_spearman"]["no_interval"].endswith("1 seed")
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
