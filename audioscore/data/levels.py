"""Level, silence, noise and clipping of a wave, measured in pieces for the memory."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from audioscore.data.audio import Wave

FRAME_SECONDS = 0.02
FLOOR_DB = -120.0  # what digital silence reads, since JSON has no -inf; 24-bit audio reaches down to -144
SILENT_DB = -60.0  # a frame below this is silent in any recording
SILENT_BELOW_LOUD_DB = 40.0  # and so is one this far below the recording's loud frames
LOUD_QUANTILE = 0.99  # loud frames: the loudest hundredth, so that one click does not set the level
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
