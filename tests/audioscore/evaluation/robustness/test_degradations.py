from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import welch

from audioscore.config import ProbeName
from audioscore.data.acoustics import clipping_share
from audioscore.data.audio import Recording
from audioscore.data.audio_checks import probe
from audioscore.errors import AudioError
from audioscore.evaluation.robustness.degradations import (
    DEGRADATIONS,
    add_noise,
    add_silence,
    clip_hard,
    degrade,
    gain,
    low_pass,
    reencode,
    with_headroom,
)

RATE = 24_000
Wave = NDArray[np.float32]


def sung(seconds: float = 3.0, rate: int = RATE, pitch: float = 220.0) -> Wave:
    """A vowel with vibrato and breath, at the level of a recording."""
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(pitch * 2 ** (0.02 * np.sin(2 * np.pi * 5 * time))) / rate
    voice = sum(np.sin(k * phase) / k for k in range(1, 20))
    breath = 0.02 * np.random.default_rng(1).standard_normal(len(time))
    return np.asarray(0.1 * (voice + breath), dtype=np.float32)


def rms(wave: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))


@pytest.mark.parametrize("snr", [30.0, 20.0, 10.0])
def test_noise_has_the_ratio_that_was_asked_for(snr: float) -> None:
    wave = sung()
    noisy = add_noise(wave, snr, seed=4)
    share = float(noisy.astype(np.float64) @ wave / (wave.astype(np.float64) @ wave))  # of the wave in the mix
    noise = noisy - share * wave
    assert 20 * np.log10(rms(share * wave) / rms(noise)) == pytest.approx(snr, abs=0.1)
    assert rms(noisy) == pytest.approx(rms(wave), rel=1e-5)
    power = np.abs(np.fft.rfft(noise)) ** 2
    quarters = [part.mean() for part in np.array_split(power, 4)]
    assert max(quarters) < 1.1 * min(quarters)  # white


def test_clipping_cuts_a_tenth_of_the_samples_at_one_level() -> None:
    wave = sung()
    clipped = clip_hard(wave)
    rail = np.abs(clipped).max()
    assert np.mean(np.abs(clipped) > 0.9999 * rail) == pytest.approx(0.1, abs=0.002)
    assert rms(clipped) == pytest.approx(rms(wave), rel=1e-5)
    # What is cut off is the largest samples, and between the rails only the level differs.
    inside = np.abs(clipped) < 0.99 * rail
    ratio = clipped[inside & (np.abs(wave) > 0.01)] / wave[inside & (np.abs(wave) > 0.01)]
    assert np.ptp(ratio) < 1e-4
    assert np.abs(wave[~inside]).min() > np.quantile(np.abs(wave), 0.88)


@pytest.mark.parametrize("rate", [16_000, 24_000, 44_100])
def test_the_low_pass_ends_at_4_khz(rate: int) -> None:
    noise = np.asarray(0.1 * np.random.default_rng(0).standard_normal(4 * rate), dtype=np.float32)
    filtered = low_pass(noise, rate)
    hertz, passing = welch(filtered, rate, window="blackmanharris", nperseg=4_096)
    given = welch(noise, rate, window="blackmanharris", nperseg=4_096)[1]

    def decibels(low: float, high: float) -> float:
        band = (hertz >= low) & (hertz < high)
        return float(10 * np.log10(passing[band].sum() / given[band].sum()))

    passed = decibels(100, 3_700)
    assert decibels(3_985, 4_015) - passed == pytest.approx(-6, abs=0.5)
    assert decibels(4_300, rate / 2) - passed < -70
    assert abs(decibels(1_000, 1_200) - decibels(3_500, 3_700)) < 0.1
    assert rms(filtered) == pytest.approx(rms(noise), rel=1e-5)
    assert probe(Recording(filtered, rate)).bandwidth_hz < 4_600


def test_the_low_pass_delays_nothing() -> None:
    tone = np.asarray(np.sin(2 * np.pi * 500 * np.arange(RATE) / RATE), dtype=np.float32)
    middle = slice(1_000, -1_000)
    scale = rms(low_pass(tone, RATE)[middle]) / rms(tone[middle])
    np.testing.assert_allclose(low_pass(tone, RATE)[middle], scale * tone[middle], atol=1e-3)


