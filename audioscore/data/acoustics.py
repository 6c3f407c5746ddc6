"""Measure a wave without a model: level, silence, signal-to-noise ratios, clipping, bandwidth and voiced share."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from audioscore.data.audio import Recording, Wave

BLOCK_SECONDS = 60.0  # long recordings are processed in blocks, to bound memory
LOUD_QUANTILE = 0.99  # the level of a recording's loud frames: their loudest 1 %, so that one click does not set it
SILENT_DB = -60.0  # relative to full scale: a frame below this is silent
FLOOR_DB = -120.0  # the level of digital silence, since JSON has no -inf; 24-bit audio reaches -144

LEVEL_FRAME_SECONDS = 0.02
SILENT_BELOW_LOUD_DB = 40.0  # a frame this far below the loud frames is silent, too
MUTE_DB = -90.0  # half a step of 16 bits (2^-15 of full scale): a frame below was muted, and contains no noise
NOISE_QUANTILE, SIGNAL_QUANTILE = 0.05, 0.95  # of the frames that were not muted

# -0.9 dBFS: lame scales by 0.95, and lossy codecs make clipped peaks ripple by a few per cent. The disadvantage: a pure
# tone at full scale has a clipping share of 0.29, which no voice approaches.
RAIL = 0.9
RAIL_RUN = 3  # samples; an unclipped peak seldom stays above RAIL that long

LOUD_DB = 30.0  # for bandwidth and voiced share, a frame is loud down to this far below the loud frames
BAND_FRAME_SECONDS = 0.04
BAND_FRAMES = 400  # maximum number of frames, evenly spaced: a long recording costs no more than one of 16 s
BAND_HZ = 125.0  # resolution of the spectrum
# The level that 2 % of the frames exceed in a band: the highest frequencies of a voice are in its consonants, which are
# few, and lossy codecs keep them in few frames; but the click of a splice, with all frequencies, is only one frame.
BAND_QUANTILE = 0.98
RANGE_DB = 70.0  # bands this far below the loudest are empty: resamplers leave images there
# Rounding to 16 bits leaves white noise of -98 dBFS, -142 dBFS/Hz at 48 kHz; even with 18 dB of later gain it is below
# the hiss of a quiet microphone. If the top of the spectrum is below this level, it is the noise floor.
ROUNDING_DB_PER_HZ = -123.0
ABOVE_FLOOR_DB = 10.0
TOP_SHARE = 0.08  # share of the spectrum that counts as its top
# The noise floor: what remains of the spectrum between the harmonics and between the notes. A tenth of the frames and a
# quarter of the bins around are below it; a tenth of the powers of noise is below NOISE_SHARE of their mean.
FLOOR_FRAMES, FLOOR_BINS, FLOOR_HZ = 0.1, 0.25, 500.0
NOISE_SHARE = 0.105  # -ln(0.9): these powers are exponentially distributed

VOICE_RATE = 4_000  # Hz: half of it contains the first harmonics, and higher frequencies are mostly breath
VOICE_FRAME = 192  # samples, 48 ms: nearly three periods of the lowest pitch
VOICE_FFT = 256  # at least a frame and the longest lag, so that the correlation does not wrap
VOICE_FRAMES = 1_200  # maximum number of frames, evenly spaced
LOWEST_HZ, HIGHEST_HZ = 60.0, 1_100.0  # pitches of singing voices
PRE_EMPHASIS = 0.9  # flattens a falling spectrum; without it, low rumble looks periodic
PERIODIC = 0.5  # minimum correlation of a periodic frame: noise of this length and band reaches 0.4


class Levels(NamedTuple):
    """RMS in dB relative to full scale, the share of 20 ms frames that are silent, and an estimate of the SNR in dB."""

    level_db: float
    silence_share: float
    snr_db: float


def measure_levels(wave: Wave, rate: int, mean: float) -> Levels:
    """Measure level, silence and signal-to-noise ratio of a wave about its `mean`.

    The SNR is a blind estimate, the difference between loud and quiet frames: it is too low for a recording without
    pauses, whose quiet frames contain singing, and too high if the pauses were gated.

    Shape: wave [T] at `rate` Hz; an empty wave gives FLOOR_DB, 1 and 0.
    """
    size = max(1, round(LEVEL_FRAME_SECONDS * rate))
    sums = _frame_sums(wave, size, mean, rate)
    rest = _centred(wave[len(sums) * size :], mean)
    total = float(sums.sum()) + float(np.square(rest).sum())
    level = decibels(np.array([total / max(1, len(wave))]))
    frames = decibels(sums / size) if len(sums) else level
    loud = float(np.quantile(frames, LOUD_QUANTILE))
    silent = float((frames < max(SILENT_DB, loud - SILENT_BELOW_LOUD_DB)).mean())
    return Levels(float(level[0]), silent, _snr(frames))


def clipping_share(wave: Wave) -> float:
    """Return the share of samples in runs of at least RAIL_RUN samples beyond RAIL, positive and negative separately.

    Runs are counted, not samples, since single samples near full scale are normal in a loud recording.
    """
    clipped = np.flatnonzero((wave >= RAIL) | (wave <= -RAIL))
    if not len(clipped):
        return 0.0
    breaks = np.flatnonzero((np.diff(clipped) > 1) | (np.diff(wave[clipped] > 0))) + 1
    lengths = np.diff(np.concatenate([[0], breaks, [len(clipped)]]))
    return float(lengths[lengths >= RAIL_RUN].sum() / len(wave))


class Spectrum(NamedTuple):
    """The upper end of the occupied spectrum in Hz, and the level of the loud frames over the noise floor in dB."""

    bandwidth_hz: float
    harmonics_to_noise_db: float


def measure_spectrum(wave: Wave, rate: int) -> Spectrum:
    """Measure the spectrum of the loud frames of a wave.

    The bandwidth reveals an upsampled recording: one made at 16 kHz gives 8000 or less at any later sample rate, and a
    full spectrum gives rate / 2. The harmonics-to-noise ratio needs no pauses, in contrast to the SNR of `Levels`:
    white noise gives its signal-to-noise ratio within 2 dB up to 15 dB. Silence gives 0 and 0.

    Shape: wave [T] at `rate` Hz.
    """
    size = 2 * max(8, round(BAND_FRAME_SECONDS * rate / 2))
    density = _power_density(wave, rate, size)
    if not len(density):
        return Spectrum(0.0, 0.0)
    return Spectrum(_bandwidth(_band_levels(density, rate, size), rate), _harmonics_to_noise(density, rate, size))


def _harmonics_to_noise(density: NDArray[np.float32], rate: int, size: int) -> float:
    """Shape: density [F, bins] of frames of `size` samples."""
    quiet = np.partition(density, rank := int(FLOOR_FRAMES * (len(density) - 1)), axis=0)[rank]
    width = min(len(quiet), max(1, round(FLOOR_HZ * size / rate)))
    floor = np.quantile(quiet[: len(quiet) // width * width].reshape(-1, width), FLOOR_BINS, axis=1).mean()
    return min(-FLOOR_DB, float(decibels(np.array([density.mean() / max(floor / NOISE_SHARE, 1e-30)]))[0]))


def _bandwidth(levels: NDArray[np.float64], rate: int) -> float:
    """Shape: levels [bands] in dB."""
    floor = float(np.median(levels[-max(1, round(TOP_SHARE * len(levels))) :]))
    threshold = float(levels.max()) - RANGE_DB
    if floor < ROUNDING_DB_PER_HZ:
        threshold = max(threshold, floor + ABOVE_FLOOR_DB)
    occupied = np.flatnonzero(levels > threshold)
    return min(rate / 2, float(occupied[-1] + 1) * rate / 2 / len(levels)) if len(occupied) else 0.0


def voiced_share(wave: Wave, rate: int) -> float:
    """Return the share of loud frames that are periodic at vocal pitches, 60 to 1100 Hz; 0 if no frame is loud.

    Sung and spoken vowels are periodic; noise, clicks and rustling are not. A flute or a violin is as periodic as a
    voice, so a low share means that the recording has no singing, but a high share does not prove that it has.

    Shape: wave [T] at `rate` Hz.

    Source: normalised autocorrelation of a windowed frame over that of its window, as in P. Boersma, Accurate
    short-term analysis of the fundamental frequency (1993).
    """
    from scipy import fft

    frames = _loud_frames(_decimated(wave, rate), VOICE_FRAME, VOICE_FRAMES)
    if not len(frames):
        return 0.0
    window = np.hanning(VOICE_FRAME).astype(np.float32)
    spectra = fft.rfft(frames * window, VOICE_FFT, axis=1)
    lags = slice(int(VOICE_RATE / HIGHEST_HZ), int(VOICE_RATE / LOWEST_HZ) + 1)
    correlation = fft.irfft(spectra.real**2 + spectra.imag**2, VOICE_FFT, axis=1)
    of_window = fft.irfft(np.abs(fft.rfft(window, VOICE_FFT)) ** 2, VOICE_FFT)
    best = (correlation[:, lags] / of_window[lags]).max(axis=1) * of_window[0]
    return float((best > PERIODIC * np.maximum(correlation[:, 0], 1e-20)).mean())


def decibels(powers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert powers to dB, at least FLOOR_DB."""
    return 10 * np.log10(np.maximum(powers, 10 ** (FLOOR_DB / 10)))


