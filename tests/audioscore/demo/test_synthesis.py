import dataclasses

import numpy as np
import pytest
from scipy.signal import welch

from audioscore.demo.melody import draw_song
from audioscore.demo.performance import CONTROL_HZ, FORMANTS, Controls, draw_singer
from audioscore.demo.synthesis import RATE, acapella, backing, ktv, master, set_crest, synthesise

SECONDS = 2
SINGER = dataclasses.replace(
    draw_singer(0, seed=2, singer_id="s"), tract=1.0, shape=(1.0,) * 5, rough=0.0, glottal=0.0, ring=0.0, tilt=-6.0
)


def steady(vowel: str = "a", hertz: float = 200.0, air: float = -60.0, rough: float = 0.0) -> Controls:
    frames = SECONDS * CONTROL_HZ
    return Controls(
        pitch=np.full(frames, 69 + 12 * np.log2(hertz / 440)),
        gain=np.ones(frames),
        formants=np.tile(FORMANTS[vowel], (frames, 1)),
        noise=np.zeros((4, frames)),
        air=air,
        rough=rough,
    )


def power(wave: np.ndarray, low: float, high: float) -> float:
    """Power between two frequencies, in dB."""
    hertz, density = welch(wave, RATE, nperseg=8192)
    return float(10 * np.log10(density[(hertz >= low) & (hertz < high)].sum()))


def sing(controls: Controls, **singer: float) -> np.ndarray:
    return synthesise(controls, dataclasses.replace(SINGER, **singer), np.random.default_rng(0))


def test_length_level_and_reproducibility() -> None:
    wave = sing(steady())
    assert wave.shape == (SECONDS * RATE,)
    assert np.sqrt(np.mean(wave**2)) == pytest.approx(1.0, abs=0.01)
    assert np.array_equal(wave, sing(steady()))


@pytest.mark.parametrize("hertz", [110.0, 311.0, 700.0])
def test_energy_is_at_the_harmonics_of_the_pitch(hertz: float) -> None:
    spectrum = np.abs(np.fft.rfft(sing(steady(hertz=hertz))[RATE // 2 : -RATE // 2] * np.hanning(RATE))) ** 2
    bins = np.fft.rfftfreq(RATE, 1 / RATE)
    near = np.abs(bins / hertz - np.round(bins / hertz)) * hertz < 6.0
    assert spectrum[near].sum() / spectrum.sum() > 0.97


@pytest.mark.parametrize(("vowel", "valley"), [("a", 1800.0), ("i", 1300.0), ("u", 1500.0)])
def test_a_vowel_has_energy_at_its_formants(vowel: str, valley: float) -> None:
    wave = sing(steady(vowel, hertz=100.0))
    for formant in FORMANTS[vowel][:2]:
        assert power(wave, formant - 100, formant + 100) > power(wave, valley - 100, valley + 100) + 3.0


def test_timbre_parameters_change_the_spectrum() -> None:
    def brilliance(wave: np.ndarray) -> float:
        return power(wave, 2600, 3200) - power(wave, 200, 1500)

    assert brilliance(sing(steady(), ring=15.0)) > brilliance(sing(steady())) + 10.0
    assert brilliance(sing(steady(), tilt=-4.0)) > brilliance(sing(steady(), tilt=-11.0)) + 10.0
    assert power(sing(steady(), glottal=7.0), 150, 250) > power(sing(steady()), 150, 250) + 1.0


@pytest.mark.parametrize("air", [-30.0, -15.0])
def test_breath_noise_has_the_stated_level(air: float) -> None:
    breath = sing(steady(air=air)) - sing(steady(air=-200.0))
    assert 20 * np.log10(np.sqrt(np.mean(breath**2))) == pytest.approx(air, abs=0.1)


def test_roughness_puts_energy_between_the_harmonics() -> None:
    def between(wave: np.ndarray) -> float:
        return power(wave, 280, 320) - power(wave, 180, 220)

    levels = [between(sing(steady(rough=rough))) for rough in (0.0, 0.4, 0.8)]
    assert levels[0] + 10 < levels[1] < levels[2]


def test_a_fricative_is_high_noise_for_its_time_only() -> None:
    controls = steady()
    controls.noise[0, 100:200] = 0.3
    hiss = sing(controls) - sing(steady())
    assert power(hiss, 5000, 10000) > power(hiss, 100, 3000) + 20
    assert np.abs(hiss[: 98 * 120]).max() < 1e-9


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


def test_ktv_reverberates_after_the_voice_and_acapella_hardly() -> None:
    voice = np.concatenate([np.random.default_rng(1).standard_normal(RATE), np.zeros(RATE)])
    music = np.zeros(2 * RATE)
    waves = [source(voice, music, np.random.default_rng(0)) for source in (ktv, acapella)]
    after = [db(wave[int(1.02 * RATE) : int(1.15 * RATE)]) - db(wave[:RATE]) for wave in waves]
    assert -35 < after[0] < -5
    assert after[1] < -35


def test_ktv_contains_more_of_the_music() -> None:
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


def test_peaks_below_the_crest_are_not_changed() -> None:
    assert set_crest(tone(0.5), 12.0) == pytest.approx(tone(0.5), abs=1e-3)
