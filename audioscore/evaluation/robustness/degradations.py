"""Degradations for the robustness tests: deterministic changes of a wave, with the expected effect on the score.

All except gain and silence preserve the level, so that a model which depends on loudness alone does not seem to react
to the degradation.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from audioscore.config import DegradationName
from audioscore.data.acoustics import voiced_share
from audioscore.data.audio import Wave, decode, encode
from audioscore.errors import AudioError, UsageError

Array = NDArray[np.float64]

STRETCH_SECONDS = 0.35  # minimum length of the detuned stretch; it is extended to the end of a period
VOICED_SECONDS = 0.6  # minimum length of the voiced stretch
REMAINING_SECONDS = 1.1  # from the start of the stretch to the end of the recording
HOP_SECONDS = 0.1  # between candidate starts
TRIES = 200  # loudest candidates that are checked; limits the time for recordings without a voice
VOICED = 0.8  # minimum share of periodic frames among the loud ones
LOWEST_HZ, HIGHEST_HZ = 70.0, 1_000.0
LONGEST_SECONDS = 0.7  # between splices; at 25 cents, one period of 98 Hz is gained in this time
WINDOW_SECONDS = 0.02  # compared on the two sides of a splice
SIMILAR = 0.9  # share of the best correlation; the shortest lag that reaches it is one period
FADE_SECONDS = 0.005  # cross-fade at a splice
HALF_TAPS = 24  # of the sinc interpolation
SMALLEST_CENTS, LARGEST_CENTS = 10.0, 200.0  # less gains no period in time; more moves formants too far


def detune(wave: Wave, rate: int, cents: float, seed: int = 0) -> Wave:
    """Detune the loudest voiced stretch of a recording, sharp or flat depending on `seed`; keep the rest unchanged.

    Shape: wave [T] at `rate` Hz -> [T].
    Raises: AudioError without a long enough voiced stretch; UsageError for cents outside 10 to 200.
    """
    if not SMALLEST_CENTS <= cents <= LARGEST_CENTS:
        raise UsageError(
            f"cents: {cents:g} is not within {SMALLEST_CENTS:g} to {LARGEST_CENTS:g}. Choose another value."
        )
    sharp = bool(np.random.default_rng(seed).integers(2))
    ratio = 2.0 ** ((cents if sharp else -cents) / 1200)
    start = voiced_stretch(wave, rate)
    source, changed = wave.astype(np.float64), wave.copy()
    fade = max(1, round(FADE_SECONDS * rate))
    ramp = (np.arange(fade) + 0.5) / fade
    position = start
    overlap = source[start : start + fade]  # continuation of the previous segment beyond its end
    while position - start < STRETCH_SECONDS * rate:
        end = position + _segment(source, rate, position, ratio)
        segment = _interpolate(source, position + ratio * np.arange(end - position + fade), 1.0 / max(1.0, ratio))
        segment[:fade] = (1 - ramp) * overlap + ramp * segment[:fade]
        changed[position:end], overlap = segment[: end - position], segment[end - position :]
        position = end
    changed[position : position + fade] = (1 - ramp) * overlap + ramp * source[position : position + fade]
    return changed


def voiced_stretch(wave: Wave, rate: int) -> int:
    """Find the first sample of the loudest voiced stretch, with a margin before and after it.

    Shape: wave [T] at `rate` Hz.
    Raises: AudioError without such a stretch.
    """
    length, lead = round(VOICED_SECONDS * rate), round(rate / LOWEST_HZ) + round(WINDOW_SECONDS * rate)
    starts = np.arange(lead, len(wave) - round(REMAINING_SECONDS * rate) + 1, max(1, round(HOP_SECONDS * rate)))
    sums = np.concatenate([[0.0], np.cumsum(np.square(wave, dtype=np.float64))])
    energies = sums[starts + length] - sums[starts]
    for start in starts[np.argsort(-energies, kind="stable")][:TRIES]:
        if voiced_share(wave[start : start + length], rate) >= VOICED:
            return int(start)
    raise AudioError(
        f"recording: no continuous voice of {VOICED_SECONDS:g} s in {len(wave) / rate:.2f} s. Use one with a long note."
    )


def _segment(source: Array, rate: int, position: int, ratio: float) -> int:
    """Samples from `position` on after which reading at `ratio` is off by one period, so that a splice is inaudible."""
    drift = abs(ratio - 1.0)
    lags = np.arange(round(rate / HIGHEST_HZ), round(min(rate / LOWEST_HZ, LONGEST_SECONDS * rate * drift)) + 1)
    ends = np.round(lags / drift).astype(np.int64)
    half = round(WINDOW_SECONDS * rate / 2)
    around = np.arange(-half, half)
    here = source[(position + ends)[:, None] + around]
    there = source[(position + ends + (lags if ratio > 1 else -lags))[:, None] + around]
    norms = np.sqrt((here**2).sum(axis=1) * (there**2).sum(axis=1))
    similarity = (here * there).sum(axis=1) / np.maximum(norms, 1e-12)
    peaks = np.flatnonzero((similarity[1:-1] >= similarity[:-2]) & (similarity[1:-1] >= similarity[2:])) + 1
    good = peaks[similarity[peaks] >= SIMILAR * similarity.max()]
    if not len(good):
        return int(ends[similarity.argmax()])
    # Interpolate the lag: at 700 Hz and 24 kHz, half a sample for each segment would be an error of 2 cents.
    left, top, right = similarity[good[0] - 1 : good[0] + 2]
    bend = left - 2 * top + right
    between = 0.5 * (left - right) / bend if bend < 0 else 0.0
    return round((float(lags[good[0]]) + between) / drift)


def _interpolate(source: Array, positions: Array, cut: float) -> Array:
    """Interpolate the wave by a windowed sinc; `cut` is the share of the band that is kept.

    Shape: source [T], positions [M] in samples -> [M].
    """
    first = np.floor(positions).astype(np.int64)
    nodes = first[:, None] + np.arange(1 - HALF_TAPS, HALF_TAPS + 1)
    away = positions[:, None] - nodes
    weights = cut * np.sinc(cut * away) * np.cos(np.pi * away / (2 * HALF_TAPS + 2)) ** 2
    made: Array = np.einsum("mt,mt->m", source[np.clip(nodes, 0, len(source) - 1)], weights)
    return made


Expected = Literal["lower", "not higher", "same", "same or a little lower"]

HEADROOM = 0.5  # maximum peak before degrading, so that +6 dB stays below full scale
CLIPPED_SHARE = 0.1  # share of the samples that hard clipping limits
LOW_PASS_HZ = 4_000.0
TRANSITION_HZ, STOP_DB = 400.0, 80.0  # of the low-pass: -6 dB at LOW_PASS_HZ, -80 dB 200 Hz above
SILENCE_SECONDS = 1.0
BIT_RATE = 24_000  # bit/s, of the re-encoding
AAC_FRAME = 1024  # samples
MIN_REMAINING = 1e-3  # share of the level; less would be mostly noise after restoring the level
GAIN_DB = 6.0


@dataclass(frozen=True)
class Degradation:
    """One degradation: its title in reports, the expected effect on the score, and the function.

    `apply` maps a wave [T], its rate in Hz and a seed to a wave, and raises AudioError where that is impossible.
    """

    title: str
    expected: Expected
    apply: Callable[[Wave, int, int], Wave]


def with_headroom(wave: Wave) -> Wave:
    """Attenuate a wave whose peak exceeds HEADROOM. Shape: [T] -> [T].

    >>> with_headroom(np.array([0.25, -1.0], dtype=np.float32)).tolist()
    [0.125, -0.5]
    """
    peak = float(np.abs(wave).max(initial=0.0))
    return wave if peak <= HEADROOM else gain(wave, 20 * np.log10(HEADROOM / peak))


def degrade(wave: Wave, rate: int, name: DegradationName, seed: int = 0) -> Wave:
    """Apply the degradation `name`; the seed determines the noise and the detuned note.

    Shape: wave [T], float32 at `rate` Hz -> [T], longer only for the trailing silence.
    Raises: AudioError where the wave is empty, silent or not finite, or cannot be degraded this way.
    """
    if wave.ndim != 1 or not len(wave) or not np.isfinite(wave).all():
        raise AudioError(f"wave: expected [T] finite samples, got shape {list(wave.shape)}. Pass one recording.")
    if not wave.any():
        raise AudioError("recording: is silent and cannot be degraded. Use another.")
    changed = DEGRADATIONS[name].apply(wave, rate, seed)
    return np.ascontiguousarray(changed, dtype=np.float32)


def add_noise(wave: Wave, snr_db: float, seed: int = 0) -> Wave:
    """Add white noise at a signal-to-noise ratio in dB, and restore the level. Shape: [T] -> [T]."""
    noise = np.random.default_rng(seed).standard_normal(len(wave))
    return _at_level_of(wave, wave + noise * (_rms(wave) / _rms(noise) * 10 ** (-snr_db / 20)))


def clip_hard(wave: Wave) -> Wave:
    """Limit the largest tenth of the samples to one value, and restore the level.

    Shape: [T] -> [T].
    Raises: AudioError where more than nine tenths of the samples are digital silence.
    """
    rail = float(np.quantile(np.abs(wave), 1 - CLIPPED_SHARE))
    if rail == 0:
        raise AudioError(
            f"recording: more than {1 - CLIPPED_SHARE:.0%} of its samples are digital silence. Use another."
        )
    return _at_level_of(wave, np.clip(wave, -rail, rail))


def low_pass(wave: Wave, rate: int, cutoff: float = LOW_PASS_HZ) -> Wave:
    """Remove everything above `cutoff` Hz without delay, and restore the level.

    Shape: [T] -> [T].
    Raises: AudioError where the sampling rate is too low for the cutoff, or the wave has no content below it.
    """
    from scipy.signal import firwin, kaiserord, oaconvolve

    if rate / 2 <= cutoff + TRANSITION_HZ / 2:
        raise AudioError(f"recording: its rate of {rate} Hz leaves nothing above {cutoff:g} Hz to remove. Use another.")
    taps, beta = kaiserord(STOP_DB, TRANSITION_HZ / (rate / 2))
    kernel = firwin(taps | 1, cutoff, window=("kaiser", beta), fs=rate)
    return _at_level_of(wave, oaconvolve(wave.astype(np.float64), kernel, mode="same"))


def gain(wave: Wave, decibels: float) -> Wave:
    """Change the level by a number of decibels. Shape: [T] -> [T].

    >>> gain(np.ones(2, dtype=np.float32), -20).round(6).tolist()
    [0.10000000149011612, 0.10000000149011612]
    """
    return np.asarray(wave * np.float64(10 ** (decibels / 20)), dtype=np.float32)


def add_silence(wave: Wave, rate: int) -> Wave:
    """Append SILENCE_SECONDS of digital silence. Shape: [T] -> [T + rate]."""
    return np.pad(wave, (0, round(SILENCE_SECONDS * rate)))


def reencode(wave: Wave, rate: int, bit_rate: int = BIT_RATE) -> Wave:
    """Encode to AAC at `bit_rate` bit/s and decode again.

    Shape: [T] -> [T].
    Raises: AudioError for a sampling rate that AAC does not support, or less than one AAC frame.
    """
    if len(wave) < AAC_FRAME:
        raise AudioError(f"recording: {len(wave)} samples are less than one AAC frame ({AAC_FRAME}). Use a longer one.")
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "again.m4a"
        try:
            encode(wave, rate, target, bit_rate=bit_rate)
            decoded = decode(target).wave[: len(wave)]
        except AudioError as error:
            raise AudioError(str(error).replace(str(target), "re-encoding")) from error
    return np.pad(decoded, (0, len(wave) - len(decoded)))


def _rms(wave: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))


def _at_level_of(wave: Wave, changed: np.ndarray) -> Wave:
    """Scale `changed` to the level of `wave`. Raises AudioError where almost nothing of it remains."""
    remaining = _rms(changed)
    if remaining <= MIN_REMAINING * _rms(wave):
        raise AudioError("recording: the degradation removes almost all of it. Use another.")
    return np.asarray(changed * (_rms(wave) / remaining), dtype=np.float32)


DEGRADATIONS: Mapping[DegradationName, Degradation] = {
    "noise_30db": Degradation("noise, SNR 30 dB", "not higher", lambda wave, rate, seed: add_noise(wave, 30, seed)),
    "noise_20db": Degradation("noise, SNR 20 dB", "not higher", lambda wave, rate, seed: add_noise(wave, 20, seed)),
    "noise_10db": Degradation("noise, SNR 10 dB", "lower", lambda wave, rate, seed: add_noise(wave, 10, seed)),
    "clipping": Degradation("hard clipping", "lower", lambda wave, rate, seed: clip_hard(wave)),
    "low_pass": Degradation("low-pass at 4 kHz", "lower", lambda wave, rate, seed: low_pass(wave, rate)),
    "detune_25": Degradation(
        "note detuned by 25 cents", "lower", lambda wave, rate, seed: detune(wave, rate, 25, seed)
    ),
    "detune_50": Degradation(
        "note detuned by 50 cents", "lower", lambda wave, rate, seed: detune(wave, rate, 50, seed)
    ),
    "detune_100": Degradation(
        "note detuned by 100 cents", "lower", lambda wave, rate, seed: detune(wave, rate, 100, seed)
    ),
    "gain_up": Degradation("6 dB louder", "same", lambda wave, rate, seed: gain(wave, GAIN_DB)),
    "gain_down": Degradation("6 dB softer", "same", lambda wave, rate, seed: gain(wave, -GAIN_DB)),
    "trailing_silence": Degradation("1 s trailing silence", "same", lambda wave, rate, seed: add_silence(wave, rate)),
    "reencoding": Degradation(
        "AAC at 24 kbit/s", "same or a little lower", lambda wave, rate, seed: reencode(wave, rate)
    ),
}