def _snr(frames: NDArray[np.float64]) -> float:
    """Level of loud frames minus level of quiet frames, in dB; 0 if all are muted. Shape: [F], in dB."""
    audible = frames[frames >= MUTE_DB]
    if not len(audible):
        return 0.0
    quiet, loud = np.quantile(audible, [NOISE_QUANTILE, SIGNAL_QUANTILE])
    return float(loud - quiet)


def _frame_sums(wave: Wave, size: int, mean: float, rate: int) -> NDArray[np.float64]:
    """Sum of squares about `mean` of each whole frame.

    Shape: wave [T] -> [T // size].
    """
    block = size * max(1, round(BLOCK_SECONDS * rate / size))
    whole = len(wave) // size * size
    sums = [np.zeros(0)]
    for start in range(0, whole, block):
        frames = _centred(wave[start : min(start + block, whole)], mean).reshape(-1, size)
        sums.append(np.einsum("ft,ft->f", frames, frames))
    return np.concatenate(sums)


def _centred(wave: Wave, mean: float) -> NDArray[np.float64]:
    return wave.astype(np.float64) - mean


def _power_density(wave: Wave, rate: int, size: int) -> NDArray[np.float32]:
    """Power spectral density of the loud frames.

    Shape: wave [T] -> [F, size / 2 + 1].
    """
    from scipy import fft

    frames = _loud_frames(wave, size, BAND_FRAMES)
    # Blackman: the edges of a frame must not reach 80 dB below a loud low note.
    window = np.blackman(size).astype(np.float32)
    spectra = fft.rfft(frames * window, axis=1) if len(frames) else np.zeros((0, size // 2 + 1), dtype=np.complex64)
    density = 2 * (spectra.real**2 + spectra.imag**2) / (rate * float(np.square(window).sum()))
    return np.asarray(density)


def _band_levels(density: NDArray[np.float32], rate: int, size: int) -> NDArray[np.float64]:
    """Level of each band, dB relative to full scale per Hz.

    Shape: density [F, bins] of frames of `size` samples -> [bands], from 0 Hz to half the rate.
    """
    width = max(1, round(BAND_HZ * size / rate))
    bins = density.shape[1] // width * width
    bands = np.sort(density[:, :bins].reshape(len(density), -1, width).mean(axis=2), axis=0)
    exceeded = bands[int(BAND_QUANTILE * (len(bands) - 1))]
    return np.asarray(10 * np.log10(exceeded + 1e-30), dtype=np.float64)


def _decimated(wave: Wave, rate: int) -> Wave:
    """The wave at VOICE_RATE with pre-emphasis, computed in blocks.

    Shape: [T] at `rate` Hz -> [T * VOICE_RATE / rate].
    """
    size = max(1, round(BLOCK_SECONDS * rate))
    blocks = [Recording(wave[start : start + size], rate).at(VOICE_RATE, "QQ") for start in range(0, len(wave), size)]
    low = np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.float32)
    return np.asarray(low[1:] - PRE_EMPHASIS * low[:-1], dtype=np.float32)


def _loud_frames(wave: Wave, size: int, most: int) -> NDArray[np.float32]:
    """The loud ones among at most `most` evenly spaced frames of `size` samples, without overlap or mean.

    Shape: wave [T] -> [F, size].
    """
    count = len(wave) // size
    frames = wave[: count * size].reshape(count, size)[_evenly_spaced(count, most)]
    frames = frames - frames.mean(axis=1, keepdims=True)
    return np.asarray(frames[_is_loud(np.einsum("ft,ft->f", frames, frames) / size)])


def _is_loud(powers: NDArray[np.float32]) -> NDArray[np.bool_]:
    if not len(powers):
        return np.zeros(0, dtype=bool)
    loud = float(np.quantile(powers, LOUD_QUANTILE)) * 10 ** (-LOUD_DB / 10)
    return np.asarray(powers > max(loud, 10 ** (SILENT_DB / 10)))


def _evenly_spaced(count: int, most: int) -> NDArray[np.intp]:
    """At most `most` of the indices 0 to count - 1, evenly spaced.

    >>> _evenly_spaced(3, 5).tolist(), _evenly_spaced(10, 4).tolist()
    ([0, 1, 2], [0, 2, 5, 7])
    """
    return np.arange(min(count, most)) * count // max(1, min(count, most))
