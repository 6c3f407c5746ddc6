"""Scorer: encoders, network and calibration, from a recording to a score."""

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
from audioscore.encoders.compute import precision_context, run_in_threads
from audioscore.encoders.features import WINDOWS, EncoderReference, Encoders, Features, Kind
from audioscore.encoders.inference import MuQInference, optimize_network, uses_int16
from audioscore.encoders.muq import MuQEncoder
from audioscore.errors import ModelError, UsageError
from audioscore.scoring.calibration import Calibration
from audioscore.scoring.explain.timeline import timeline_segments
from audioscore.scoring.input import (
    DecodedClip,
    EncoderNeeds,
    InputLimits,
    InputRecording,
    Source,
    as_recording,
    prepare_recording,
)
from audioscore.scoring.network import ScoreNetwork, raw_outputs
from audioscore.scoring.results import ClipScore
from audioscore.scoring.stream import score_stream

# Encoders of each plan. A plan that is not in CANDIDATES is a control: trained and reported, but never the winner.
BRANCHES: dict[Plan, tuple[Kind, ...]] = {
    "baseline": ("muq",),
    "hybrid": ("muq", "campplus"),
    "campplus_only": ("campplus",),
    "muq_frozen": ("muq",),
}
CANDIDATES: tuple[Plan, ...] = ("baseline", "hybrid")
# Converted legacy models encode a recording in one window, which needs memory with the square of its length.
MAX_WHOLE_SECONDS = 900.0


def plan_by_name(name: str) -> Plan:
    """Check the name of a plan. Raises UsageError with the existing names."""
    for plan in BRANCHES:
        if plan == name:
            return plan
    raise UsageError(f"plan {name!r}: does not exist. Use one of {', '.join(BRANCHES)}.")


@dataclass(frozen=True)
class Tuning:
    """How MuQ is fine-tuned: the layers from `from_layer` on belong to the network and run in front of the head.

    Modes: "lora" trains adapters of rank `rank`, scaled by `alpha` / `rank`; "full" trains the layers; "frozen" trains
    nothing. With `mix`, the head gets a learned average of all hidden states from `from_layer` on.
    """

    mode: Literal["frozen", "lora", "full"]
    from_layer: int
    rank: int | None = None
    alpha: int | None = None
    mix: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("frozen", "lora", "full") or not isinstance(self.from_layer, int):
            raise ValueError(f"tuning {self.mode!r} from layer {self.from_layer!r}: must be frozen, lora or full")


@dataclass(frozen=True)
class Description:
    """Description of a scorer, the content of `scorer.json`; it is always saved together with the weights."""

    plan: Plan
    seed: int
    encoders: dict[Kind, EncoderReference]
    head: dict[str, Any]  # arguments of build_head
    calibration: Calibration
    seen_clips: tuple[str, ...]  # sha256 of every recording it was fitted, selected or calibrated on
    data_digest: str
    code_revision: str
    training: dict[str, Any] = field(default_factory=dict)  # settings and figures of its training
    tuning: Tuning | None = None  # None: the head gets MuQ's output unchanged

    @property
    def prefix_layer(self) -> int | None:
        """The hidden state of MuQ that is the input of the network; None means MuQ's output."""
        return None if self.tuning is None else self.tuning.from_layer

    @property
    def licence(self) -> str:
        """Licences of the encoder weights that the scorer is based on; the strictest one applies to the scorer."""
        return " + ".join(sorted({reference.licence for reference in self.encoders.values()}))


