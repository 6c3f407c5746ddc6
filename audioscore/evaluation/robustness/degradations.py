"""What is done to held-out recordings to see which way a model's score moves: faults, and changes that are none.

Every change is a function from a wave to a wave that gives the same samples for the same input. All but the gain and
the silence keep the level, so that a model which hears loudness alone does not pass for one that hears the fault.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from audioscore.config import ProbeName
from audioscore.data.acoustics import voiced_share
from audioscore.data.audio import Wave, decode, encode
from audioscore.errors import AudioError, UsageError

Array = NDArray[np.float64]

STRETCH_SECONDS = 0.35  # at least so much is detuned, and then up to the end of the period it stands in
VOICED_SECONDS = 0.6  # in which a voice must be heard
ROOM_SECONDS = 1.1  # from the start of the stretch to the end of the recording
HOP_SECONDS = 0.1  # between the starts that are tried
TRIES = 200  # of the loudest starts: a recording without a voice is not searched for minutes
VOICED = 0.8  # share of the loud frames that are periodic
LOWEST_HZ, HIGHEST_HZ = 70.0, 1_000.0
LONGEST_SECONDS = 0.7  # without a splice: a quarter of a semitone gains one period of 98 Hz in this time
WINDOW_SECONDS = 0.02  # over which the two sides of a splice must be alike
ALIKE = 0.9  # of the best likeness; the shortest step that reaches it is a period, and not two
FADE_SECONDS = 0.005  # from one side of a splice to the other
HALF_TAPS = 24  # of the interpolating sinc
SMALLEST_CENTS, LARGEST_CENTS = 10.0, 200.0  # below, no period is gained in time; above, formants move too far


def detune(wave: Wave, rate: int, cents: float, seed: int = 0) -> Wave:
    """The recording with its loudest voiced stretch detuned, sharp or flat as `seed` decides; the rest is as it was.

    Shape: wave [T] at `rate` Hz -> [T]. Raises AudioError where nobody sings for long enough, UsageError for cents that
    are not 10 to 200.
    """
    if not SMALLEST_CENTS <= cents <= LARGEST_CENTS:
        raise UsageError(f"a note is detuned by {SMALLEST_CENTS:g} to {LARGEST_CENTS:g} cents; got {cents:g}.")
    sharp = bool(np.random.default_rng(seed).integers(2))
    ratio = 2.0 ** ((cents if sharp else -cents) / 1200)
    start = voiced_stretch(wave, rate)
    source, changed = wave.astype(np.float64), wave.copy()
    fade = max(1, round(FADE_SECONDS * rate))
    ramp = (np.arange(fade) + 0.5) / fade
    place = start
    carried = source[start : start + fade]  # what the segment before gives beyond its end
    while place - start < STRETCH_SECONDS * rate:
        end = place + _segment(source, rate, place, ratio)
        heard = _interpolate(source, place + ratio * np.arange(end - place + fade), 1.0 / max(1.0, ratio))
        heard[:fade] = (1 - ramp) * carried + ramp * heard[:fade]
        changed[place:end], carried = heard[: end - place], heard[end - place :]
        place = end
    changed[place : place + fade] = (1 - ramp) * carried + ramp * source[place : place + fade]
    return changed


def voiced_stretch(wave: Wave, rate: int) -> int:
    """The first sample of the loudest stretch in which a voice is heard, with room before and after it.

    Shape: wave [T] at `rate` Hz. Raises AudioError where there is none.
    """
    length, lead = round(VOICED_SECONDS * rate), round(rate / LOWEST_HZ) + round(WINDOW_SECONDS * rate)
    starts = np.arange(lead, len(wave) - round(ROOM_SECONDS * rate) + 1, max(1, round(HOP_SECONDS * rate)))
    sums = np.concatenate([[0.0], np.cumsum(np.square(wave, dtype=np.float64))])
    energies = sums[starts + length] - sums[starts]
    for start in starts[np.argsort(-energies, kind="stable")][:TRIES]:
        if voiced_share(wave[start : start + length], rate) >= VOICED:
            return int(start)
    raise AudioError(
        f"no voice is heard for {VOICED_SECONDS:g} s on end in {len(wave) / rate:.2f} s: there is no note to detune."
    )


def _segment(source: Array, rate: int, place: int, ratio: float) -> int:
    """Samples from `place` on after which reading at `ratio` is one period off, so that it can step back unheard."""
    drift = abs(ratio - 1.0)
    lags = np.arange(round(rate / HIGHEST_HZ), round(min(rate / LOWEST_HZ, LONGEST_SECONDS * rate * drift)) + 1)
    ends = np.round(lags / drift).astype(np.int64)
    half = round(WINDOW_SECONDS * rate / 2)
    around = np.arange(-half, half)
    here = source[(place + ends)[:, None] + around]
    there = source[(place + ends + (lags if ratio > 1 else -lags))[:, None] + around]
    norms = np.sqrt((here**2).sum(axis=1) * (there**2).sum(axis=1))
    alike = (here * there).sum(axis=1) / np.maximum(norms, 1e-12)
    peaks = np.flatnonzero((alike[1:-1] >= alike[:-2]) & (alike[1:-1] >= alike[2:])) + 1
    good = peaks[alike[peaks] >= ALIKE * alike.max()]
    if not len(good):
        return int(ends[alike.argmax()])
    # Between samples: at 700 Hz and 24 kHz, half a sample at each step would be two cents.
    left, top, right = alike[good[0] - 1 : good[0] + 2]
    bend = left - 2 * top + right
    between = 0.5 * (left - right) / bend if bend < 0 else 0.0
    return round((float(lags[good[0]]) + between) / drift)


def _interpolate(source: Array, positions: Array, cut: float) -> Array:
    """The wave between its samples, by a windowed sinc; `cut` 1 keeps all of its band, less keeps that share.

    Shape: source [T], positions [M] in samples -> [M].
    """
    first = np.floor(positions).astype(np.int64)
    nodes = first[:, None] + np.arange(1 - HALF_TAPS, HALF_TAPS + 1)
    away = positions[:, None] - nodes
    weights = cut * np.sinc(cut * away) * np.cos(np.pi * away / (2 * HALF_TAPS + 2)) ** 2
    made: Array = np.einsum("mt,mt->m", source[np.clip(nodes, 0, len(source) - 1)], weights)
    return made


Expected = Literal["not higher", "same", "same or a little lower"]

HEADROOM = 0.5  # largest sample of what is degraded: +6 dB then stays below full scale
CLIPPED_SHARE = 0.1  # of the samples that hard clipping cuts off
LOW_PASS_HZ = 4_000.0
TRANSITION_HZ, STOP_DB = 400.0, 80.0  # of the low-pass: half the level at LOW_PASS_HZ, gone 200 Hz above
SILENCE_SECONDS = 1.0
BIT_RATE = 24_000  # of the re-encoding
AAC_FRAME = 1024  # samples
LEAST_LEFT = 1e-3  # of the level; less is not raised to it again, which would be noise
GAIN_DB = 6.0


@dataclass(frozen=True)
class Degradation:
    """One change: what a reader calls it, which way the score may move, and the change itself.

    `apply` takes a wave [T], its rate in Hz and a seed, and raises AudioError where it cannot be done.
    """

    title: str
    expected: Expected
    apply: Callable[[Wave, int, int], Wave]


def with_headroom(wave: Wave) -> Wave:
    """The wave, attenuated where it reaches beyond HEADROOM. Shape: [T] -> [T].

    >>> with_headroom(np.array([0.25, -1.0], dtype=np.float32)).tolist()
    [0.125, -0.5]
    """
    peak = float(np.abs(wave).max(initial=0.0))
    return wave if peak <= HEADROOM else gain(wave, 20 * np.log10(HEADROOM / peak))


def degrade(wave: Wave, rate: int, name: ProbeName, seed: int = 0) -> Wave:
    """A recording changed as the probe `name` says; the same seed gives the same noise, and the same note.

    Shape: wave [T], float32 at `rate` Hz -> [T], or longer by the silence. Raises AudioError, one sentence, where the
    wave is empty, silent or not finite, or the change cannot be made of it.
    """
    if wave.ndim != 1 or not len(wave) or not np.isfinite(wave).all():
        raise AudioError(f"a wave [T] of finite samples is needed to be degraded; got shape {list(wave.shape)}.")
    if not wave.any():
        raise AudioError("the recording is silent: there is nothing to degrade.")
    changed = DEGRADATIONS[name].apply(wave, rate, seed)
    return np.ascontiguousarray(changed, dtype=np.float32)


def add_noise(wave: Wave, snr_db: float, seed: int = 0) -> Wave:
    """White noise beside the wave, so many dB below it; both together as loud as the wave was. Shape: [T] -> [T]."""
    noise = np.random.default_rng(seed).standard_normal(len(wave))
    return _as_loud_as(wave, wave + noise * (_rms(wave) / _rms(noise) * 10 ** (-snr_db / 20)))


def clip_hard(wave: Wave) -> Wave:
    """The largest tenth of the samples cut off at one level, and the rest made as loud as the wave was.

    Shape: [T] -> [T]. Raises AudioError where more than nine tenths are digital silence.
    """
    rail = float(np.quantile(np.abs(wave), 1 - CLIPPED_SHARE))
    if rail == 0:
        raise AudioError(
            f"more than {1 - CLIPPED_SHARE:.0%} of the samples are digital silence: nothing can be clipped."
        )
    return _as_loud_as(wave, np.clip(wave, -rail, rail))


def low_pass(wave: Wave, rate: int, cutoff: float = LOW_PASS_HZ) -> Wave:
    """Nothing above `cutoff` Hz, as loud as before, with no delay. Shape: [T] -> [T].

    Raises AudioError where the rate leaves nothing above it, or the wave has nothing below.
    """
    from scipy.signal import firwin, kaiserord, oaconvolve

    if rate / 2 <= cutoff + TRANSITION_HZ / 2:
        raise AudioError(f"at {rate} Hz there is nothing above {cutoff:g} Hz to take away.")
    taps, beta = kaiserord(STOP_DB, TRANSITION_HZ / (rate / 2))
    kernel = firwin(taps | 1, cutoff, window=("kaiser", beta), fs=rate)
    return _as_loud_as(wave, oaconvolve(wave.astype(np.float64), kernel, mode="same"))


def gain(wave: Wave, decibels: float) -> Wave:
    """Louder or softer by so many dB. Shape: [T] -> [T].

    >>> gain(np.ones(2, dtype=np.float32), -20).round(6).tolist()
    [0.10000000149011612, 0.10000000149011612]
    """
    return np.asarray(wave * np.float64(10 ** (decibels / 20)), dtype=np.float32)


def add_silence(wave: Wave, rate: int) -> Wave:
    """SILENCE_SECONDS of nothing behind the wave. Shape: [T] -> [T + rate]."""
    return np.pad(wave, (0, round(SILENCE_SECONDS * rate)))


def reencode(wave: Wave, rate: int, bit_rate: int = BIT_RATE) -> Wave:
    """Through AAC at so many bits a second and back. Shape: [T] -> [T].

    Raises AudioError for a rate that AAC has not, and for less than one of its frames.
    """
    if len(wave) < AAC_FRAME:
        raise AudioError(f"{len(wave)} samples are less than one frame of AAC ({AAC_FRAME}): nothing to encode.")
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "again.m4a"
        try:
            encode(wave, rate, target, bit_rate=bit_rate)
            heard = decode(target).wave[: len(wave)]
        except AudioError as fault:
            raise AudioError(str(fault).replace(str(target), "re-encoding")) from fault
    return np.pad(heard, (0, len(wave) - len(heard)))


def _rms(wave: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))


def _as_loud_as(wave: Wave, changed: np.ndarray) -> Wave:
    """`changed` at the level of `wave`. Raises AudioError where nothing is left of it."""
    left = _rms(changed)
    if left <= LEAST_LEFT * _rms(wave):
        raise AudioError("nothing of the recording is left to be made as loud as it was.")
    return np.asarray(changed * (_rms(wave) / left), dtype=np.float32)


DEGRADATIONS: Mapping[ProbeName, Degradation] = {
    "noise_30db": Degradation("noise, SNR 30 dB", "not higher", lambda wave, rate, seed: add_noise(wave, 30, seed)),
    "noise_20db": Degradation("noise, SNR 20 dB", "not higher", lambda wave, rate, seed: add_noise(wave, 20, seed)),
    "noise_10db": Degradation("noise, SNR 10 dB", "not higher", lambda wave, rate, seed: add_noise(wave, 10, seed)),
    "clipping": Degradation("hard clipping", "not higher", lambda wave, rate, seed: clip_hard(wave)),
    "low_pass": Degradation("4 kHz low-pass", "not higher", lambda wave, rate, seed: low_pass(wave, rate)),
    "detune_25": Degradation(
        "a note 25 cents off", "not higher", lambda wave, rate, seed: detune(wave, rate, 25, seed)
    ),
    "detune_50": Degradation(
        "a note 50 cents off", "not higher", lambda wave, rate, seed: detune(wave, rate, 50, seed)
    ),
    "detune_100": Degradation(
        "a note 100 cents off", "not higher", lambda wave, rate, seed: detune(wave, rate, 100, seed)
    ),
    "gain_up": Degradation("6 dB louder", "same", lambda wave, rate, seed: gain(wave, GAIN_DB)),
    "gain_down": Degradation("6 dB softer", "same", lambda wave, rate, seed: gain(wave, -GAIN_DB)),
    "trailing_silence": Degradation("1 s of silence behind", "same", lambda wave, rate, seed: add_silence(wave, rate)),
    "reencoding": Degradation(
        "AAC at 24 kbit/s", "same or a little lower", lambda wave, rate, seed: reencode(wave, rate)
    ),
}
