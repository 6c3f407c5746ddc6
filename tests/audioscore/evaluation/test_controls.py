from collections.abc import Callable
from dataclasses import replace

import pytest

from audioscore.data.clips import Clip
from audioscore.evaluation.controls import measured_controls, source_means
from audioscore.evaluation.predictions import Prediction


def test_measured_controls_hold_what_was_measured() -> None:
    clips = [Clip("a.wav", sha256="aa", seconds=3.0, level_db=-20.0, bytes=100), Clip("b.wav", sha256="bb"), Clip("c")]
    assert measured_controls(clips) == {"duration": {"aa": 3.0}, "level": {"aa": -20.0}, "file size": {"aa": 100.0}}


def test_source_means_come_from_outside_the_test_split(make_predictions: Callable[..., list[Prediction]]) -> None:
    rows = make_predictions()
    outside = [r for r in rows if r.split != "test" and r.plan == "baseline" and r.seed == 0]
    ktv = [r.human for r in outside if r.source == "ktv"]
    means = source_means(rows)
    assert len(means) == 48
    assert means[f"{0:064x}"] == pytest.approx(sum(ktv) / len(ktv))
    assert len(set(means.values())) == 2


def test_a_source_only_in_the_test_split_gets_the_overall_mean(
    make_predictions: Callable[..., list[Prediction]],
) -> None:
    rows = [replace(r, source="live") if r.split == "test" else r for r in make_predictions()]
    outside = {r.sha256: r.human for r in rows if r.split != "test"}
    means = set(source_means(rows).values())
    assert len(means) == 1
    assert means.pop() == pytest.approx(sum(outside.values()) / 48)
    assert source_means([r for r in rows if r.split == "test"]) == {}
