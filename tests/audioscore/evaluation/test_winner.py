from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from audioscore.errors import DataError
from audioscore.evaluation.metrics import within_source_spearman
from audioscore.evaluation.predictions import Prediction, align_runs
from audioscore.evaluation.winner import choose_winner

Make = Callable[..., list[Prediction]]
BOTH = {"baseline": 0, "hybrid": 0}


def chosen(rows: list[Prediction], representative: dict[str, int], *cross_validated: str) -> Any:
    return choose_winner(align_runs(rows, representative), representative, cross_validated)


def figure(rows: list[Prediction], plan: str, seed: int, *splits: str) -> float:
    own = [row for row in rows if (row.plan, row.seed) == (plan, seed) and row.split in splits]
    return within_source_spearman([row.human for row in own], [row.raw for row in own], [row.source for row in own])


def test_out_of_fold_predictions_of_train_and_val_decide(make_predictions: Make) -> None:
    rows = make_predictions({"baseline": 9.0, "hybrid": 1.0})
    winner = chosen(rows, BOTH, "baseline", "hybrid")
    assert (winner.plan, winner.best, winner.clips, winner.singers, winner.out_of_fold) == ("hybrid",) * 2 + (
        48,
        12,
        True,
    )
    for plan in BOTH:
        expected = figure(rows, plan, 0, "train", "val")
        assert winner.plans[plan].spearman_within_source == pytest.approx(expected)
    assert winner.plans["baseline"].below_best == pytest.approx(
        figure(rows, "hybrid", 0, "train", "val") - figure(rows, "baseline", 0, "train", "val")
    )
    assert winner.plans["baseline"].standard_error > 0
    assert winner.as_dict()["reason"] == winner.reason
    assert "48 clips of 12 singers" in winner.reason


def test_a_plan_without_folds_is_compared_on_validation_by_its_mean_over_seeds(make_predictions: Make) -> None:
    rows = make_predictions({"baseline": 9.0, "hybrid": 1.0})
    winner = chosen(rows, BOTH, "baseline")
    assert (winner.plan, winner.clips, winner.out_of_fold) == ("hybrid", 24, False)
    mean = np.mean([figure(rows, "hybrid", seed, "val") for seed in (0, 1)])
    assert winner.plans["hybrid"].spearman_within_source == pytest.approx(mean)
    assert winner.plans["baseline"].spearman_within_source == pytest.approx(figure(rows, "baseline", 0, "val"))


def test_a_tie_within_one_standard_error_goes_to_the_simpler_plan(make_predictions: Make) -> None:
    rows = make_predictions({"baseline": 6.0})
    better = [replace(row, plan="hybrid", raw=0.97 * row.raw + 0.03 * row.human / 20) for row in rows]
    winner = chosen([*rows, *better], BOTH, "baseline", "hybrid")
    below = winner.plans["baseline"]
    assert (winner.plan, winner.best) == ("baseline", "hybrid")
    assert 0 < below.below_best <= below.standard_error
    assert f"{below.below_best:.3f}" in winner.reason


def test_points_added_to_a_source_change_nothing(make_predictions: Make) -> None:
    rows = make_predictions({"baseline": 6.0})
    shifted = [replace(row, plan="hybrid", raw=row.raw + 9.0 * (row.source == "acapella")) for row in rows]
    winner = chosen([*rows, *shifted], BOTH, "baseline", "hybrid")
    assert winner.plan == "baseline"
    assert winner.plans["hybrid"] == winner.plans["baseline"] or winner.plans["hybrid"].below_best == 0


def test_only_candidates_win_and_constant_predictions_do_not(make_predictions: Make) -> None:
    rows = make_predictions({"campplus_only": 1.0, "baseline": 9.0, "hybrid": 1.0})
    constant = [replace(row, raw=0.0) if row.plan == "hybrid" else row for row in rows]
    three = {"campplus_only": 0, "baseline": 0, "hybrid": 0}
    winner = chosen(constant, three, *three)
    assert winner.plan == "baseline"
    assert "campplus_only" not in winner.plans
    assert winner.plans["hybrid"].spearman_within_source is None
    with pytest.raises(DataError, match="baseline or hybrid"):
        chosen(make_predictions({"campplus_only": 1.0}), {"campplus_only": 0})
    with pytest.raises(DataError, match="2 plans"):
        chosen([replace(row, raw=0.0) for row in make_predictions()], BOTH, *BOTH)