class Scorer:
    """Score recordings. A file gets the same score alone, in any batch, in any interface, and each time.

    Thread-safe: threads decode in parallel and score one batch after the other.

    Args:
        fast: Compute MuQ and the head in 16-bit integers where the CPU is faster with them; scores differ slightly.
        needs_voice: Refuse recordings without a voice, as the command line and the service do.
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
        self.needs = EncoderNeeds("muq" in encoders, "campplus" in encoders, whole)
        self.limits = InputLimits(None, MAX_WHOLE_SECONDS if whole else MAX_SECONDS, needs_voice)
        self._one_batch_at_a_time = threading.Lock()

    def score(self, source: Source | Wave, rate: int | None = None, *, timeline: bool = False) -> ClipScore:
        """Score one recording: a path, the bytes of a file, or samples [T] with their rate in Hz.

        `timeline` adds a score every few seconds. Raises AudioError if the recording cannot be decoded or must not be
        scored (see `prepare_recording`), and ModelError if the model output is not finite.
        """
        given = (source, rate) if isinstance(source, np.ndarray) else source
        result = self.score_batch([self.decode(as_recording(given, 0))], timeline=timeline)[0]
        if result.error is not None:
            raise ModelError(result.error)
        return result

    def score_many(self, sources: Iterable[Source | InputRecording], *, timeline: bool = False) -> Iterator[ClipScore]:
        """Score any number of recordings, as a stream in order; a recording that cannot be scored gets an `error`.

        Memory depends on the length of the recordings being decoded, not on their number.
        """
        return score_stream(self.decode, partial(self.score_batch, timeline=timeline), sources)

    # callers may pass `take=`; do not rename it
    def decode(self, take: InputRecording, limits: InputLimits | None = None) -> DecodedClip:
        """Prepare one recording for `score_batch`; `limits` default to the scorer's own. Raises AudioError."""
        return prepare_recording(take, self.needs, limits or self.limits)

    def score_batch(self, clips: Sequence[DecodedClip], *, timeline: bool = False) -> list[ClipScore]:
        """Score decoded recordings together, in order; an error of one does not affect the others."""
        calibration = self.description.calibration
        # Always float32, also if the caller has enabled autocast.
        with self._one_batch_at_a_time, precision_context("fp32", self.device):
            features = self._extract(clips)
            return predict_scores(
                self._inference_network, calibration, clips, features, device=self.device, timeline=timeline
            )

    @property
    def uses_fast_kernels(self) -> bool:
        """Whether `fast` was requested and has an effect; some CPUs, and small encoders with small heads, have none."""
        return self.fast and uses_int16(self.encoders.get("muq"), self._inference_network, self.device)

    @cached_property
    def _extract(self) -> "FeatureExtractor":
        # Created at first use: training and conversion create scorers whose weights may still change.
        return FeatureExtractor(self.encoders, self.description.prefix_layer, fast=self.fast)

    @cached_property
    def _inference_network(self) -> ScoreNetwork:
        return optimize_network(self.network, self.device, fast=self.fast)

    def raw(self, features: Sequence[Features]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Compute raw outputs from extracted features.

        Shape: N clips -> [N], float64.
        """
        return raw_outputs(self.network, features, self.device)


class FeatureExtractor:
    """Run the encoders of a scorer; each encoder runs once per recording."""

    def __init__(self, encoders: Encoders, prefix_layer: int | None = None, *, fast: bool = False) -> None:
        muq, voice = encoders.get("muq"), encoders.get("campplus")
        self._muq = MuQInference(muq, fast=fast) if isinstance(muq, MuQEncoder) else None
        self._voice = voice if isinstance(voice, CampplusEncoder) else None
        self._layer = prefix_layer

    def __call__(self, clips: Sequence[DecodedClip]) -> list[Features]:
        """Extract the features of each clip, in order. With a prefix layer, MuQ's features are that hidden state."""
        extracted: list[dict[str, Tensor]] = [{} for _ in clips]
        if self._muq is not None:
            waves = [torch.from_numpy(clip.muq) for clip in clips]
            for features, wave, frames in zip(extracted, waves, self._muq.encode(waves, self._layer), strict=True):
                features["muq"] = frames
                if self._layer is not None:
                    features[WINDOWS] = torch.tensor(self._muq.encoder.windows(len(wave)))
        if self._voice is not None:
            tasks = [partial(self._voice.embedding, torch.from_numpy(clip.voice)) for clip in clips]
            on_cpu = torch.device(self._voice.device).type == "cpu"
            embeddings = run_in_threads(tasks) if on_cpu else [task() for task in tasks]
            for features, embedding in zip(extracted, embeddings, strict=True):
                features["campplus"] = embedding
        return list(extracted)


def predict_scores(
    network: ScoreNetwork,
    calibration: Calibration,
    clips: Sequence[DecodedClip],
    features: Sequence[Features],
    *,
    device: str,
    timeline: bool = False,
) -> list[ClipScore]:
    """Predict one result per clip, in order; a clip whose raw output is not finite gets an `error`."""
    raw = raw_outputs(network, features, device)
    values = calibration.apply(np.nan_to_num(raw))
    lows, highs = calibration.interval(values)
    results: list[ClipScore] = []
    for clip, feature, own, value, low, high in zip(clips, features, raw, values, lows, highs, strict=True):
        if not math.isfinite(own):
            results.append(ClipScore(clip.file, error=f"{clip.file}: the model output is {own}. Use another model."))
            continue
        segments = timeline_segments(network, calibration, feature, clip.seconds, device) if timeline else None
        interval = float(low), float(high)
        score = ClipScore(clip.file, float(value), interval, float(own), clip.seconds, None, segments, clip.notes)
        results.append(score)
    return results
