import dataclasses
from dataclasses import astuple

import numpy as np
import pytest
from scipy.stats import kstest, spearmanr

from audioscore.demo.melody import cut_phrase, draw_song
from audioscore.demo.performance import (
    CONTROL_HZ,
    TIMBRE,
    Controls,
    Faults,
    draw_faults,
    draw_singer,
    perform,
    timbre_quality,
)

SINGER = draw_singer(0, seed=2, singer_id="s")
PHRASE = cut_phrase(draw_song(0, seed=2, song_id="x"), 0, 5.0)
TONIC = 60.0
CLEAN = Faults(0, 0, 0, 0, 0, 0, 0, wild_vibrato=False)


def sing(seed: int = 0, **faults: float) -> Controls:
    return perform(PHRASE, TONIC, SINGER, dataclasses.replace(CLEAN, **faults), np.random.default_rng(seed))


def written_pitch() -> np.ndarray:
    time = np.arange(5 * CONTROL_HZ) / CONTROL_HZ
    starts = np.array([note.start for note in PHRASE])
    return np.array([TONIC + note.note.pitch for note in PHRASE])[np.searchsorted(starts, time, side="right") - 1]


def off_pitch(**faults: float) -> float:
    """Median distance from the written melody in semitones, mean over eight performances."""
    return float(np.mean([np.median(np.abs(sing(seed, **faults).pitch - written_pitch())) for seed in range(8)]))


def test_curves_have_the_phrase_length_and_are_positive() -> None:
    controls = sing()
    assert controls.pitch.shape == controls.gain.shape == (5 * CONTROL_HZ,)
    assert controls.formants.shape == (5 * CONTROL_HZ, 3)
    assert controls.noise.shape == (4, 5 * CONTROL_HZ)
    assert (controls.gain > 0).all()
    assert (controls.formants > 200).all()
    assert (controls.noise >= 0).all()


def test_a_clean_performance_sings_the_written_notes() -> None:
    assert off_pitch(vibrato=1.0) < 0.1


@pytest.mark.parametrize("fault", ["intonation", "stability"])
def test_pitch_faults_move_pitch_more_the_stronger_they_are(fault: str) -> None:
    distances = [off_pitch(vibrato=1.0, **{fault: strength}) for strength in (0.0, 0.5, 1.0)]
    assert distances[0] < distances[1] < distances[2]
    assert distances[2] > 0.3


def test_vibrato_has_the_singers_rate_and_depth_and_is_missing_or_wild_at_its_worst() -> None:
    none, wild = (sing(vibrato=1.0, wild_vibrato=kind) for kind in (False, True))
    healthy = sing().pitch - none.pitch
    hertz = np.fft.rfftfreq(len(healthy), 1 / CONTROL_HZ)
    assert hertz[np.abs(np.fft.rfft(healthy)).argmax()] == pytest.approx(SINGER.vibrato_rate, abs=0.5)
    assert np.abs(healthy).max() == pytest.approx(SINGER.vibrato_depth, abs=0.05)
    assert np.abs(wild.pitch - none.pitch).max() > SINGER.vibrato_depth + 1.0


def test_timing_faults_move_notes_but_not_the_ends() -> None:
    moved = np.abs(sing(vibrato=1.0, timing=1.0).pitch - sing(vibrato=1.0).pitch) > 0.5
    assert 0.03 < moved.mean() < 0.6
    assert len(sing(timing=1.0).pitch) == 5 * CONTROL_HZ


def test_dynamics_flatten_and_air_and_roughness_rise() -> None:
    def arch(controls: Controls) -> float:
        level = 20 * np.log10(controls.gain)
        return float(np.median(level[400:600]) - np.median(level[:100]))

    assert arch(sing()) > 3.0
    shaped, flat = (np.mean([arch(sing(seed, dynamics=d)) for seed in range(20)]) for d in (0.0, 1.0))
    assert shaped > flat + 3.0
    assert sing(breath=1.0).air > sing().air + 2.0
    assert sing(rough=1.0).rough == pytest.approx(SINGER.rough + 0.5)


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


def test_parameters_are_all_values_of_a_voice() -> None:
    singer = draw_singer(3, seed=1, singer_id="x")
    found = singer.parameters()
    assert found[:2] == (singer.centre, singer.tract)
    assert found[2:7] == singer.shape
    rest = ("bandwidth", "tilt", "ring", "breath", "rough", "glottal", "vibrato_rate", "vibrato_depth", "glide")
    assert found[7:] == tuple(getattr(singer, name) for name in rest)


def severities(quality: float, seed: int) -> np.ndarray:
    return np.array(astuple(draw_faults(quality, np.random.default_rng(seed)))[:-1])


def test_the_ends_are_faultless_and_faulty() -> None:
    assert severities(1.0, 0) == pytest.approx(np.zeros(7))
    assert severities(0.0, 0) == pytest.approx(np.ones(7))


def test_each_fault_falls_as_quality_rises() -> None:
    table = np.array([severities(quality, 5) for quality in np.linspace(0, 1, 9)])
    assert (np.diff(table, axis=0) < 0).all()


def test_the_dominant_fault_differs_from_clip_to_clip() -> None:
    worst = {int(severities(0.5, seed).argmax()) for seed in range(60)}
    assert worst == set(range(7))
    assert np.mean([severities(0.5, seed) for seed in range(60)]) == pytest.approx(0.5, abs=0.05)


def test_levels_have_the_sign_of_the_vibrato_fault() -> None:
    strengths = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    assert Faults(*strengths, wild_vibrato=True).levels() == (*strengths, 0.3)
    assert Faults(*strengths, wild_vibrato=False).levels() == (*strengths, -0.3)
