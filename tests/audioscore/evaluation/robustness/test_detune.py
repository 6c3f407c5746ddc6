import numpy as np
import pytest
from numpy.typing import NDArray

from audioscore.errors import AudioError, UsageError
from audioscore.evaluation.robustness.degradations import detune, voiced_stretch

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
    places = np.flatnonzero(before != after)
    return slice(int(places[0]), int(places[-1]) + 1)


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
    # No click at a splice: no step is much larger than the faster wave's own.
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
    with pytest.raises(UsageError, match=rf"10 to 200 cents.* {cents:g}\b"):
        detune(voice(220.0), RATE, cents)
