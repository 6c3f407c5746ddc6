"""Acoustic fingerprints, which find copies of a recording after re-encoding, gain, resampling or a cut at either end.

Two recordings of one song by the same singer have different fingerprints.

Source: J. Haitsma, T. Kalker, A Highly Robust Audio Fingerprinting System (ISMIR 2002): one word per frame, whose bits
are the signs of the changes of energy differences between neighbouring bands. Differences: the hop is longer (25 ms),
energies are smoothed over time after the transform, and silent frames are excluded from every comparison.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audioscore.data.audio import Recording

Words = NDArray[np.uint32]

FINGERPRINT_VERSION = 1  # increase it whenever the same recording would give other words
RATE = 8_000  # Hz: telephones and all codecs keep this band
HOP = 200  # samples, 25 ms: 40 words per second
WINDOW = 512  # samples, 64 ms
MAX_SECONDS = 120.0  # only the start of a longer recording is used: at most 19 kB
BITS = 32
LOW_HZ, HIGH_HZ = 200.0, 3_400.0
SMOOTHING = 15  # frames, 0.375 s: neighbouring words differ little, so a cut between two frames changes few bits
SILENT_BELOW_DB = 40.0  # a frame this far below the loudest ones is silent
SILENCE = 0  # the word of a silent frame

WORD_HZ = RATE / HOP
SHORT_WORDS = 80  # 2 s: shorter recordings must match over their whole length
WHOLE_SHARE = 0.8  # minimum overlap of two short recordings, relative to the longer one
MIN_SHARE = 0.5  # minimum overlap of two long recordings, relative to the shorter one
# Maximum bit error rate. It is 0.04 to 0.18 for copies by codecs at 16 to 64 kb/s, 0.27 to 0.46 for two recordings of
# one singer with one backing track (0.23 if the track is 8 dB louder than the voice), and 0.40 or more for others.
MAX_BIT_ERRORS, MAX_BIT_ERRORS_SHORT = 0.20, 0.16
PART_WORDS = 2_000_000  # sorted at once
OFFSETS = 1 << 14  # more than twice the maximum words of a fingerprint
PAIR_BITS = 24  # of a recording's index: two indices and an offset fit in 62 bits
RUN = 6  # maximum recordings with the same word that each is compared with: bounds the cost of common words


def fingerprint(recording: Recording) -> bytes:
    """Compute the fingerprint of the first two minutes: little-endian words, 160 bytes per second; empty for silence.

    It does not depend on the gain, and is deterministic. Compare fingerprints with `near_duplicates`.
    """
    words = _words(recording)
    return words.astype("<u4").tobytes() if (words != SILENCE).any() else b""


def near_duplicates(fingerprints: Sequence[bytes | None]) -> list[tuple[int, int]]:
    """Return the index pairs (i < j), ascending, of recordings with the same audio.

    If one recording has many copies, not every pair is listed, but all copies are connected by pairs.
    """
    words = [np.frombuffer(one or b"", dtype="<u4").astype(np.uint32) for one in fingerprints]
    found: set[tuple[int, int]] = set()
    for first, second, offset in _candidates(words).tolist():
        if (first, second) not in found and _same(words[first], words[second], offset):
            found.add((first, second))
    return sorted(found)


def _words(recording: Recording) -> Words:
    """Shape: wave [T] -> [ceil(seconds * 40)], one word per hop."""
    from scipy import fft

    start = Recording(recording.wave[: round(MAX_SECONDS * recording.rate)], recording.rate)
    wave = start.at(RATE, "LQ")
    count = -(-len(wave) // HOP)
    padded = np.pad(wave, (WINDOW // 2, WINDOW))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[: count * HOP : HOP]
    if not len(frames):
        return np.zeros(0, dtype=np.uint32)
    spectra = fft.rfft(frames * np.hanning(WINDOW).astype(np.float32), axis=1)
    energies = (spectra.real**2 + spectra.imag**2) @ _bands()  # (frames, bits + 1)
    energies = _smooth(energies)
    between = np.diff(energies, axis=1)
    rising = np.diff(between, axis=0, prepend=between[:1]) > 0  # (frames, bits)
    words = np.packbits(rising, axis=1, bitorder="little").view("<u4")[:, 0].astype(np.uint32)
    total = energies.sum(axis=1)
    loud = np.quantile(total, 0.99) * 10 ** (-SILENT_BELOW_DB / 10)
    return np.where(total > max(float(loud), 1e-12), np.maximum(words, 1), SILENCE).astype(np.uint32)


@cache
def _bands() -> NDArray[np.float32]:
    """Weights of the spectrum's bins in each band: triangles, evenly spaced on the mel scale.

    Shape: -> [WINDOW // 2 + 1, BITS + 1].
    """
    mel_low, mel_high = (2595 * np.log10(1 + hertz / 700) for hertz in (LOW_HZ, HIGH_HZ))
    centres = 700 * (10 ** (np.linspace(mel_low, mel_high, BITS + 3) / 2595) - 1)
    bins = np.arange(WINDOW // 2 + 1)[:, None] * RATE / WINDOW
    rise = (bins - centres[:-2]) / (centres[1:-1] - centres[:-2])
    fall = (centres[2:] - bins) / (centres[2:] - centres[1:-1])
    return np.clip(np.minimum(rise, fall), 0, None).astype(np.float32)


def _smooth(energies: NDArray[Any]) -> NDArray[np.float64]:
    """Energies averaged over SMOOTHING frames with a Hann window.

    Shape: [F, bands] -> [F, bands].
    """
    from scipy.ndimage import convolve1d

    window = np.hanning(SMOOTHING + 2)[1:-1]
    return np.asarray(convolve1d(energies.astype(np.float64), window / window.sum(), axis=0, mode="constant"))


def _candidates(words: Sequence[Words]) -> NDArray[np.int64]:
    """Candidates (first, second, offset): word t of the first recording is word t - offset of the second.

    Shape: -> [C, 3], unique, those with the most shared words first.
    """
    every = np.concatenate([*words, np.zeros(0, np.uint32)])
    owners = np.repeat(np.arange(len(words), dtype=np.int32), [len(one) for one in words])
    frames = np.concatenate([*(np.arange(len(one), dtype=np.int32) for one in words), np.zeros(0, np.int32)])
    parts = len(every) // PART_WORDS + 1
    keys, votes = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for part in range(parts):  # equal words are in the same part, and sorting a part needs little memory
        at = np.flatnonzero((every % np.uint32(parts) == part) & (every != SILENCE))
        at = at[np.argsort(every[at], kind="stable")]
        found, times = np.unique(_shared(every[at], owners[at], frames[at]), return_counts=True)
        keys.append(found)
        votes.append(times)
    key, inverse = np.unique(np.concatenate(keys), return_inverse=True)
    total = np.bincount(inverse, weights=np.concatenate(votes), minlength=len(key))
    pair, offset = np.divmod(key[np.argsort(-total, kind="stable")], OFFSETS)
    return np.stack([pair >> PAIR_BITS, pair & ((1 << PAIR_BITS) - 1), offset - OFFSETS // 2], axis=1)


def _shared(words: Words, owners: NDArray[np.int32], frames: NDArray[np.int32]) -> NDArray[np.int64]:
    """A key per word that two recordings share: both indices and the offset, packed.

    Shape: words, owners, frames [W], sorted by word and then by owner -> [M].
    """
    # Only the first occurrence of a word in a recording counts: a held note repeats its word.
    first = np.ones(len(words), dtype=bool)
    first[1:] = (words[1:] != words[:-1]) | (owners[1:] != owners[:-1])
    words, owners, frames = words[first], owners[first], frames[first]
    keys = [np.zeros(0, dtype=np.int64)]
    for step in range(1, RUN + 1):
        at = np.flatnonzero(words[step:] == words[:-step])
        pair = (owners[at].astype(np.int64) << PAIR_BITS) + owners[at + step]
        keys.append(pair * OFFSETS + (frames[at] - frames[at + step] + OFFSETS // 2))
    return np.concatenate(keys)


def _same(first: Words, second: Words, offset: int) -> bool:
    """Whether two recordings have the same audio, with word t of the first aligned to word t - offset of the second."""
    one, other = first[max(0, offset) :], second[max(0, -offset) :]
    size = min(len(one), len(other))
    shorter, longer = sorted((int(np.count_nonzero(first)), int(np.count_nonzero(second))))
    short = shorter < SHORT_WORDS
    one, other = one[:size], other[:size]
    audible = (one != SILENCE) & (other != SILENCE)
    shared = int(np.count_nonzero(audible))
    if shared < (WHOLE_SHARE * longer if short else MIN_SHARE * shorter):
        return False
    errors = int(np.bitwise_count(one ^ other)[audible].sum(dtype=np.int64)) / (BITS * max(1, shared))
    return errors <= (MAX_BIT_ERRORS_SHORT if short else MAX_BIT_ERRORS)
