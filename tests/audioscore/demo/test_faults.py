from dataclasses import astuple

import numpy as np
import pytest

from audioscore.demo.performance import Faults, draw_faults


def severities(quality: float, seed: int) -> np.ndarray:
    return np.array(astuple(draw_faults(quality, np.random.default_rng(seed)))[:-1])


def test_the_ends_are_faultless_and_faulty() -> None:
    assert severities(1.0, 0) == pytest.approx(np.zeros(7))
    assert severities(0.0, 0) == pytest.approx(np.ones(7))


def test_each_fault_falls_as_quality_rises() -> None:
    table = np.array([severities(quality, 5) for quality in np.linspace(0, 1, 9)])
    assert (np.diff(table, axis=0) < 0).all()


def test_emphasis_differs_from_clip_to_clip() -> None:
    worst = {int(severities(0.5, seed).argmax()) for seed in range(60)}
    assert worst == set(range(7))
    assert np.mean([severities(0.5, seed) for seed in range(60)]) == pytest.approx(0.5, abs=0.05)


def test_levels_tell_which_way_the_vibrato_goes_wrong() -> None:
    strengths = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    assert Faults(*strengths, wild_vibrato=True).levels() == (*strengths, 0.3)
    assert Faults(*strengths, wild_vibrato=False).levels() == (*strengths, -0.3)
