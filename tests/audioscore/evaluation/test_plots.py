import numpy as np
import pytest

from audioscore.evaluation import plots
from audioscore.evaluation.plots import agreement, best_epoch, calibration_bins, training_curve
from audioscore.page import figure_html


def test_calibration_bins_are_equally_full() -> None:
    predicted = np.random.default_rng(0).permutation(100).astype(float)
    bins = calibration_bins(predicted + 3, predicted)
    assert bins.shape == (10, 2)
    np.testing.assert_allclose(bins[:, 0], np.arange(4.5, 100, 10))
    np.testing.assert_allclose(bins[:, 1] - bins[:, 0], 3)


@pytest.mark.parametrize(("clips", "bins"), [(1, 1), (9, 1), (10, 2), (49, 9), (5000, 10)])
def test_no_bin_holds_fewer_than_five_clips_unless_there_are_fewer(clips: int, bins: int) -> None:
    assert len(calibration_bins(np.ones(clips), np.arange(clips, dtype=float))) == bins


def test_best_epoch_is_the_first_of_the_best() -> None:
    run = [{"epoch": 1, "val_spearman": 0.1}, {"epoch": 2, "val_spearman": 0.3}, {"epoch": 3, "val_spearman": 0.3}]
    assert best_epoch(run) == 2
    assert best_epoch([{"epoch": 1, "val_spearman": None}]) is None


def test_training_curve_draws_every_seed_and_rings_the_best_epoch() -> None:
    run = [{"epoch": e, "train_loss": 1 / e, "val_spearman": v} for e, v in ((1, None), (2, 0.4), (3, 0.2))]
    figure = training_curve({"hybrid": {0: run, 1: run, 2: []}}, {"hybrid": 1}, "val_spearman", {"hybrid": "#3b82c4"})
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
