"""Prepare a recording for scoring: read it within limits, decode it, check it, and resample it for each encoder.

Training, command line, service and registry model all use this path, so that they refuse the same recordings.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audioscore.data.audio import MAX_SECONDS, Recording, Wave, check_file, decode
from audioscore.data.audio_checks import RULES, AudioLimits, findings, measure_recording, scoring_notes
from audioscore.errors import AudioError
from audioscore.units import CAMPPLUS_RATE, MUQ_RATE

NO_VOICE = "no_voice"  # only a warning in training data

# A path, the bytes of a file, samples [T] with their rate in Hz, or a function that returns the bytes of a file.
Source = str | Path | bytes | tuple[Wave, int | None] | Callable[[], bytes]


@dataclass(frozen=True)
class InputRecording:
    """A recording to be scored: the name that its result has in `file`, and where the audio comes from."""

    file: str
    source: Source


@dataclass(frozen=True)
class InputLimits:
    """Which recordings are accepted: bytes of the file (None: any number), length, and whether a voice is required.

    Training data needs no voice check, because a rater has listened to each clip. Everywhere else it is required.
    """

    max_bytes: int | None = None
    max_seconds: float = MAX_SECONDS
    needs_voice: bool = False


@dataclass(frozen=True)
class EncoderNeeds:
    """Which inputs a scorer's encoders need: MuQ, in windows or the `whole` recording at once, and CAM++ (`voice`)."""

    muq: bool
    voice: bool
    whole: bool


@dataclass(frozen=True)
class DecodedClip:
    """A recording that passed the checks: the input of each encoder, the length in seconds, and notes for the user.

    Shape: muq [T] at 24 kHz, voice [T] at 16 kHz, float32; None where the scorer does not have the encoder.
    """

    file: str
    seconds: float
    muq: Wave | None
    voice: Wave | None
    notes: tuple[str, ...] = ()


def as_recording(source: Source | InputRecording, index: int) -> InputRecording:
    """Give a source a name: a path is its own name, other sources are numbered. `index` counts from 0.

    >>> as_recording("a.wav", 3).file, as_recording(b"...", 3).file
    ('a.wav', 'recording 4')
    """
    if isinstance(source, InputRecording):
        return source
    return InputRecording(str(source) if isinstance(source, str | Path) else f"recording {index + 1}", source)


def prepare_recording(recording: InputRecording, needs: EncoderNeeds, limits: InputLimits) -> DecodedClip:
    """Read, decode, check and resample one recording.

    Raises AudioError if the recording is too large or too long, cannot be decoded, or must not be scored: too short,
    silent, clipped, phase-cancelled, or without a voice where `limits` require one.
    """
    decoded = _decode(recording, limits)
    measured = measure_recording(decoded)
    for found in findings(measured, AudioLimits(max_seconds=limits.max_seconds)):
        if RULES[found.rule] == "error" or (limits.needs_voice and found.rule == NO_VOICE):
            raise AudioError(f"{_shown_source(recording)}: {found.reason}")
    muq = None
    if needs.muq:  # legacy models encode whole recordings, whose length librosa rounded up
        muq = decoded.resample_rounded_up(MUQ_RATE) if needs.whole else decoded.at(MUQ_RATE)
    voice = decoded.at(CAMPPLUS_RATE) if needs.voice else None
    return DecodedClip(recording.file, decoded.seconds, muq, voice, scoring_notes(measured))


def _shown_source(recording: InputRecording) -> str:
    return str(recording.source) if isinstance(recording.source, str | Path) else recording.file


def _decode(recording: InputRecording, limits: InputLimits) -> Recording:
    source = recording.source
    if isinstance(source, tuple):
        return _check_samples(*source)
    if callable(source):
        source = source()
    size = _size_of(source)
    if limits.max_bytes is not None and size > limits.max_bytes:
        raise AudioError(
            f"{_shown_source(recording)}: has {size} bytes; at most {limits.max_bytes} are allowed. Send a shorter one."
        )
    return decode(source, name=_shown_source(recording), max_seconds=limits.max_seconds)


def _size_of(source: str | Path | bytes) -> int:
    if isinstance(source, bytes):
        return len(source)
    check_file(Path(source), str(source))
    return Path(source).stat().st_size


def _check_samples(samples: Wave, rate: int | None) -> Recording:
    if rate is None or rate <= 0:
        raise AudioError(f"samples: need their rate in Hz; got {rate}. Pass score(samples, rate).")
    if samples.ndim != 1:
        raise AudioError(f"samples: must be mono [T]; got shape {list(samples.shape)}. Average the channels.")
    if not np.issubdtype(samples.dtype, np.floating) or not np.isfinite(samples).all():
        raise AudioError(f"samples: must be finite floats in [-1, 1]; got {samples.dtype} or NaN. Convert them first.")
    return Recording(np.ascontiguousarray(samples, dtype=np.float32), rate)
