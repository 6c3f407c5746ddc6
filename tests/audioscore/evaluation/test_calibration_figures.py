from dataclasses import replace

import numpy as np
import pytest

from audioscore.evaluation.estimates import SLICE_SINGERS, HeldOut, hold_out
from audioscore.evaluation.evaluate import calibration_curve, interval_coverage
from audioscore.evaluation.predictions import Prediction


def unrated(clips: int) -> list[Prediction]:
    return [
        Prediction(f"{n:064x}", f"{n}.wav", "test", "a", None, None, 60.0 + n, "baseline", 0, 0.0, 60.0, None, None)
        for n in range(clips)
    ]


def test_bins_are_equally_full_and_hold_the_means(rows: list[Prediction], test: HeldOut) -> None:
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


def test_a_perfect_model_lies_on_the_diagonal_and_few_clips_make_one_bin(test: HeldOut) -> None:
    for point in calibration_curve(test.scores, test):
        assert point["human"]["value"] == pytest.approx(point["predicted"])
    few, _ = hold_out([replace(row, singer_id="a") for row in unrated(4)], 20, 0.9, 0)
    curve = calibration_curve(few.scores, few)
    assert len(curve) == 1
    assert "4 clips" in curve[0]["human"]["no_interval"]


def test_coverage_counts_the_edges_and_the_clips_with_an_interval(rows: list[Prediction], test: HeldOut) -> None:
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


def test_a_model_without_intervals_has_no_coverage(rows: list[Prediction], test: HeldOut) -> None:
    found = interval_coverage([replace(row, lo=None, hi=None) for row in rows], test)
    assert found.pop("no_interval")
    assert found == {**dict.fromkeys(("share", "lo", "hi", "mean_width")), "clips": 0}
