"""A recording taken in for scoring: within limits, decoded, judged fit to be scored, resampled to what encoders hear.

Every door goes through here, so that training, command line, service and registry refuse the same recordings.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audioscore.data.audio import MAX_SECONDS, Recording, Wave, check_file, decode
from audioscore.data.audio_checks import ProbeLimits, findings, probe
from audioscore.data.rules import RULES
from audioscore.errors import AudioError
from audioscore.units import CAMPPLUS_RATE, MUQ_RATE

NO_VOICE = "no_voice"  # in training data a warning

# A path, a file's bytes, samples [T] with their rate in Hz, or a function that fetches a file's bytes.
Source = str | Path | bytes | tuple[Wave, int | None] | Callable[[], bytes]


@dataclass(frozen=True)
class Take:
    """A recording to be scored, and the name that its result carries."""

    file: str
    source: Source


@dataclass(frozen=True)
class Limits:
    """What is taken in: the size of a file (None: any), a recording's length, and whether somebody must sing in it.

    Training needs no voice to be found: a person has heard the recording, and scored it. At the doors, nobody has.
    """

    max_bytes: int | None = None
    max_seconds: float = MAX_SECONDS
    needs_voice: bool = False


@dataclass(frozen=True)
class Ears:
    """What a scorer's encoders want to be given: MuQ, in windows or `whole`, and CAM++ (`voice`)."""

    muq: bool
    voice: bool
    whole: bool


@dataclass(frozen=True)
class DecodedClip:
    """A recording that may be scored: what each encoder hears, and its length in seconds.

    Shape: muq [T] at 24 kHz, voice [T] at 16 kHz, float32; None where the scorer has no such encoder.
    """

    file: str
    seconds: float
    muq: Wave | None
    voice: Wave | None


def named(source: Source | Take, place: int) -> Take:
    """A take of a source: a path is its own name, anything else is known by its place, from 0.

    >>> named("a.wav", 3).file, named(b"...", 3).file
    ('a.wav', 'recording 4')
    """
    if isinstance(source, Take):
        return source
    return Take(str(source) if isinstance(source, str | Path) else f"recording {place + 1}", source)


def take_in(take: Take, ears: Ears, limits: Limits) -> DecodedClip:
    """Fetch, decode, probe and resample one recording.

    Raises AudioError, one sentence, where it is too large, cannot be decoded, or must not be scored: too short or long,
    silent, clipped, phase-cancelled, or without a voice where one is needed.
    """
    recording = _recording_of(take, limits)
    for found in findings(probe(recording), ProbeLimits(max_seconds=limits.max_seconds)):
        if RULES[found.rule] == "error" or (limits.needs_voice and found.rule == NO_VOICE):
            raise AudioError(f"{_said_of(take)}: {found.reason}")
    heard = None
    if ears.muq:  # whole recordings are heard for models that came before, which took librosa's word for their length
        heard = recording.rounded_up(MUQ_RATE) if ears.whole else recording.at(MUQ_RATE)
    return DecodedClip(take.file, recording.seconds, heard, recording.at(CAMPPLUS_RATE) if ears.voice else None)


def _said_of(take: Take) -> str:
    return str(take.source) if isinstance(take.source, str | Path) else "the recording"


def _recording_of(take: Take, limits: Limits) -> Recording:
    source = take.source
    if isinstance(source, tuple):
        return _recording_of_samples(*source)
    if callable(source):
        source = source()
    size = _size_of(source)
    if limits.max_bytes is not None and size > limits.max_bytes:
        raise AudioError(
            f"{_said_of(take)}: is {size} bytes; at most {limits.max_bytes} are taken. Send a shorter one."
        )
    return decode(source, max_seconds=limits.max_seconds)


def _size_of(source: str | Path | bytes) -> int:
    if isinstance(source, bytes):
        return len(source)
    check_file(Path(source), str(source))
    return Path(source).stat().st_size


def _recording_of_samples(samples: Wave, rate: int | None) -> Recording:
    if rate is None or rate <= 0:
        raise AudioError(f"samples need their rate in Hz; got {rate}. Pass score(samples, rate).")
    if samples.ndim != 1:
        raise AudioError(f"samples must be mono [T]; got shape {list(samples.shape)}. Average the channels.")
    if not np.issubdtype(samples.dtype, np.floating) or not np.isfinite(samples).all():
        raise AudioError(f"samples must be finite floats in [-1, 1]; got {samples.dtype} or NaN. Convert them first.")
    return Recording(np.ascontiguousarray(samples, dtype=np.float32), rate)
