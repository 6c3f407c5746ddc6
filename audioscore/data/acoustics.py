"""What a recording's spectrum betrays: how far up it carries anything, and how much of it is periodic as a voice is."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from audioscore.data.audio import Recording, Wave

BLOCK_SECONDS = 60.0  # long recordings are measured in pieces, for the memory
LOUD_DB = 30.0  # a frame counts as loud down to this far below the recording's loud frames
LOUD_QUANTILE = 0.99  # those are its loudest hundredth, so that one click does not set the level
SILENT_DB = -60.0  # relative to full scale: no frame below this is loud

BAND_FRAME_SECONDS = 0.04
BAND_FRAMES = 400  # as many as are looked at, spread evenly: a long recording costs no more than one of 16 s
BAND_HZ = 125.0  # width of the bands in which the spectrum is read
# In each band the level that one frame in fifty exceeds: consonants carry a voice's highest frequencies and are few,
# and lossy codecs keep those in few frames; but a splice's click, which carries all of them, is one frame.
BAND_QUANTILE = 0.98
RANGE_DB = 70.0  # below the loudest band nothing counts: resamplers leave images there
# Rounding to 16 bits leaves white noise of -98 dBFS, -142 dBFS/Hz at 48 kHz; as much as 18 dB of gain since then is
# still told from a quiet microphone's hiss. Where the top of the spectrum is as low as that, it is the floor.
ROUNDING_DB_PER_HZ = -123.0
ABOVE_FLOOR_DB = 10.0
TOP_SHARE = 0.08  # of the spectrum, read as its top

VOICE_RATE = 4_000  # Hz: below its half lie the first harmonics, above it mostly breath
VOICE_FRAME = 192  # samples, 48 ms: nearly three periods of the lowest pitch
VOICE_FFT = 256  # longer than a frame by the longest lag, or the correlation would wrap
VOICE_FRAMES = 1_200  # as many as are looked at, spread evenly
LOWEST_HZ, HIGHEST_HZ = 60.0, 1_100.0  # pitches of singing voices
PRE_EMPHASIS = 0.9  # flattens a spectrum that falls, or any low rumble would look periodic
PERIODIC = 0.5  # correlation from which a frame is periodic: noise of this length and band reaches 0.4


def bandwidth(wave: Wave, rate: int) -> float:
    """The frequency in Hz up to which the recording carries something: 8000 or less for one made at 16 kHz, whatever
    rate it was brought to afterwards; rate / 2 where it is full, 0 where it is silent.

    Shape: wave [T] at `rate` Hz.
    """
    size = 2 * max(8, round(BAND_FRAME_SECONDS * rate / 2))
    levels = _band_levels(wave, rate, size)
    if not len(levels):
        return 0.0
    floor = float(np.median(levels[-max(1, round(TOP_SHARE * len(levels))) :]))
    least = float(levels.max()) - RANGE_DB
    if floor < ROUNDING_DB_PER_HZ:
        least = max(least, floor + ABOVE_FLOOR_DB)
    carrying = np.flatnonzero(levels > least)
    return min(rate / 2, float(carrying[-1] + 1) * rate / 2 / len(levels)) if len(carrying) else 0.0


def voiced_share(wave: Wave, rate: int) -> float:
    """Share of the loud frames that are periodic at a voice's pitches, 60 to 1100 Hz; 0 where nothing is loud.

    Sung and spoken vowels are; noise, clicks and rustling are not. A flute or a violin is as periodic as a voice: this
    cannot tell them apart, so a low share says that nobody sings, and a high one does not say that somebody does.

    Shape: wave [T] at `rate` Hz. Source: normalised autocorrelation of a windowed frame over that of its window, as in
    P. Boersma, Accurate short-term analysis of the fundamental frequency (1993).
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


def _band_levels(wave: Wave, rate: int, size: int) -> NDArray[np.float64]:
    """Level of each band over the loud frames, dB relative to full scale per Hz.

    Shape: wave [T] -> [bands], from 0 Hz to half the rate; [0] where no frame is loud.
    """
    from scipy import fft

    frames = _loud_frames(wave, size, BAND_FRAMES)
    if not len(frames):
        return np.zeros(0)
    # Blackman: a frame's own edges must not reach 80 dB below a loud low note.
    window = np.blackman(size).astype(np.float32)
    spectra = fft.rfft(frames * window, axis=1)
    density = 2 * (spectra.real**2 + spectra.imag**2) / (rate * float(np.square(window).sum()))  # (frames, bins)
    width = max(1, round(BAND_HZ * size / rate))
    bins = density.shape[1] // width * width
    bands = np.sort(density[:, :bins].reshape(len(frames), -1, width).mean(axis=2), axis=0)
    exceeded = bands[int(BAND_QUANTILE * (len(bands) - 1))]
    return np.asarray(10 * np.log10(exceeded + 1e-30), dtype=np.float64)


def _decimated(wave: Wave, rate: int) -> Wave:
    """The wave at VOICE_RATE, pre-emphasised, in pieces for the memory.

    Shape: [T] at `rate` Hz -> [T * VOICE_RATE / rate].
    """
    size = max(1, round(BLOCK_SECONDS * rate))
    pieces = [Recording(wave[start : start + size], rate).at(VOICE_RATE, "QQ") for start in range(0, len(wave), size)]
    low = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.float32)
    return np.asarray(low[1:] - PRE_EMPHASIS * low[:-1], dtype=np.float32)


