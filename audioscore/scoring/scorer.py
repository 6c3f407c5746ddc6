"""A scorer: encoders, head and calibration, from a recording to a score."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from audioscore.config import Plan
from audioscore.data.audio import Recording, Wave, decode
from audioscore.data.probes import ProbeLimits, probe, refusal
from audioscore.encoders.extract import Encoders, Features, encode_recording
from audioscore.encoders.reference import EncoderReference, Kind
from audioscore.errors import AudioError, UsageError
from audioscore.scoring.calibration import Calibration
from audioscore.scoring.network import ScoreNetwork, raw_outputs

# What each plan hears. A plan that is not in CANDIDATES is a control: trained and reported, never the winner.
BRANCHES: dict[Plan, tuple[Kind, ...]] = {
    "baseline": ("muq",),
    "hybrid": ("muq", "campplus"),
    "campplus_only": ("campplus",),
    "muq_frozen": ("muq",),
}
# Recordings that are heard whole, as converted models do, take memory with the square of their length.
WHOLE_SECONDS = 900.0
CANDIDATES: tuple[Plan, ...] = ("baseline", "hybrid")


def plan_named(name: str) -> Plan:
    """A plan by its name. Raises UsageError naming the plans there are."""
    for plan in BRANCHES:
        if plan == name:
            return plan
    raise UsageError(f"plan {name!r}: there is no such plan; there are {', '.join(BRANCHES)}.")


@dataclass(frozen=True)
class Tuning:
    """What of MuQ stands between the features and the head: layers from `from_layer` on, and what was trained there.

    "lora": adapters of `rank`, which count by `alpha` / `rank`; "full": the layers themselves; "frozen": nothing.
    `mix`: the head hears a learned mix of all hidden states from `from_layer` on.
    """

    mode: Literal["frozen", "lora", "full"]
    from_layer: int
    rank: int | None = None
    alpha: int | None = None
    mix: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("frozen", "lora", "full") or not isinstance(self.from_layer, int):
            raise ValueError(f"tuning {self.mode!r} from layer {self.from_layer!r} is none of frozen, lora, full")


@dataclass(frozen=True)
class Description:
    """What a scorer is, saved with its weights and never apart from them."""

    plan: Plan
    seed: int
    encoders: dict[Kind, EncoderReference]
    head: dict[str, Any]  # arguments of build_head
    calibration: Calibration
    seen_clips: tuple[str, ...]  # sha256 of every recording it was fitted, selected or calibrated on
    data_digest: str
    code_revision: str
    training: dict[str, Any] = field(default_factory=dict)  # settings and figures of its training
    tuning: Tuning | None = None  # None: the head hears MuQ's output as it is

    @property
    def prefix_layer(self) -> int | None:
        """The hidden state of MuQ that the network is given; None is the output."""
        return None if self.tuning is None else self.tuning.from_layer

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

    def __init__(
        self, network: ScoreNetwork, description: Description, encoders: Encoders, *, device: str = "cpu"
    ) -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        self.description = description
        self.encoders = encoders
        self.device = device

    def score(self, source: str | Path | bytes | Wave, rate: int | None = None) -> ScoredClip:
        """Score one recording: a path, a file's bytes, or samples [T] with their rate in Hz.

        Raises AudioError, one sentence, where it cannot be decoded or is too short, silent or clipped to be judged.
        """
        recording = _recording_of(source, rate)
        name = str(source) if isinstance(source, str | Path) else "the recording"
        whole = any(reference.window is None for reference in self.description.encoders.values())
        limits = ProbeLimits(max_seconds=WHOLE_SECONDS) if whole else ProbeLimits()
        reason = refusal(probe(recording), limits)
        if reason is not None:
            raise AudioError(f"{name}: {reason}")
        features = encode_recording(recording, self.encoders, self.description.prefix_layer)
        raw = float(self.raw([features])[0])
        return self._scored(raw, recording.seconds)

    def raw(self, features: Sequence[Features]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Raw outputs of clips whose features are known.

        Shape: N clips -> [N], float64.
        """
        return raw_outputs(self.network, features, self.device)

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
