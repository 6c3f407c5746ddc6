import dataclasses

import numpy as np
import pytest

from audioscore.demo.melody import cut_phrase, draw_song
from audioscore.demo.performance import CONTROL_HZ, Controls, Faults, draw_singer, perform

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


def test_slips_move_the_notes_but_not_the_ends() -> None:
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