def _loud_frames(wave: Wave, size: int, most: int) -> NDArray[np.float32]:
    """At most `most` frames of `size` samples, none overlapping, each about its mean, without those that are not loud.

    Shape: wave [T] -> [F, size].
    """
    count = len(wave) // size
    frames = wave[: count * size].reshape(count, size)[_spread(count, most)]
    frames = frames - frames.mean(axis=1, keepdims=True)
    return np.asarray(frames[_is_loud(np.einsum("ft,ft->f", frames, frames) / size)])


def _is_loud(powers: NDArray[np.float32]) -> NDArray[np.bool_]:
    if not len(powers):
        return np.zeros(0, dtype=bool)
    loud = float(np.quantile(powers, LOUD_QUANTILE)) * 10 ** (-LOUD_DB / 10)
    return np.asarray(powers > max(loud, 10 ** (SILENT_DB / 10)))


def _spread(count: int, most: int) -> NDArray[np.intp]:
    """At most `most` of the numbers 0 to count - 1, evenly spread.

    >>> _spread(3, 5).tolist(), _spread(10, 4).tolist()
    ([0, 1, 2], [0, 2, 5, 7])
    """
    return np.arange(min(count, most)) * count // max(1, min(count, most))


FRAME_SECONDS = 0.02
FLOOR_DB = -120.0  # what digital silence reads, since JSON has no -inf; 24-bit audio reaches down to -144

SILENT_BELOW_LOUD_DB = 40.0  # and so is one this far below the recording's loud frames

MUTE_DB = -90.0  # half a step of 16 bits (2^-15 of full scale): a frame below was muted, and tells no noise
NOISE_QUANTILE, SIGNAL_QUANTILE = 0.05, 0.95  # of the frames that were not muted
# -0.9 dBFS: lame scales by 0.95, and lossy codecs let flattened tops ripple by a few per cent. The price: a pure tone
# at full scale reads 0.29, which no voice comes near.
RAIL = 0.9
RAIL_RUN = 3  # samples; a clean peak seldom stays at the rail that long
LEVEL_BLOCK_SECONDS = 60


class Levels(NamedTuple):
    """RMS in dB relative to full scale, the share of 20 ms frames that are silent, and an estimate of the SNR in dB."""

    level_db: float
    silence_share: float
    snr_db: float


def measure_levels(wave: Wave, rate: int, mean: float) -> Levels:
    """Level and silence of a wave about its `mean`, and its signal-to-noise ratio.

    The SNR is estimated blindly, as what lies between loud and quiet frames: a recording without pauses, whose quiet
    frames are sung, reads lower than it is, and one whose pauses were gated higher.

    Shape: wave [T] at `rate` Hz; of none, the floor, 1 and 0.
    """
    size = max(1, round(FRAME_SECONDS * rate))
    sums = _frame_sums(wave, size, mean, rate)
    rest = _centred(wave[len(sums) * size :], mean)
    total = float(sums.sum()) + float(np.square(rest).sum())
    level = decibels(np.array([total / max(1, len(wave))]))
    frames = decibels(sums / size) if len(sums) else level
    loud = float(np.quantile(frames, LOUD_QUANTILE))
    silent = float((frames < max(SILENT_DB, loud - SILENT_BELOW_LOUD_DB)).mean())
    return Levels(float(level[0]), silent, _snr(frames))


def _snr(frames: NDArray[np.float64]) -> float:
    """Levels of loud frames less those of quiet ones, in dB; 0 where all are muted. Shape: [F], in dB."""
    heard = frames[frames >= MUTE_DB]
    if not len(heard):
        return 0.0
    quiet, loud = np.quantile(heard, [NOISE_QUANTILE, SIGNAL_QUANTILE])
    return float(loud - quiet)


def clipping_share(wave: Wave) -> float:
    """Share of the samples within runs of RAIL_RUN or more at RAIL or beyond.

    The positive and the negative rail count as different runs, or a square wave would be one run.
    """
    at = np.flatnonzero((wave >= RAIL) | (wave <= -RAIL))
    if not len(at):
        return 0.0
    breaks = np.flatnonzero((np.diff(at) > 1) | (np.diff(wave[at] > 0))) + 1
    lengths = np.diff(np.concatenate([[0], breaks, [len(at)]]))
    return float(lengths[lengths >= RAIL_RUN].sum() / len(wave))


def decibels(powers: NDArray[np.float64]) -> NDArray[np.float64]:
    """10 log10, at least FLOOR_DB."""
    return 10 * np.log10(np.maximum(powers, 10 ** (FLOOR_DB / 10)))


def _frame_sums(wave: Wave, size: int, mean: float, rate: int) -> NDArray[np.float64]:
    """Sum of squares about `mean` of each whole frame.

    Shape: wave [T] -> [T // size].
    """
    block = size * max(1, round(LEVEL_BLOCK_SECONDS * rate / size))
    whole = len(wave) // size * size
    sums = [np.zeros(0)]
    for start in range(0, whole, block):
        frames = _centred(wave[start : min(start + block, whole)], mean).reshape(-1, size)
        sums.append(np.einsum("ft,ft->f", frames, frames))
    return np.concatenate(sums)


def _centred(wave: Wave, mean: float) -> NDArray[np.float64]:
    return wave.astype(np.float64) - mean
