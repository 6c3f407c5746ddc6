"""A scorer: encoders, head and calibration, from a recording to a score."""

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from audioscore.config import Plan
from audioscore.data.audio import MAX_SECONDS, Wave
from audioscore.encoders.campplus import CampplusEncoder
from audioscore.encoders.compute import computing_in, side_by_side
from audioscore.encoders.features import WINDOWS, EncoderReference, Encoders, Features, Kind
from audioscore.encoders.muq import MuQEncoder
from audioscore.errors import AudioscoreError, ModelError, UsageError
from audioscore.muq_cpu.inference import MuQInference
from audioscore.muq_cpu.matmul import Int16Linear, multiplying, quick_numbers
from audioscore.scoring.calibration import Calibration
from audioscore.scoring.explain.timeline import moments
from audioscore.scoring.input import DecodedClip, Ears, Limits, Source, Take, named, take_in
from audioscore.scoring.network import ScoreNetwork, raw_outputs
from audioscore.scoring.results import Answer, ClipScore, ScoredClip
from audioscore.scoring.stream import score_stream


class Hearing:
    """A scorer's encoders as they are run for it; each hears a recording once."""

    def __init__(self, encoders: Encoders, prefix_layer: int | None = None, *, fast: bool = False) -> None:
        muq, voice = encoders.get("muq"), encoders.get("campplus")
        self._muq = MuQInference(muq, fast=fast) if isinstance(muq, MuQEncoder) else None
        self._voice = voice if isinstance(voice, CampplusEncoder) else None
        self._layer = prefix_layer

    def __call__(self, clips: Sequence[DecodedClip]) -> list[Features]:
        """Each clip's features, in order; with a prefix layer, MuQ gives that hidden state in place of its own."""
        heard: list[dict[str, Tensor]] = [{} for _ in clips]
        if self._muq is not None:
            waves = [torch.from_numpy(clip.muq) for clip in clips]
            for features, wave, frames in zip(heard, waves, self._muq.hear(waves, self._layer), strict=True):
                features["muq"] = frames
                if self._layer is not None:
                    features[WINDOWS] = torch.tensor(self._muq.encoder.windows(len(wave)))
        if self._voice is not None:
            tasks = [partial(self._voice.embedding, torch.from_numpy(clip.voice)) for clip in clips]
            on_cpu = torch.device(self._voice.device).type == "cpu"
            embeddings = side_by_side(tasks) if on_cpu else [task() for task in tasks]
            for features, embedding in zip(heard, embeddings, strict=True):
                features["campplus"] = embedding
        return list(heard)


def judge(
    network: ScoreNetwork,
    calibration: Calibration,
    clips: Sequence[DecodedClip],
    features: Sequence[Features],
    *,
    device: str,
    timeline: bool = False,
) -> list[Answer]:
    """An answer a clip, in order; where the network gives no number, a ModelError stands in its place."""
    raw = raw_outputs(network, features, device)
    values = calibration.apply(np.nan_to_num(raw))
    lows, highs = calibration.interval(values)
    answers: list[Answer] = []
    for clip, feature, own, value, low, high in zip(clips, features, raw, values, lows, highs, strict=True):
        if not math.isfinite(own):
            answers.append(ModelError(f"{clip.file}: the model gives {own} for it. Its weights are of no use."))
            continue
        parts = moments(network, calibration, feature, clip.seconds, device) if timeline else None
        answers.append(ScoredClip(float(value), (float(low), float(high)), float(own), clip.seconds, parts))
    return answers


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


class Scorer:
    """Scores recordings. The same file gets the same score alone, in any batch, through any door, and twice.

    Threads may share one: decoding runs side by side, scoring one batch after the other. `fast` multiplies the numbers
    that a CPU is quickest with (`encoders.products`); `needs_voice` refuses recordings in which nobody sings, as the
    doors do.
    """

    def __init__(
        self,
        network: ScoreNetwork,
        description: Description,
        encoders: Encoders,
        *,
        device: str = "cpu",
        fast: bool = False,
        needs_voice: bool = False,
    ) -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        self.description = description
        self.encoders = encoders
        self.device = device
        self.fast = fast
        whole = any(reference.window is None for reference in description.encoders.values())
        self.ears = Ears("muq" in encoders, "campplus" in encoders, whole)
        self.limits = Limits(None, WHOLE_SECONDS if whole else MAX_SECONDS, needs_voice)
        self._one_batch_at_a_time = threading.Lock()

    def score(self, source: Source | Wave, rate: int | None = None, *, timeline: bool = False) -> ScoredClip:
        """Score one recording: a path, a file's bytes, or samples [T] with their rate in Hz.

        `timeline` adds a score each few seconds. Raises AudioError, one sentence, where it cannot be decoded or is too
        short, silent, clipped or without a voice to be judged.
        """
        given = (source, rate) if isinstance(source, np.ndarray) else source
        found = self.score_batch([self.decode(named(given, 0))], timeline=timeline)[0]
        if isinstance(found, AudioscoreError):
            raise found
        return found

    def score_many(self, sources: Iterable[Source | Take], *, timeline: bool = False) -> Iterator[ClipScore]:
        """Score any number of recordings, as a stream in their order; one that cannot be scored is a row with `error`.

        Memory grows neither with their number nor, but for what is being decoded, with their length.
        """
        return score_stream(self.decode, partial(self.score_batch, timeline=timeline), sources)

    def decode(self, take: Take, limits: Limits | None = None) -> DecodedClip:
        """Take in one recording for `score_batch`; `limits` are the scorer's own unless given. Raises AudioError."""
        return take_in(take, self.ears, limits or self.limits)

    def score_batch(self, clips: Sequence[DecodedClip], *, timeline: bool = False) -> list[Answer]:
        """Score decoded recordings together, in their order; a fault of one stands in its place and hurts no other."""
        calibration = self.description.calibration
        # What a caller computes in rounder numbers (autocast) is no score's business.
        with self._one_batch_at_a_time, computing_in("fp32", self.device):
            return judge(self._judging, calibration, clips, self._hear(clips), device=self.device, timeline=timeline)

    @property
    def is_faster(self) -> bool:
        """Whether `fast` was asked for and changes anything: not on every CPU, nor for a small MuQ and a small head."""
        if not self.fast or quick_numbers(self.device) == "float32":
            return False
        muq = self.encoders.get("muq")
        heard = isinstance(muq, MuQEncoder) and MuQInference.suits(muq)
        return heard or any(isinstance(part, Int16Linear) for part in self._judging.modules())

    @cached_property
    def _hear(self) -> Hearing:
        # Made at first use: training and conversion make scorers whose weights may still change.
        return Hearing(self.encoders, self.description.prefix_layer, fast=self.fast)

    @cached_property
    def _judging(self) -> ScoreNetwork:
        numbers = quick_numbers(self.device) if self.fast else "float32"
        return multiplying(self.network, numbers) if torch.device(self.device).type == "cpu" else self.network

    def raw(self, features: Sequence[Features]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Raw outputs of clips whose features are known.

        Shape: N clips -> [N], float64.
        """
        return raw_outputs(self.network, features, self.device)
