import numpy as np
import pytest
from scipy.signal import welch

from audioscore.demo.melody import draw_song
from audioscore.demo.room import acapella, backing, ktv, master, set_crest
from audioscore.demo.voice import RATE

SONG = draw_song(0, seed=1, song_id="x")


def tone(seconds: float, hertz: float = 440.0) -> np.ndarray:
    return np.sqrt(2) * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)


def db(wave: np.ndarray) -> float:
    return float(20 * np.log10(np.sqrt(np.mean(np.asarray(wave, dtype=float) ** 2)) + 1e-12))


def test_the_backing_plays_the_chord_of_its_bar() -> None:
    tonic = 60.0
    music = backing(SONG, 0, tonic, 2 * RATE, np.random.default_rng(0))
    hertz, density = welch(music[: RATE * 3 // 2], RATE, nperseg=RATE)
    root = 440.0 * 2 ** ((48 + SONG.chords[0][0] - 12 - 69) / 12)
    assert abs(hertz[density.argmax()] - root) < 2.0
    assert db(music) == pytest.approx(0.0, abs=1e-6)


def test_ktv_rings_on_after_the_voice_and_acapella_hardly() -> None:
    voice = np.concatenate([np.random.default_rng(1).standard_normal(RATE), np.zeros(RATE)])
    music = np.zeros(2 * RATE)
    waves = [source(voice, music, np.random.default_rng(0)) for source in (ktv, acapella)]
    after = [db(wave[int(1.02 * RATE) : int(1.15 * RATE)]) - db(wave[:RATE]) for wave in waves]
    assert -35 < after[0] < -5
    assert after[1] < -35


def test_ktv_lets_more_of_the_music_through() -> None:
    music = np.random.default_rng(1).standard_normal(2 * RATE)
    rest = np.concatenate([tone(1.5), np.zeros(RATE // 2)])
    levels = [db(source(rest, music, np.random.default_rng(2))[-2400:]) for source in (ktv, acapella)]
    assert levels[0] > levels[1] + 3


@pytest.mark.parametrize("crest", [11.3, 12.5])
@pytest.mark.parametrize("level", [-30.0, -22.0])
def test_master_sets_level_peak_and_silence(level: float, crest: float) -> None:
    rng = np.random.default_rng(0)
    bursts = rng.standard_normal(3 * RATE) * (0.3 + (np.arange(3 * RATE) % RATE < RATE // 5))
    wave = master(bursts, lead=4800, trail=2400, level_db=level, crest_db=crest, rng=rng)
    assert wave.dtype == np.float32
    assert len(wave) == 3 * RATE + 7200
    assert db(wave) == pytest.approx(level, abs=0.02)
    assert 20 * np.log10(np.abs(wave).max()) == pytest.approx(level + crest, abs=0.1)
    assert np.abs(wave).max() < 0.99
    assert db(wave[:4800]) == pytest.approx(db(wave[-2400:]), abs=0.5)
    assert db(wave[:4800]) == pytest.approx(-84.0, abs=0.5)


def test_peaks_below_the_crest_are_left_alone() -> None:
    assert set_crest(tone(0.5), 12.0) == pytest.approx(tone(0.5), abs=1e-3)
