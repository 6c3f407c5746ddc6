from typing import Any

import numpy as np
import pytest

from audioscore.evaluation.report import plots
from audioscore.evaluation.report.plots import agreement, best_epoch, calibration, training_curve
from audioscore.html import figure_html


def test_calibration_draws_each_bin_with_its_interval_and_leaves_room_for_it() -> None:
    def one(predicted: float, human: float, lo: float | None, hi: float | None) -> dict[str, Any]:
        return {"clips": 5, "predicted": predicted, "human": {"value": human, "lo": lo, "hi": hi}}

    curve = [one(60.0, 62.0, 40.0, 70.0), one(80.0, 79.0, None, None)]
    axes = calibration({"hybrid": curve}, {"hybrid": "#3b82c4"}).axes[0]
    line, interval, diagonal = axes.get_lines()
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([60, 80], [62, 79])
    assert (list(interval.get_xdata()), list(interval.get_ydata())) == ([60, 60], [40, 70])
    assert axes.get_xlim() == axes.get_ylim() == tuple(diagonal.get_xdata())
    assert axes.get_ylim()[0] <= 40


def test_best_epoch_is_the_first_of_the_best() -> None:
    run = [
        {"epoch": 1, "val_spearman_within_source": 0.1},
        {"epoch": 2, "val_spearman_within_source": 0.3},
        {"epoch": 3, "val_spearman_within_source": 0.3},
    ]
    assert (best_epoch(run), best_epoch([{"epoch": 1, "val_spearman_within_source": None}])) == (2, None)


def test_training_curve_draws_every_seed_and_rings_the_best_epoch() -> None:
    run = [
        {"epoch": e, "train_loss": 1 / e, "val_spearman_within_source": v} for e, v in ((1, None), (2, 0.4), (3, 0.2))
    ]
    figure = training_curve(
        {"hybrid": {0: run, 1: run, 2: []}}, {"hybrid": 1}, "val_spearman_within_source", {"hybrid": "#3b82c4"}
    )
    lines = figure.axes[0].get_lines()
    assert [len(np.atleast_1d(line.get_xdata())) for line in lines] == [2, 2, 1]
    assert (lines[2].get_xdata()[0], lines[2].get_ydata()[0]) == (2, 0.4)
    assert lines[1].get_linewidth() > lines[0].get_linewidth()


def test_many_clips_become_one_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.linspace(50, 99, 20)
    clips = scores, scores, np.stack([scores - 5, scores + 5], axis=1), ["ktv"] * 20, {"ktv": "#3b82c4"}
    assert "data:image/png" not in figure_html(agreement(*clips), "")
    monkeypatch.setattr(plots, "MANY_CLIPS", 10)
    assert "data:image/png" in figure_html(agreement(*clips), "")
