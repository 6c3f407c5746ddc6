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

from audioscore.config import ProbeName
from audioscore.data.audio import Wave, decode, encode
from audioscore.errors import AudioError
from audioscore.evaluation.robustness.detune import detune

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