def test_gain_is_exact_and_stays_below_full_scale() -> None:
    wave = with_headroom(np.asarray(sung() / np.abs(sung()).max(), dtype=np.float32))
    assert np.abs(wave).max() == pytest.approx(0.5, abs=1e-6)
    factors: dict[ProbeName, float] = {"gain_up": 10 ** (6 / 20), "gain_down": 10 ** (-6 / 20)}
    for name, factor in factors.items():
        changed = degrade(wave, RATE, name)
        np.testing.assert_allclose(changed, wave * factor, rtol=1e-6)
        assert np.abs(changed).max() < 1
        assert clipping_share(changed) < 0.2
    quiet = sung() * np.float32(0.1)
    assert with_headroom(quiet) is quiet
    assert gain(quiet, 0.0).tolist() == quiet.tolist()


def test_silence_is_one_second_of_nothing() -> None:
    wave = sung()
    longer = add_silence(wave, RATE)
    assert len(longer) == len(wave) + RATE
    np.testing.assert_array_equal(longer[: len(wave)], wave)
    assert not longer[len(wave) :].any()


def test_reencoding_loses_little_and_shifts_nothing() -> None:
    wave = sung()
    again = reencode(wave, RATE)
    assert len(again) == len(wave)
    assert 0 < rms(again - wave) < 0.3 * rms(wave)
    shifts = [float(again[2_000:-2_000] @ wave[2_000 + by : len(wave) - 2_000 + by]) for by in range(-50, 51)]
    assert int(np.argmax(shifts)) == 50  # aligned to the sample


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_every_probe_is_deterministic_and_keeps_level_and_length(name: ProbeName) -> None:
    wave, copy = sung(), sung()
    first = degrade(wave, RATE, name, 5)
    np.testing.assert_array_equal(first, degrade(wave, RATE, name, 5))
    np.testing.assert_array_equal(wave, copy)
    assert first.dtype == np.float32
    assert np.isfinite(first).all()
    assert not np.array_equal(first, wave)
    if name == "trailing_silence":
        return
    assert len(first) == len(wave)
    if not name.startswith("gain"):
        assert 20 * np.log10(rms(first) / rms(wave)) == pytest.approx(0, abs=0.3)


def test_another_seed_is_another_noise_of_the_same_kind() -> None:
    wave = sung()
    assert not np.array_equal(degrade(wave, RATE, "noise_10db", 1), degrade(wave, RATE, "noise_10db", 2))
    # One seed's noise is the same at every ratio: what differs between the probes is the ratio alone.
    noises = []
    for snr in (30.0, 10.0):
        mix = add_noise(wave, snr, 1)
        noises.append(mix - wave * (mix @ wave) / (wave @ wave))
    assert np.corrcoef(np.stack(noises))[0, 1] > 0.99


def test_the_names_are_the_configurations() -> None:
    assert tuple(DEGRADATIONS) == get_args(ProbeName)


@pytest.mark.parametrize("name", DEGRADATIONS)
@pytest.mark.parametrize("samples", [1, 7, 600])
def test_a_very_short_clip(name: ProbeName, samples: int) -> None:
    wave = sung()[100 : 100 + samples]
    if name.startswith("detune") or name == "reencoding":
        with pytest.raises(AudioError, match="voice" if name != "reencoding" else rf"\b{samples} samples"):
            degrade(wave, RATE, name)
    else:
        assert np.isfinite(degrade(wave, RATE, name)).all()


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_silence_and_no_wave_are_errors(name: ProbeName) -> None:
    with pytest.raises(AudioError, match="silent"):
        degrade(np.zeros(RATE, np.float32), RATE, name)
    for wave in (np.zeros(0, np.float32), np.ones((2, 5), np.float32), np.full(5, np.nan, np.float32)):
        with pytest.raises(AudioError, match=r"\[T\]"):
            degrade(wave, RATE, name)


def test_a_degradation_that_cannot_be_made_is_an_error() -> None:
    with pytest.raises(AudioError, match=r"8000 Hz.*4000 Hz"):
        low_pass(sung(rate=8_000), 8_000)
    mostly = np.pad(sung(0.2), (0, 4 * RATE))
    with pytest.raises(AudioError, match="90%"):
        clip_hard(mostly)
    high = np.asarray(np.sin(2 * np.pi * 10_000 * np.arange(RATE) / RATE), dtype=np.float32)
    with pytest.raises(AudioError, match=r"^(?!.*4000 Hz)"):
        low_pass(np.asarray(high * np.hanning(RATE), dtype=np.float32), RATE)
    with pytest.raises(AudioError, match="12345 Hz"):
        degrade(sung(rate=12_345), 12_345, "reencoding")
