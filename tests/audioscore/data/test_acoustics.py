from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soxr
from scipy.signal import butter, resample_poly, sosfilt

from audioscore.data.acoustics import (
    BLOCK_SECONDS,
    FLOOR_DB,
    clipping_share,
    decibels,
    measure_levels,
    measure_spectrum,
    voiced_share,
)
from audioscore.data.audio import Recording, Wave, decode, encode

RATE = 24_000


def bandwidth(wave: Wave, rate: int) -> float:
    return measure_spectrum(wave, rate).bandwidth_hz


def noise(seconds: float = 4.0, rate: int = RATE, seed: int = 0) -> Wave:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate)).astype(np.float32)


def coloured(slope: float) -> Wave:
    """Noise whose power falls by `slope` times 3 dB per octave."""
    bins = np.maximum(1, np.arange(2 * RATE + 1))
    wave = np.fft.irfft(np.fft.rfft(noise()) / bins ** (slope / 2), 4 * RATE)
    return np.asarray(0.1 * wave / wave.std(), dtype=np.float32)


@cache
def sung(pitch: float = 220.0, rate: int = 48_000, seconds: float = 4.0) -> Wave:
    """Harmonics (-9 dB per octave) with vibrato, and breath noise (-3 dB per octave) 35 dB below."""
    t = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * (pitch * t + 0.5 * np.sin(2 * np.pi * 5.5 * t))
    tones = sum(np.sin(k * phase) / k**1.5 for k in range(1, int(0.45 * rate / pitch)))
    bins = np.maximum(200, np.fft.rfftfreq(len(t), 1 / rate))
    breath = np.fft.irfft(np.fft.rfft(noise(seconds, rate)) / np.sqrt(bins), len(t))
    wave = tones / np.std(tones) + 10 ** (-35 / 20) * breath / breath.std()
    return np.asarray(0.1 * wave, dtype=np.float32)


def sixteen_bits(wave: Wave) -> Wave:
    return (np.round(wave * 32_767) / 32_767).astype(np.float32)


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 44_100, 96_000])
def test_white_noise_fills_its_band(rate: int) -> None:
    assert bandwidth(noise(2, rate), rate) == pytest.approx(rate / 2, rel=0.02)


@pytest.mark.parametrize("hertz", [500.0, 3_000.0, 9_000.0])
def test_the_bandwidth_of_a_tone_is_its_frequency(hertz: float) -> None:
    wave = (0.3 * np.sin(2 * np.pi * hertz * np.arange(3 * RATE) / RATE)).astype(np.float32)
    assert bandwidth(wave, RATE) == pytest.approx(hertz, abs=300)


@pytest.mark.parametrize("target", [24_000, 44_100, 48_000])
@pytest.mark.parametrize("gain_db", [0, -20, -30])
def test_an_upsampled_voice_has_the_bandwidth_of_its_original_rate(target: int, gain_db: float) -> None:
    gain = 10 ** (gain_db / 20)
    for source, low in ((8_000, 3_500), (16_000, 7_300)):
        up = soxr.resample(soxr.resample(sung(), 48_000, source), source, target) * gain
        assert low <= bandwidth(sixteen_bits(up.astype(np.float32)), target) <= source / 2 + 100
    if gain_db > -30 and target < 48_000:
        full = soxr.resample(sung(), 48_000, target) * gain
        assert bandwidth(sixteen_bits(full.astype(np.float32)), target) > 9_500


@pytest.mark.parametrize("rate", [24_000, 44_100])
def test_a_lossy_codec_neither_looks_upsampled_nor_hides_upsampling(tmp_path: Path, rate: int) -> None:
    voice = Recording(sung(), 48_000)
    encode(voice.at(rate), rate, tmp_path / "full.m4a", bit_rate=48_000)
    full = decode(tmp_path / "full.m4a")
    assert bandwidth(full.wave, full.rate) > 9_500
    encode(Recording(voice.at(16_000), 16_000).at(rate), rate, tmp_path / "up.m4a", bit_rate=48_000)
    up = decode(tmp_path / "up.m4a")
    # At 44.1 kHz a band of the codec from below 8 kHz to above 9 kHz contains its rounding noise.
    assert bandwidth(up.wave, up.rate) < (8_100 if rate == 24_000 else 9_300)


def test_one_splice_does_not_widen_the_band_but_images_of_a_poor_resampler_do() -> None:
    low = Recording(sung(), 48_000).at(16_000)
    up = Recording(low, 16_000).at(48_000)
    up[100_000] = 0.9
    assert bandwidth(up, 48_000) < 8_100
    assert 8_000 < bandwidth(resample_poly(low, 3, 1).astype(np.float32), 48_000) < 10_000
    assert bandwidth(np.repeat(low, 3), 48_000) > 20_000


def test_hiss_below_a_dull_voice_counts_as_signal() -> None:
    dull = sosfilt(butter(8, 5_000, fs=48_000, output="sos"), sung())
    assert bandwidth((dull + noise(4, 48_000) * 0.01).astype(np.float32), 48_000) > 20_000


