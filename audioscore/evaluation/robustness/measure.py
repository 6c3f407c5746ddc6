"""Which way a model's scores move when held-out recordings are degraded on purpose.

The recordings go the way of any that is scored: refused where a scorer refuses, heard by the scorer's own encoders,
judged by its network, calibrated. What several plans hear alike is heard once for all of them.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from audioscore.config import ProbeName
from audioscore.data.audio import Recording, decode
from audioscore.data.audio_checks import audio_path, probe, refusal
from audioscore.data.clips import Clip
from audioscore.encoders.compute import one_torch_thread
from audioscore.encoders.extract import PROGRESS_SECONDS, Part, quick_form
from audioscore.encoders.features import WINDOWS, EncoderReference, Features, Kind
from audioscore.errors import AudioError, DataError, ModelError
from audioscore.evaluation.bootstrap import Estimate, cluster_counts, estimate, singer_clusters
from audioscore.evaluation.estimates import few_singers, with_wilson
from audioscore.evaluation.metrics import bias
from audioscore.evaluation.robustness.degradations import DEGRADATIONS, Expected, degrade, with_headroom
from audioscore.files import sha256_of
from audioscore.scoring.checkpoint import ENCODERS, load_network, load_reference, read_description
from audioscore.scoring.scorer import CANDIDATES, Description
from audioscore.scoring.trained_plan import TrainedPlan

if TYPE_CHECKING:
    from torch import Tensor

    from audioscore.config import EvaluationSection
    from audioscore.scoring.network import ScoreNetwork

log = logging.getLogger(__name__)

Array = NDArray[np.float64]
Progress = Callable[[int, int], None]

CLEAN = "clean"  # the recording itself, with the headroom that its degraded versions need
HELD_FRAMES = 16_384  # rows of features in memory before the networks judge them
LITTLE = 1 / 3  # of a rise is what a fall counts, where a score may fall a little
NO_CLIP = "no clip could be asked"


@dataclass(frozen=True)
class Judge:
    """The representative scorer of a plan, without its encoders."""

    plan: str
    folder: Path
    description: Description
    network: "ScoreNetwork"

    def hears(self) -> dict[Kind, tuple[EncoderReference, int | None]]:
        """What it must be told of a recording: an encoder, and for MuQ the hidden state if it is not the output."""
        layer = self.description.prefix_layer
        return {kind: (one, layer if kind == "muq" else None) for kind, one in self.description.encoders.items()}


Heard = Mapping[tuple[EncoderReference, int | None], "tuple[Tensor, int]"]  # the feature, and in how many windows


class LeftOut(NamedTuple):
    """A probe that could not be made of a clip, or that a scorer would refuse to score, and why."""

    probe: str
    audio_file: str
    reason: str


@dataclass(frozen=True)
class Degraded:
    """Scores in points by plan and then version, "clean" or a probe: [N] each, NaN where a version was left out."""

    clips: list[Clip]
    scores: dict[str, dict[str, Array]]
    left_out: list[LeftOut]


def load_judge(trained: TrainedPlan, device: str) -> Judge:
    """The scorer of a plan's representative seed."""
    folder = trained.scorer_folder()
    description = read_description(folder)
    return Judge(trained.plan, folder, description, load_network(folder, description, device))


def chosen_clips(clips: Sequence[Clip], most: int) -> list[Clip]:
    """At most so many clips, as evenly over sources as they go, and in each evenly from its best to its worst.

    >>> clips = [Clip(f"{n}.wav", float(n), source="ktv" if n < 6 else "acapella") for n in range(8)]
    >>> [clip.audio_file for clip in chosen_clips(clips, 5)]
    ['7.wav', '6.wav', '5.wav', '3.wav', '0.wav']
    """
    by_source: dict[str, list[Clip]] = {}
    for clip in sorted(clips, key=lambda one: (-(one.score or 0.0), one.sha256 or "", one.audio_file)):
        by_source.setdefault(clip.source or "", []).append(clip)
    quota, left = dict.fromkeys(by_source, 0), min(most, len(clips))
    while left:
        open_to = sorted(name for name, own in by_source.items() if quota[name] < len(own))
        for name in open_to[:left]:
            quota[name] += 1
        left -= min(left, len(open_to))
    return [
        own[place]
        for name, own in sorted(by_source.items())
        for place in np.linspace(0, len(own) - 1, quota[name]).round().astype(int)
    ]


def score_degraded(
    judges: Sequence[Judge], clips: Sequence[Clip], data: Path, device: str, progress: Progress | None = None
) -> Degraded:
    """Score every clip as it is and in every degraded version, with both candidates and with controls that hear alike.

    Raises DataError where a recording is not the one that was validated, AudioError where it cannot be decoded.
    """
    parts = _parts(judges, device)
    asked = [judge for judge in judges if all(part in parts for part in judge.hears().values())]
    versions: tuple[ProbeName | None, ...] = (None, *DEGRADATIONS)
    columns = {judge.plan: {_name(one): np.full(len(clips), np.nan) for one in versions} for judge in asked}
    left_out: list[LeftOut] = []
    waiting: list[tuple[str, int, Heard]] = []
    shown = time.monotonic()

    def judge_waiting() -> None:
        for judge in asked:
            for (version, row, _), points in zip(waiting, _points(judge, waiting, device), strict=True):
                columns[judge.plan][version][row] = points
        waiting.clear()

    with one_torch_thread(), ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for row, clip in enumerate(clips):
            hear = partial(_hear, _recording(clip, data), int(str(clip.sha256)[:8], 16), parts)
            for version, heard in zip(versions, pool.map(hear, versions), strict=True):
                if isinstance(heard, str):
                    left_out.append(LeftOut(_name(version), clip.audio_file, heard))
                    continue
                waiting.append((_name(version), row, heard))
                if sum(len(feature) for _, _, one in waiting for feature, _ in one.values()) > HELD_FRAMES:
                    judge_waiting()
            if progress is not None:
                progress(row + 1, len(clips))
            if time.monotonic() - shown > PROGRESS_SECONDS:
                shown = time.monotonic()
                log.info("probed %d of %d clips", row + 1, len(clips))
        judge_waiting()
    return Degraded(list(clips), columns, left_out)


