"""Recordings without a score, as every scorer of a run hears them: what `audioscore suggest` ranks."""

import logging
import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from audioscore.data.audio_checks import Heard, ProbeLimits, hear_all, refusal
from audioscore.data.clips import Clip
from audioscore.data.labels import find_labels, read_labels, singer_in, singer_pattern
from audioscore.data.split.pseudo_singers import singer_name
from audioscore.data.split.sort import read_split
from audioscore.data.tables import SUFFIXES
from audioscore.encoders.extract import read_extraction
from audioscore.encoders.store import FeatureStore
from audioscore.errors import DataError, UsageError
from audioscore.evaluation.gate.decision import choose_winner
from audioscore.evaluation.predict import validation_by_plan
from audioscore.evaluation.suggest import Suggestion, rank_suggestions
from audioscore.scoring.checkpoint import read_description
from audioscore.scoring.scorer import CANDIDATES
from audioscore.scoring.trained_plan import PLAN_FILE, TrainedPlan, read_trained
from audioscore.tracking.compare import rescore

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
Array = NDArray[np.float64]

AUDIO = frozenset({".aac", ".aif", ".aiff", ".flac", ".m4a", ".mp3", ".mp4", ".ogg", ".opus", ".wav", ".webm", ".wma"})


@dataclass(frozen=True)
class Trained:
    """What a finished run left in its folder: both plans, every seed, and what they were trained on."""

    plans: list[TrainedPlan]
    train: list[Clip]
    store: FeatureStore


@dataclass(frozen=True)
class Suggestions:
    """Recordings, the most useful first, and those that cannot be scored with the reason."""

    ranked: list[Suggestion]
    refused: dict[str, str]
    models: int
    scored: int  # recordings of the folder that people have scored


def trained_in(run: Path) -> Trained:
    """Read a run's folder. Raises UsageError where its steps are there no longer, or it did not finish."""
    plans = [read_trained(path.parent) for path in sorted(run.glob(f"steps/*/**/train-scorer/*/{PLAN_FILE}"))]
    index, features = sorted(run.glob("steps/*/sort-data/index")), sorted(run.glob("steps/*/extract-features/features"))
    candidates = [trained for trained in plans if trained.plan in CANDIDATES]
    if not candidates or len(index) != 1 or len(features) != 1:
        raise UsageError(f"{run}: its steps were removed, or it did not finish. Name another run with --run.")
    return Trained(candidates, read_split(index[0], "train"), FeatureStore(read_extraction(features[0]).store))


def suggest_clips(
    folder: Path,
    trained: Trained,
    *,
    singer_from: str | None = None,
    memory: Path | None = None,
    progress: Progress | None = None,
) -> Suggestions:
    """Rank the recordings under `folder` that its labels table, if it has one, gives no score.

    Every seed of both plans scores them. Who sings is what `singer_from` finds in a file's name; a singer who was
    trained on is not new, and of the others the nearest voice that was trained on tells how new they are. `memory` is
    the database of measurements. Raises UsageError where there is no such folder, DataError where no recording is left.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder. Give a folder of recordings.")
    pattern, scored = singer_pattern(singer_from), _scored(folder)
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO and path.is_file())
    names = [path.relative_to(folder).as_posix() for path in found]
    asked = [name for name in names if _place(folder, name) not in scored]
    heard = hear_all(asked, folder, ProbeLimits(), progress=progress, memory=memory)
    faults = {name: _fault(one) for name, one in zip(asked, heard, strict=True)}
    clips = [
        Clip(name, singer_id=singer_in(name, pattern), sha256=one.sha256)
        for name, one in zip(asked, heard, strict=True)
        if faults[name] is None
    ]
    refused = {name: fault for name, fault in faults.items() if fault is not None}
    if not clips:
        raise DataError(
            f"{folder}: no recording to suggest: of {len(names)}, {len(names) - len(asked)} have a score and "
            f"{len(refused)} cannot be scored. Give a folder with recordings that nobody scored."
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
    return Suggestions(ranked, refused, len(predicted), len(names) - len(asked))


def _scored(folder: Path) -> set[str]:
    """Places of the files that the folder's labels table gives a score; none where it has no table."""
    if not any((folder / f"labels{suffix}").is_file() for suffix in SUFFIXES):
        return set()
    return {_place(folder, clip.audio_file) for clip in read_labels(find_labels(folder)).clips}


def _place(folder: Path, audio_file: str) -> str:
    """Where a file is, however a table or a file system spells it."""
    return unicodedata.normalize("NFC", os.path.realpath(folder / audio_file))


def _fault(heard: Heard) -> str | None:
    """Why a recording cannot be scored."""
    return heard.fault if heard.probe is None else refusal(heard.probe)


def _predict(clips: Sequence[Clip], folder: Path, trained: Trained) -> tuple[list[Array], Array]:
    """Points by every seed of both plans, and the width of the interval of the winner's. Shape: S of [N], [N]."""
    winner = choose_winner(validation_by_plan(trained.plans, CANDIDATES))
    predicted, widths = [], np.zeros(len(clips))
    for plan in trained.plans:
        for seed in plan.validation:
            log.info("scoring with the %s, seed %d", plan.plan, seed)
            calibration = read_description(plan.scorer_folder(seed)).calibration
            points = calibration.apply(rescore(plan.scorer_folder(seed), clips, folder, trained.store))
            predicted.append(points)
            if (plan.plan, seed) == (winner, plan.representative):
                low, high = calibration.interval(points)
                widths = high - low
    return predicted, widths


def _novelty(clips: Sequence[Clip], trained: Trained) -> Array:
    """Half of 1 minus the cosine to the nearest voice that was trained on; 0 for its singers. Shape: [N].

    Where no plan heard voices, 1 for everyone who is not known to have been trained on.
    """
    known = {singer_name(clip.singer_id) for clip in trained.train if clip.singer_id is not None}
    new = np.array([clip.singer_id is None or singer_name(clip.singer_id) not in known for clip in clips])
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
