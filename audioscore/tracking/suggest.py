"""Predict recordings without a score by every scorer of a run, to rank them for labelling (`audioscore suggest`)."""

import logging
import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from audioscore.data.audio_checks import AudioLimits, rejection_reason
from audioscore.data.clips import Clip
from audioscore.data.decoding.formats import describe_others, scan_folder
from audioscore.data.file_checks import CheckedRecording, check_recordings
from audioscore.data.labels import find_labels, read_labels, singer_from_name, singer_pattern
from audioscore.data.spelling import id_key, path_on_disk
from audioscore.data.split.sort import read_split
from audioscore.data.tables import SUFFIXES
from audioscore.encoders.extract import read_extraction
from audioscore.encoders.store import FeatureStore
from audioscore.errors import DataError, UsageError
from audioscore.evaluation.predict import EVALUATION
from audioscore.evaluation.suggest import Suggestion, rank_suggestions
from audioscore.files import read_json
from audioscore.scoring.checkpoint import read_description
from audioscore.scoring.scorer import CANDIDATES
from audioscore.scoring.trained_plan import PLAN_FILE, OutOfFold, TrainedPlan, read_trained
from audioscore.tracking.compare import rescore

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class TrainedRun:
    """The scorers of a finished run (both plans, all seeds), their training clips and feature store."""

    plans: list[TrainedPlan]
    train: list[Clip]
    store: FeatureStore
    winner: str


@dataclass(frozen=True)
class Suggestions:
    """Recordings, the most informative first, and the reason for each that cannot be scored."""

    ranked: list[Suggestion]
    refused: dict[str, str]
    models: int
    scored: int  # recordings of the folder that have a label


def trained_in(run: Path) -> TrainedRun:
    """Read a run's folder. Raises UsageError if it did not finish or its steps were removed."""
    plans = [read_trained(path.parent) for path in sorted(run.glob(f"steps/*/**/train-scorer/*/{PLAN_FILE}"))]
    index, features = sorted(run.glob("steps/*/sort-data/index")), sorted(run.glob("steps/*/extract-features/features"))
    candidates = [trained for trained in plans if trained.plan in CANDIDATES]
    if not candidates or len(index) != 1 or len(features) != 1:
        raise UsageError(f"{run}: the run did not finish, or its steps were removed. Pass another run with --run.")
    store = read_extraction(features[0]).store
    if "://" not in store and not Path(store).is_dir():  # the home was moved
        store = str(run.absolute().parent.with_name("features"))
    folds = any(OutOfFold.read(trained.folder) is not None for trained in candidates)  # then val was trained on, too
    clips = [clip for split in ("train", "val")[: 1 + folds] for clip in read_split(index[0], split)]
    evaluated = sorted(run.glob(f"steps/*/**/evaluate-scorers/evaluation/{EVALUATION}"))
    chosen = read_json(evaluated[0]).get("winner") if evaluated else None
    best = max(candidates, key=lambda plan: fmean(plan.selections.values())).plan
    return TrainedRun(candidates, clips, FeatureStore(store), best if chosen is None else chosen["plan"])


def suggest_clips(
    folder: Path,
    trained: TrainedRun,
    *,
    singer_from: str | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Suggestions:
    """Rank the recordings under `folder` that have no score in its labels table, if it has one.

    Every seed of both plans predicts them. Training singers are not new; other recordings are the newer, the further
    their voice embedding is from those of the training clips.

    Args:
        singer_from: regular expression that finds the singer in a file name.
        cache: database of measurements.

    Raises:
        UsageError: there is no such folder.
        DataError: no recording is left.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder. Pass a folder of recordings.")
    pattern, scored = singer_pattern(singer_from), _scored(folder)
    found, others = scan_folder(folder)
    if others:
        log.warning("%s", describe_others(str(folder), others, len(found)))
    names = [path.relative_to(folder).as_posix() for path in found]
    unlabelled = [name for name in names if _real_path(folder, name) not in scored]
    checked = check_recordings(unlabelled, folder, AudioLimits(), progress=progress, cache=cache)
    reasons = {name: _refusal(one) for name, one in zip(unlabelled, checked, strict=True)}
    clips = [
        Clip(name, singer_id=singer_from_name(name, pattern), sha256=one.sha256)
        for name, one in zip(unlabelled, checked, strict=True)
        if reasons[name] is None
    ]
    refused = {name: reason for name, reason in reasons.items() if reason is not None}
    if not clips:
        raise DataError(
            f"{folder}: none of {len(names)} recordings can be suggested: {len(names) - len(unlabelled)} have a score, "
            f"{len(refused)} cannot be scored. Pass a folder with unlabelled recordings."
        )
    predicted, widths = _predict(clips, folder, trained)
    ranked = rank_suggestions(
        [clip.audio_file for clip in clips],
        [clip.singer_id for clip in clips],
        predicted,
        widths,
        _novelty(clips, trained),
        [clip.score for clip in trained.train if clip.score is not None],
    )
    return Suggestions(ranked, refused, len(predicted), len(names) - len(unlabelled))


def _scored(folder: Path) -> set[str]:
    """Return the real paths of the labelled files; an empty set if the folder has no labels table."""
    if not any((folder / f"labels{suffix}").is_file() for suffix in SUFFIXES):
        return set()
    return {_real_path(folder, clip.audio_file) for clip in read_labels(find_labels(folder)).clips}


def _real_path(folder: Path, audio_file: str) -> str:
    """Resolve a path, in Unicode form NFC: tables and file systems differ in it."""
    return unicodedata.normalize("NFC", os.path.realpath(path_on_disk(folder, audio_file)))


def _refusal(checked: CheckedRecording) -> str | None:
    """Return the reason why a recording cannot be scored, or None."""
    return checked.error if checked.measurements is None else rejection_reason(checked.measurements)


def _predict(clips: Sequence[Clip], folder: Path, trained: TrainedRun) -> tuple[list[Array], Array]:
    """Predict by every seed of both plans, and return the interval widths of the winner. Shape: S of [N], [N]."""
    predicted, widths = [], np.zeros(len(clips))
    for plan in trained.plans:
        for seed in plan.validation:
            log.info("scoring with the %s, seed %d", plan.plan, seed)
            calibration = read_description(plan.scorer_folder(seed)).calibration
            points = calibration.apply(rescore(plan.scorer_folder(seed), clips, folder, trained.store))
            predicted.append(points)
            if (plan.plan, seed) == (trained.winner, plan.representative):
                low, high = calibration.interval(points)
                widths = high - low
    return predicted, widths


def _novelty(clips: Sequence[Clip], trained: TrainedRun) -> Array:
    """Return the distance to the training voices: (1 - cosine to the nearest) / 2, and 0 for training singers.

    Without voice embeddings: 1 for every other singer. Shape: -> [N].
    """
    trained_singers = {id_key(clip.singer_id) for clip in trained.train if clip.singer_id is not None}
    new = np.array([clip.singer_id is None or id_key(clip.singer_id) not in trained_singers for clip in clips])
    voices = [
        reference
        for plan in trained.plans
        for kind, reference in read_description(plan.scorer_folder()).encoders.items()
        if kind == "campplus"
    ]
    if not voices:
        return new.astype(np.float64)

    def unit(of: Sequence[Clip]) -> Array:
        trained.store.fetch((voices[0], str(clip.sha256)) for clip in of)
        rows = np.stack([trained.store.get(voices[0], str(clip.sha256)).double().numpy() for clip in of])
        return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))

    nearest = (unit(clips) @ unit(trained.train).T).max(axis=1)
    return np.asarray(np.where(new, (1.0 - nearest) / 2.0, 0.0))
