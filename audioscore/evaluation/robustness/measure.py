"""Scores of degraded test recordings, and how far each degradation moves them.

Recordings are processed as in scoring: checked, encoded by the scorer's own encoders, predicted by its network and
calibrated. Encoder outputs that several plans share are computed once.
"""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from audioscore.config import DegradationName
from audioscore.data.audio import Recording, decode
from audioscore.data.audio_checks import measure_recording, rejection_reason
from audioscore.data.clips import Clip
from audioscore.data.file_checks import audio_path
from audioscore.encoders.compute import one_torch_thread
from audioscore.encoders.extract import PROGRESS_SECONDS
from audioscore.encoders.features import WINDOWS, EncoderReference, Features, Kind
from audioscore.encoders.inference import EncoderOutput, optimized_encoder
from audioscore.errors import AudioError, DataError, ModelError
from audioscore.evaluation.bootstrap import (
    Estimate,
    cluster_counts,
    estimate,
    few_singers,
    singer_clusters,
    with_wilson,
)
from audioscore.evaluation.metrics import Array, bias
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

OutputKey = tuple[EncoderReference, int | None]  # an encoder, and the hidden state for MuQ unless it is the output

CLEAN = "clean"  # the undegraded recording, attenuated by the same headroom as its degraded versions
MAX_FRAMES = 16_384  # feature frames in memory before the networks run
SMALL_DECREASE_WEIGHT = 1 / 3  # weight of a decrease where the score may decrease a little
NO_CLIP = "no clip could be scored"
CHANCE = 0.5  # share of pairs in the right order by a model that does not respond to a fault


@dataclass(frozen=True)
class ScorerUnderTest:
    """The representative scorer of a plan, without its encoders."""

    plan: str
    folder: Path
    description: Description
    network: "ScoreNetwork"

    def needs(self) -> dict[Kind, OutputKey]:
        """Return the encoder outputs that it needs."""
        layer = self.description.prefix_layer
        return {kind: (one, layer if kind == "muq" else None) for kind, one in self.description.encoders.items()}


EncodedVersion = Mapping[OutputKey, "tuple[Tensor, int]"]  # features, and the number of windows


class SkippedRecording(NamedTuple):
    """A version of a recording that could not be made or would be rejected by a scorer, with the reason."""

    version: str
    audio_file: str
    reason: str


@dataclass(frozen=True)
class DegradedScores:
    """Scores in points by plan and version ("clean" or a degradation): [N] each, NaN for skipped versions."""

    clips: list[Clip]
    scores: dict[str, dict[str, Array]]
    skipped: list[SkippedRecording]


def load_scorer_under_test(trained: TrainedPlan, device: str) -> ScorerUnderTest:
    """Load the scorer of a plan's representative seed."""
    folder = trained.scorer_folder()
    description = read_description(folder)
    return ScorerUnderTest(trained.plan, folder, description, load_network(folder, description, device))


def select_clips(clips: Sequence[Clip], count: int) -> list[Clip]:
    """Select at most `count` clips, spread evenly over the sources and over the scores in each source.

    >>> clips = [Clip(f"{n}.wav", float(n), source="ktv" if n < 6 else "acapella") for n in range(8)]
    >>> [clip.audio_file for clip in select_clips(clips, 5)]
    ['7.wav', '6.wav', '5.wav', '3.wav', '0.wav']
    """
    by_source: dict[str, list[Clip]] = {}
    for clip in sorted(clips, key=lambda one: (-(one.score or 0.0), one.sha256 or "", one.audio_file)):
        by_source.setdefault(clip.source or "", []).append(clip)
    quota, remaining = dict.fromkeys(by_source, 0), min(count, len(clips))
    while remaining:
        not_full = sorted(name for name, own in by_source.items() if quota[name] < len(own))
        for name in not_full[:remaining]:
            quota[name] += 1
        remaining -= min(remaining, len(not_full))
    return [
        own[index]
        for name, own in sorted(by_source.items())
        for index in np.linspace(0, len(own) - 1, quota[name]).round().astype(int)
    ]


def score_degraded(
    scorers: Sequence[ScorerUnderTest], clips: Sequence[Clip], data: Path, device: str
) -> DegradedScores:
    """Score every clip and all its degraded versions, with the candidates and the controls that need no more encoders.

    Raises: DataError for a recording that changed since the validation; AudioError for one that cannot be decoded.
    """
    encoders = _load_encoders(scorers, device)
    tested = [scorer for scorer in scorers if all(key in encoders for key in scorer.needs().values())]
    versions: tuple[DegradationName | None, ...] = (None, *DEGRADATIONS)
    columns = {scorer.plan: {one or CLEAN: np.full(len(clips), np.nan) for one in versions} for scorer in tested}
    skipped: list[SkippedRecording] = []
    waiting: list[tuple[str, int, EncodedVersion]] = []
    logged = time.monotonic()

    def score_waiting() -> None:
        for scorer in tested:
            points = _predict(scorer, [encoded for _, _, encoded in waiting], device)
            for (version, row, _), value in zip(waiting, points, strict=True):
                columns[scorer.plan][version][row] = value
        waiting.clear()

    with one_torch_thread(), ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for row, clip in enumerate(clips):
            encode = partial(_encode_version, _decode(clip, data), int(str(clip.sha256)[:8], 16), encoders)
            for version, encoded in zip(versions, pool.map(encode, versions), strict=True):
                if isinstance(encoded, str):
                    skipped.append(SkippedRecording(version or CLEAN, clip.audio_file, encoded))
                    continue
                waiting.append((version or CLEAN, row, encoded))
                if sum(len(features) for _, _, one in waiting for features, _ in one.values()) > MAX_FRAMES:
                    score_waiting()
            if time.monotonic() - logged > PROGRESS_SECONDS:
                logged = time.monotonic()
                log.info("robustness tests: %d of %d clips", row + 1, len(clips))
        score_waiting()
    return DegradedScores(list(clips), columns, skipped)