@pytest.mark.parametrize("rate", [16_000, 24_000, 48_000])
@pytest.mark.parametrize("snr", [0, 5, 10, 15])
def test_white_noise_gives_its_ratio_to_a_voice_without_pauses(rate: int, snr: float) -> None:
    voice = Recording(sung(), 48_000).at(rate)
    hiss = noise(4, rate)
    mixed = voice + hiss * (voice.std() / hiss.std() * 10 ** (-snr / 20))
    expected = 10 * np.log10(1 + 10 ** (snr / 10))  # loud frames contain the noise, too
    for gain in (1, 0.03):
        measured = measure_spectrum((gain * mixed).astype(np.float32), rate).harmonics_to_noise_db
        assert measured == pytest.approx(expected, abs=2)
    assert measure_spectrum(voice, rate).harmonics_to_noise_db > 25


def test_the_noise_floor_of_a_tone_and_of_silence_is_finite() -> None:
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(3 * RATE) / RATE)).astype(np.float32)
    assert 50 < measure_spectrum(tone, RATE).harmonics_to_noise_db <= -FLOOR_DB
    assert measure_spectrum(np.zeros(RATE, dtype=np.float32), RATE) == (0.0, 0.0)


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.03])
def test_very_short_waves_have_no_bandwidth_and_no_voice(seconds: float) -> None:
    wave = noise(seconds)
    assert bandwidth(wave, RATE) == 0.0
    assert voiced_share(wave, RATE) == 0.0
    assert bandwidth(np.zeros(RATE, dtype=np.float32), RATE) == 0.0
    assert voiced_share(np.zeros(RATE, dtype=np.float32), RATE) == 0.0


@pytest.mark.parametrize("pitch", [65.0, 110.0, 220.0, 440.0, 880.0, 1_050.0])
def test_a_sung_note_is_voiced(pitch: float) -> None:
    assert voiced_share(sung(pitch, seconds=2), 48_000) > 0.9


def test_coloured_noise_and_clicks_are_not_voiced() -> None:
    for slope in (0.0, 1.0, 2.0):
        assert voiced_share(coloured(slope), RATE) < 0.08
    clicks = np.zeros(10 * RATE, dtype=np.float32)
    clicks[np.random.default_rng(0).integers(0, len(clicks), 60)] = 0.8
    assert voiced_share(clicks, RATE) < 0.15


def test_voice_and_noise_in_equal_parts_have_a_voiced_share_of_one_half() -> None:
    voice = Recording(sung(seconds=3), 48_000).at(RATE)
    assert voiced_share(np.concatenate([voice, noise(3)]), RATE) == pytest.approx(0.5, abs=0.06)
    # Quiet noise between phrases does not count.
    assert voiced_share(np.concatenate([voice, 0.01 * noise(3)]), RATE) > 0.9


def test_an_hour_is_measured_on_a_subset_of_frames() -> None:
    wave = np.tile(Recording(sung(seconds=3), 48_000).at(4_000), 1_200)
    assert voiced_share(wave, 4_000) > 0.9
    assert bandwidth(wave, 4_000) == pytest.approx(2_000, abs=250)


def test_decibels_have_a_lower_bound_and_an_empty_wave_is_silent() -> None:
    assert measure_levels(np.zeros(0, dtype=np.float32), 24_000, 0.0) == (FLOOR_DB, 1.0, 0.0)
    np.testing.assert_allclose(decibels(np.array([1.0, 0.1, 0.0])), [0, -10, FLOOR_DB])


@pytest.mark.parametrize("extra", [0, 1, 39, 41])
def test_blocks_give_the_same_level_as_the_whole_wave(extra: int) -> None:
    rate = 2_000
    wave = np.random.default_rng(0).normal(0, 0.1, 2 * int(BLOCK_SECONDS) * rate + extra).astype(np.float32)
    level, silence, _ = measure_levels(wave, rate, 0.0)
    assert level == pytest.approx(10 * np.log10(np.mean(wave.astype(np.float64) ** 2)), abs=1e-9)
    assert silence == 0.0


@pytest.mark.parametrize("snr", [10, 20, 30, 40])
def test_snr_of_tone_bursts_in_noise(snr: float) -> None:
    rate, rng = 24_000, np.random.default_rng(snr)
    noise = rng.normal(0, 0.1 * 10 ** (-snr / 20), 10 * rate)
    burst = np.sqrt(2) * 0.1 * np.sin(2 * np.pi * 200 * np.arange(10 * rate) / rate)
    active = np.arange(10 * rate) // rate % 2  # every other second
    wave = (burst * active + noise).astype(np.float32)
    expected = 10 * np.log10(1 + 10 ** (snr / 10))  # loud frames contain the noise, too
    for variant in (wave, wave / 4, np.concatenate([np.zeros_like(wave), wave])):
        assert measure_levels(variant, rate, 0.0).snr_db == pytest.approx(expected, abs=1)


def test_snr_of_silence_or_without_pauses_is_zero() -> None:
    assert measure_levels(np.zeros(24_000, dtype=np.float32), 24_000, 0.0).snr_db == 0.0
    square = np.tile([0.1, -0.1], 12_000).astype(np.float32)
    assert measure_levels(square, 24_000, 0.0).snr_db == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("wave", "share"),
    [([], 0), ([1, 1], 0), ([1, 1, 1], 1), ([1, 1, 1, 0], 0.75), ([1, 1, -1, -1], 0), ([1, 1, 1, -1, -1, -1], 1)],
)
def test_runs_beyond_one_rail_count(wave: list[float], share: float) -> None:
    assert clipping_share(np.array(wave, dtype=np.float32)) == share
