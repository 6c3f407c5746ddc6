from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import welch

from audioscore.config import DegradationName
from audioscore.data.acoustics import clipping_share
from audioscore.data.audio import Recording
from audioscore.data.audio_checks import measure_recording
from audioscore.errors import AudioError, UsageError
from audioscore.evaluation.robustness.degradations import (
    DEGRADATIONS,
    add_noise,
    add_silence,
    clip_hard,
    degrade,
    detune,
    gain,
    low_pass,
    reencode,
    voiced_stretch,
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
    # Only the largest samples are limited; the others differ in level only.
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
    assert measure_recording(Recording(filtered, rate)).bandwidth_hz < 4_600


def test_the_low_pass_delays_nothing() -> None:
    tone = np.asarray(np.sin(2 * np.pi * 500 * np.arange(RATE) / RATE), dtype=np.float32)
    middle = slice(1_000, -1_000)
    scale = rms(low_pass(tone, RATE)[middle]) / rms(tone[middle])
    np.testing.assert_allclose(low_pass(tone, RATE)[middle], scale * tone[middle], atol=1e-3)


def test_gain_is_exact_and_stays_below_full_scale() -> None:
    wave = with_headroom(np.asarray(sung() / np.abs(sung()).max(), dtype=np.float32))
    assert np.abs(wave).max() == pytest.approx(0.5, abs=1e-6)
    factors: dict[DegradationName, float] = {"gain_up": 10 ** (6 / 20), "gain_down": 10 ** (-6 / 20)}
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
def test_every_degradation_is_deterministic_and_keeps_level_and_length(name: DegradationName) -> None:
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
    # With one seed, the degradations differ in the noise ratio only.
    noises = []
    for snr in (30.0, 10.0):
        mix = add_noise(wave, snr, 1)
        noises.append(mix - wave * (mix @ wave) / (wave @ wave))
    assert np.corrcoef(np.stack(noises))[0, 1] > 0.99


def test_the_names_are_the_configurations() -> None:
    assert tuple(DEGRADATIONS) == get_args(DegradationName)


@pytest.mark.parametrize("name", DEGRADATIONS)
@pytest.mark.parametrize("samples", [1, 7, 600])
def test_a_very_short_clip(name: DegradationName, samples: int) -> None:
    wave = sung()[100 : 100 + samples]
    if name.startswith("detune") or name == "reencoding":
        with pytest.raises(AudioError, match="voice" if name != "reencoding" else rf"\b{samples} samples"):
            degrade(wave, RATE, name)
    else:
        assert np.isfinite(degrade(wave, RATE, name)).all()


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_silence_and_no_wave_are_errors(name: DegradationName) -> None:
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


RATE = 24_000
NOISE = np.asarray(0.1 * np.random.default_rng(0).standard_normal(4 * RATE), dtype=np.float32)


def voice(pitch: float, seconds: float = 3.0, rate: int = RATE) -> NDArray[np.float32]:
    """A held vowel: harmonics that fall off, below 8 kHz."""
    time = np.arange(round(seconds * rate)) / rate
    wave = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, int(min(12, 8_000 / pitch)) + 1))
    return np.asarray(0.1 * wave, dtype=np.float32)


def pitch_of(wave: NDArray[np.float32], near: float, rate: int = RATE) -> float:
    """The pitch within a third of `near`, by unbiased autocorrelation with a parabola through its peak."""
    spectrum = np.fft.rfft(wave - wave.mean(), 4 * len(wave))
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[: len(wave)] / np.arange(len(wave), 0, -1)
    low, high = int(rate / near * 0.75), int(rate / near * 1.33)
    lag = low + int(np.argmax(correlation[low:high]))
    left, top, right = correlation[lag - 1 : lag + 2]
    return float(rate / (lag + 0.5 * (left - right) / (left - 2 * top + right)))


def changed(before: NDArray[np.float32], after: NDArray[np.float32]) -> slice:
    indices = np.flatnonzero(before != after)
    return slice(int(indices[0]), int(indices[-1]) + 1)


@pytest.mark.parametrize("cents", [25, 50, 100])
@pytest.mark.parametrize("pitch", [98.0, 150.0, 220.0, 440.0, 700.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_stretch_is_so_many_cents_off_and_the_rest_is_untouched(cents: float, pitch: float, seed: int) -> None:
    before = voice(pitch)
    after = detune(before, RATE, cents, seed)
    assert (after.dtype, len(after)) == (np.float32, len(before))
    stretch = changed(before, after)
    assert 0.34 < (stretch.stop - stretch.start) / RATE < 1.06
    inner = after[stretch][RATE // 100 : -RATE // 100]
    wanted = cents if seed == 0 else -cents  # the seeds are chosen for their signs
    assert 1200 * np.log2(pitch_of(inner, pitch) / pitch) == pytest.approx(wanted, abs=2)
    # No click at a splice: no step is much larger than in the wave itself.
    assert np.std(after[stretch]) == pytest.approx(np.std(before[stretch]), rel=0.01)
    assert np.abs(np.diff(after)).max() < 1.1 * np.abs(np.diff(before)).max()


def test_it_stands_where_somebody_sings() -> None:
    rng = np.random.default_rng(3)
    wave = np.asarray(0.2 * rng.standard_normal(6 * RATE), dtype=np.float32)  # loud noise, and a softer voice within
    wave[2 * RATE : 4 * RATE] = voice(220.0, 2.0)
    stretch = changed(wave, detune(wave, RATE, 50))
    assert stretch.start >= 1.8 * RATE
    assert stretch.stop <= 4 * RATE
    assert voiced_stretch(wave, RATE) == pytest.approx(stretch.start, abs=10)


def test_vibrato_and_other_rates_keep_their_shape() -> None:
    rate = 44_100
    time = np.arange(3 * rate) / rate
    phase = 2 * np.pi * np.cumsum(200 * 2 ** (0.05 * np.sin(2 * np.pi * 5.5 * time))) / rate  # 60 cents, 5.5 Hz
    before = np.asarray(0.1 * sum(np.sin(k * phase) / k for k in range(1, 12)), dtype=np.float32)
    after = detune(before, rate, 100)
    stretch = changed(before, after)
    near = pitch_of(before[stretch], 200.0, rate)
    assert 1200 * np.log2(pitch_of(after[stretch], 200.0, rate) / near) == pytest.approx(100, abs=25)
    assert np.abs(np.diff(after)).max() < 1.15 * np.abs(np.diff(before)).max()


def test_the_same_input_gives_the_same_output_and_is_left_alone() -> None:
    wave = voice(180.0)
    copy = wave.copy()
    np.testing.assert_array_equal(detune(wave, RATE, 50, 7), detune(wave, RATE, 50, 7))
    np.testing.assert_array_equal(wave, copy)


@pytest.mark.parametrize("wave", [
    voice(220.0, 1.0), np.zeros(2 * RATE, np.float32), np.zeros(0, np.float32), np.ones(5, np.float32), NOISE],
    ids=["short", "silent", "empty", "five samples", "noise",
])  # fmt: skip
def test_a_recording_without_a_note_is_an_error(wave: NDArray[np.float32]) -> None:
    with pytest.raises(AudioError, match=rf"0\.6 s .*\b{len(wave) / RATE:.2f} s"):
        detune(wave, RATE, 50)


@pytest.mark.parametrize("cents", [0.0, -50.0, 1200.0])
def test_other_intervals_are_refused(cents: float) -> None:
    with pytest.raises(UsageError, match=rf"{cents:g} .*\b10 to 200\b"):
        detune(voice(220.0), RATE, cents)
