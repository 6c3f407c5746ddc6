"""A scorer: encoders, head and calibration, from a recording to a score."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from audioscore.config import Plan
from audioscore.data.audio import Recording, Wave, decode
from audioscore.data.probes import ProbeLimits, probe, refusal
from audioscore.encoders.extract import Encoders, Features, encode_recording
from audioscore.encoders.reference import EncoderReference, Kind
from audioscore.errors import AudioError, UsageError
from audioscore.scoring.calibration import Calibration
from audioscore.scoring.head import ScoreHead, raw_outputs

# What each plan hears. A plan that is not in CANDIDATES is a control: trained and reported, never the winner.
BRANCHES: dict[Plan, tuple[Kind, ...]] = {
    "baseline": ("muq",),
    "hybrid": ("muq", "campplus"),
    "campplus_only": ("campplus",),
}
CANDIDATES: tuple[Plan, ...] = ("baseline", "hybrid")


def plan_named(name: str) -> Plan:
    """A plan by its name. Raises UsageError naming the plans there are."""
    for plan in BRANCHES:
        if plan == name:
            return plan
    raise UsageError(f"plan {name!r}: there is no such plan; there are {', '.join(BRANCHES)}.")


@dataclass(frozen=True)
class Description:
    """What a scorer is, saved with its weights and never apart from them."""

    plan: Plan
    seed: int
    encoders: dict[Kind, EncoderReference]
    head: dict[str, Any]  # arguments of ScoreHead
    calibration: Calibration
    seen_clips: tuple[str, ...]  # sha256 of every recording it was fitted, selected or calibrated on
    data_digest: str
    code_revision: str
    training: dict[str, Any] = field(default_factory=dict)  # settings and figures of its training

    @property
    def licence(self) -> str:
        """Licences of the weights it was made from; the strictest decides what may be done with it."""
        return " + ".join(sorted({reference.licence for reference in self.encoders.values()}))


@dataclass(frozen=True)
class ScoredClip:
    """One answer. `score` and `interval` are on the 0-100 scale; `raw` is what ranks."""

    score: float
    interval: tuple[float, float]
    raw: float
    seconds: float


class Scorer:
    """Scores recordings. The same file gets the same score alone, in any batch, and twice."""

    def __init__(self, head: ScoreHead, description: Description, encoders: Encoders, *, device: str = "cpu") -> None:
        self.head = head.eval().to(device)
        self.description = description
        self.encoders = encoders
        self.device = device

    def score(self, source: str | Path | bytes | Wave, rate: int | None = None) -> ScoredClip:
        """Score one recording: a path, a file's bytes, or samples [T] with their rate in Hz.

        Raises AudioError, one sentence, where it cannot be decoded or is too short, silent or clipped to be judged.
        """
        recording = _recording_of(source, rate)
        name = str(source) if isinstance(source, str | Path) else "the recording"
        reason = refusal(probe(recording), ProbeLimits())
        if reason is not None:
            raise AudioError(f"{name}: {reason}")
        raw = float(self.raw([encode_recording(recording, self.encoders)])[0])
        return self._scored(raw, recording.seconds)

    def raw(self, features: Sequence[Features]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Raw outputs of clips whose features are known.

        Shape: N clips -> [N], float64.
        """
        return raw_outputs(self.head, features, self.device)

    def _scored(self, raw: float, seconds: float) -> ScoredClip:
        calibration = self.description.calibration
        value = calibration.apply([raw])
        low, high = calibration.interval(value)
        return ScoredClip(float(value[0]), (float(low[0]), float(high[0])), raw, seconds)


def _recording_of(source: str | Path | bytes | Wave, rate: int | None) -> Recording:
    if isinstance(source, np.ndarray):
        if rate is None or rate <= 0:
            raise AudioError(f"samples need their rate in Hz; got {rate}. Pass score(samples, rate).")
        if source.ndim != 1:
            raise AudioError(f"samples must be mono [T]; got shape {list(source.shape)}. Average the channels.")
        if not np.issubdtype(source.dtype, np.floating) or not np.isfinite(source).all():
            raise AudioError(
                f"samples must be finite floats in [-1, 1]; got {source.dtype} or NaN. Convert them first."
            )
        return Recording(np.ascontiguousarray(source, dtype=np.float32), rate)
    return decode(source)