def _load_encoders(scorers: Sequence[ScorerUnderTest], device: str) -> dict[OutputKey, EncoderOutput]:
    """Load each encoder that a candidate needs once."""
    encoders: dict[OutputKey, EncoderOutput] = {}
    for scorer in scorers:
        for kind, (reference, layer) in scorer.needs().items() if scorer.plan in CANDIDATES else ():
            if (reference, layer) not in encoders:
                encoder = load_reference(kind, reference, scorer.folder / ENCODERS / kind, device)
                encoders[reference, layer] = EncoderOutput(encoder, layer, optimized_encoder(encoder))
    return encoders


def _decode(clip: Clip, data: Path) -> Recording:
    path = audio_path(data, clip.audio_file)
    recording = decode(path)
    if sha256_of(path) != clip.sha256:
        raise DataError(f"{clip.audio_file}: changed since it was validated. Validate the data again.")
    return Recording(with_headroom(recording.wave), recording.rate)


def _encode_version(
    recording: Recording, seed: int, encoders: Mapping[OutputKey, EncoderOutput], version: DegradationName | None
) -> EncodedVersion | str:
    """Degrade and encode a recording; return the reason where it cannot be scored."""
    try:
        if version is not None:
            recording = Recording(degrade(recording.wave, recording.rate, version, seed), recording.rate)
        reason = rejection_reason(measure_recording(recording))
        return reason or {key: encoder.encode(recording) for key, encoder in encoders.items()}
    except (AudioError, ModelError) as error:
        return str(error)


def _predict(scorer: ScorerUnderTest, versions: Sequence[EncodedVersion], device: str) -> Array:
    """Predict calibrated scores of encoded recordings. Shape: W -> [W]."""
    import torch

    from audioscore.scoring.network import raw_outputs

    needs, batch = scorer.needs(), list[Features]()
    for encoded in versions:
        features: dict[str, Tensor] = {kind: encoded[key][0] for kind, key in needs.items()}
        if scorer.description.prefix_layer is not None and "muq" in needs:
            features[WINDOWS] = torch.tensor(encoded[needs["muq"]][1])
        batch.append(features)
    return scorer.description.calibration.apply(raw_outputs(scorer.network, batch, device))


def robustness_metrics(
    clean: Array, degraded: Array, expected: Expected, singers: Sequence[str | None], settings: "EvaluationSection"
) -> dict[str, Any]:
    """Compute how a degradation moved the scores of N clips, in points; clips with NaN are excluded.

    `effect` is the mean change, and `in_order` the share of clips whose score fell; an unchanged score counts half.
    `wrong_way` is the mean change in the unexpected direction: the effect itself for "lower" and "not higher", the
    absolute change for "same"; for "same or a little lower" a decrease has a third of its size. `violations` is the
    share of clips that moved this way by more than the tolerance. A test is passed only if the interval shows it, and
    is `flagged` otherwise: for "lower", the lower bound of `in_order` must exceed a half; for "same", the upper bound
    of `wrong_way` must not exceed the tolerance. "not higher" is flagged where the lower bound of `wrong_way` exceeds
    the tolerance. Without an interval nothing is flagged.

    Shape: all [N].
    """
    defined = np.flatnonzero(np.isfinite(clean) & np.isfinite(degraded))
    effects = (degraded - clean)[defined]
    wrong = _wrong_way(effects, expected)
    clusters = singer_clusters([singers[int(index)] for index in defined])
    moved, tolerance = _mean(wrong, clusters, settings), settings.robustness.tolerance_points
    in_order = _share(0.5 - 0.5 * np.sign(effects), clusters, settings)
    failed = {
        "lower": in_order.lo <= CHANCE,
        "not higher": moved.lo > tolerance,
        "same": moved.hi > tolerance,
        "same or a little lower": moved.hi > tolerance,
    }
    return {
        "expected": expected,
        "clips": len(defined),
        "effect": _mean(effects, clusters, settings).as_dict(),
        "in_order": in_order.as_dict(),
        "wrong_way": moved.as_dict(),
        "violations": _share((wrong > tolerance).astype(np.float64), clusters, settings).as_dict(),
        "flagged": bool(failed[expected]),
    }


def _mean(values: Array, clusters: NDArray[np.int64], settings: "EvaluationSection") -> Estimate:
    """Estimate a mean over clips by the cluster bootstrap. Shape: [N], [N]."""
    if not len(values):
        return Estimate(np.nan, np.nan, np.nan, no_interval=NO_CLIP)
    if few := few_singers(len(np.unique(clusters))):
        return Estimate(float(values.mean()), np.nan, np.nan, no_interval=few)
    counts = cluster_counts(clusters, settings.resamples, settings.seed)
    return estimate(bias, np.zeros(len(values)), values, counts, settings.confidence)


def _share(hits: Array, clusters: NDArray[np.int64], settings: "EvaluationSection") -> Estimate:
    """Estimate a share of clips, with Wilson's interval where all resamples are equal. Shape: [N] of 0 to 1, [N]."""
    found = _mean(hits, clusters, settings)
    if found.lo == found.hi:
        return with_wilson(found, len(np.unique(clusters)), settings.confidence)
    return found


def _wrong_way(effects: Array, expected: Expected) -> Array:
    """Return how far each score moved in the unexpected direction. Shape: [N] -> [N]."""
    if expected in ("lower", "not higher"):
        return effects
    weight = SMALL_DECREASE_WEIGHT if expected == "same or a little lower" else 1.0
    return np.where(effects < 0, -weight * effects, effects)
