import dataclasses

import numpy as np
import pytest
from scipy.stats import kstest, spearmanr

from audioscore.demo.performance import TIMBRE, draw_singer, timbre_quality

CHOIR = [draw_singer(index, seed=3, singer_id=f"s{index}") for index in range(64)]


def test_quality_is_uniform_and_unrelated_to_register_or_size() -> None:
    quality = [timbre_quality(singer) for singer in CHOIR]
    assert kstest(quality, "uniform").statistic < 0.06
    for name in ("centre", "tract", "glottal", "vibrato_rate", "glide"):
        assert abs(spearmanr(quality, [getattr(singer, name) for singer in CHOIR]).statistic) < 0.25
    assert sum(singer.centre > 55 for singer in CHOIR) in range(30, 35)


def test_best_and_worst_parameters_give_one_and_zero() -> None:
    best = dataclasses.replace(CHOIR[0], **{name: best for name, (_, best, _) in TIMBRE.items()})
    worst = dataclasses.replace(CHOIR[0], **{name: worst for name, (worst, _, _) in TIMBRE.items()})
    assert timbre_quality(best) == pytest.approx(1.0)
    assert timbre_quality(worst) == pytest.approx(0.0)


@pytest.mark.parametrize("name", TIMBRE)
def test_every_timbre_parameter_follows_quality_and_stays_in_range(name: str) -> None:
    worst, best, _ = TIMBRE[name]
    goodness = [(getattr(singer, name) - worst) / (best - worst) for singer in CHOIR]
    assert min(goodness) > -1e-9
    assert max(goodness) < 1 + 1e-9
    assert spearmanr(goodness, [timbre_quality(singer) for singer in CHOIR]).statistic > 0.6


def test_a_singer_does_not_depend_on_the_others() -> None:
    assert draw_singer(5, seed=3, singer_id="s5") == CHOIR[5]
    assert draw_singer(5, seed=4, singer_id="s5") != CHOIR[5]
    assert np.unique([singer.tract for singer in CHOIR]).size == 64


def test_parameters_are_all_numbers_of_a_voice() -> None:
    singer = draw_singer(3, seed=1, singer_id="x")
    found = singer.parameters()
    assert found[:2] == (singer.centre, singer.tract)
    assert found[2:7] == singer.shape
    rest = ("bandwidth", "tilt", "ring", "breath", "rough", "glottal", "vibrato_rate", "vibrato_depth", "glide")
    assert found[7:] == tuple(getattr(singer, name) for name in rest)