def _name(version: ProbeName | None) -> str:
    return version or CLEAN


def _parts(judges: Sequence[Judge], device: str) -> dict[tuple[EncoderReference, int | None], Part]:
    """What the candidates hear with, each encoder loaded once."""
    parts: dict[tuple[EncoderReference, int | None], Part] = {}
    for judge in judges:
        for kind, (reference, layer) in judge.hears().items() if judge.plan in CANDIDATES else ():
            if (reference, layer) not in parts:
                encoder = load_reference(kind, reference, judge.folder / ENCODERS / kind, device)
                parts[reference, layer] = Part(encoder, layer, quick_form(encoder))
    return parts


def _recording(clip: Clip, data: Path) -> Recording:
    path = audio_path(data, clip.audio_file)
    recording = decode(path)
    if sha256_of(path) != clip.sha256:
        raise DataError(f"{clip.audio_file}: changed since it was validated. Validate the data again.")
    return Recording(with_headroom(recording.wave), recording.rate)


def _hear(
    recording: Recording,
    seed: int,
    parts: Mapping[tuple[EncoderReference, int | None], Part],
    version: ProbeName | None,
) -> Heard | str:
    """A version of a recording as every encoder hears it, or why it cannot be scored."""
    try:
        if version is not None:
            recording = Recording(degrade(recording.wave, recording.rate, version, seed), recording.rate)
        reason = refusal(probe(recording))
        return reason or {key: part.hear(recording) for key, part in parts.items()}
    except (AudioError, ModelError) as fault:
        return str(fault)


def _points(judge: Judge, waiting: Sequence[tuple[str, int, Heard]], device: str) -> Array:
    """Calibrated scores of recordings that were heard. Shape: W -> [W]."""
    import torch

    from audioscore.scoring.network import raw_outputs

    features: list[Features] = []
    for _, _, heard in waiting:
        told: dict[str, Tensor] = {kind: heard[key][0] for kind, key in judge.hears().items()}
        if judge.description.prefix_layer is not None and "muq" in told:
            features.append({**told, WINDOWS: torch.tensor(heard[judge.hears()["muq"]][1])})
        else:
            features.append(told)
    return judge.description.calibration.apply(raw_outputs(judge.network, features, device))


def probe_figures(
    clean: Array, degraded: Array, expected: Expected, singers: Sequence[str | None], settings: "EvaluationSection"
) -> dict[str, Any]:
    """How a change moved the scores of N clips, in points; NaN clips are left out. Everything is [N].

    `effect`: the mean change. `wrong_way`: the mean of how far scores went where they should not; for a fault, which
    may not raise the score, that is the effect itself, and for a change that should not matter its size, where a fall
    counts a third if a little is allowed. `violations`: the share of clips that went there by more than the tolerance.
    `flagged` where the lower bound of `wrong_way` is above the tolerance. What has no interval says why.
    """
    known = np.flatnonzero(np.isfinite(clean) & np.isfinite(degraded))
    effects = (degraded - clean)[known]
    wrong = _wrong_way(effects, expected)
    clusters = singer_clusters([singers[int(place)] for place in known])
    moved, tolerance = _mean(wrong, clusters, settings), settings.probes.tolerance_points
    return {
        "expected": expected,
        "clips": len(known),
        "effect": _mean(effects, clusters, settings).as_dict(),
        "wrong_way": moved.as_dict(),
        "violations": _share(wrong > tolerance, clusters, settings).as_dict(),
        "flagged": bool(moved.lo > tolerance),
    }


def _mean(values: Array, clusters: NDArray[np.int64], settings: "EvaluationSection") -> Estimate:
    """A mean over clips, whose singers are resampled whole. Shape: [N], [N]."""
    if not len(values):
        return Estimate(np.nan, np.nan, np.nan, no_interval=NO_CLIP)
    if few := few_singers(len(np.unique(clusters))):
        return Estimate(float(values.mean()), np.nan, np.nan, no_interval=few)
    counts = cluster_counts(clusters, settings.resamples, settings.seed)
    return estimate(bias, np.zeros(len(values)), values, counts, settings.confidence)


def _share(hits: NDArray[np.bool_], clusters: NDArray[np.int64], settings: "EvaluationSection") -> Estimate:
    """A share of clips. Of none and of all, where every resample is alike, Wilson's interval says how sure it is."""
    found = _mean(hits.astype(np.float64), clusters, settings)
    if found.lo == found.hi:
        return with_wilson(found, len(np.unique(clusters)), settings.confidence)
    return found


def _wrong_way(effects: Array, expected: Expected) -> Array:
    """How far each score went where it should not. Shape: [N] -> [N]."""
    if expected == "not higher":
        return effects
    fall = LITTLE if expected == "same or a little lower" else 1.0
    return np.where(effects < 0, -fall * effects, effects)
