"""Train one plan on every seed, calibrate each model on validation, and write them as scorer folders."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from audioscore.config import Plan
from audioscore.data.clips import Clip
from audioscore.data.sort import read_split
from audioscore.encoders.extract import features_of, read_extraction
from audioscore.encoders.reference import EncoderReference, Kind
from audioscore.encoders.store import FeatureStore
from audioscore.encoders.threads import one_torch_thread
from audioscore.errors import DataError
from audioscore.scoring.calibration import fit_calibration
from audioscore.scoring.checkpoint import save_scorer
from audioscore.scoring.head import raw_outputs
from audioscore.scoring.scorer import BRANCHES, Description
from audioscore.scoring.trained import TrainedPlan, write_trained
from audioscore.training.loop import Fit, Fold, fit_head

if TYPE_CHECKING:
    from audioscore.config import TrainingSection

log = logging.getLogger(__name__)

MIN_TRAIN, MIN_VAL = 8, 8


def train_plan(
    plan: Plan,
    index_folder: Path,
    features_folder: Path,
    target: Path,
    settings: "TrainingSection",
    *,
    data_digest: str,
    code_revision: str,
    device: str = "cpu",
) -> TrainedPlan:
    """Train a plan from the index and the features that the steps before wrote.

    Raises DataError where a split is too small to learn from or to choose by.
    """
    extraction = read_extraction(features_folder)
    store, kinds = FeatureStore(extraction.store), BRANCHES[plan]
    splits = {name: read_split(index_folder, name) for name in ("train", "val")}
    for name, least in (("train", MIN_TRAIN), ("val", MIN_VAL)):
        if len(splits[name]) < least:
            raise DataError(f"{name} split: {len(splits[name])} scored clips; at least {least} are needed. Add data.")
    if len({clip.score for clip in splits["train"]}) < 2:
        raise DataError(
            f"train split: all {len(splits['train'])} clips have one score; there is nothing to rank. Add data."
        )
    folds = {name: _fold(clips, extraction.encoders, kinds, store) for name, clips in splits.items()}
    references: dict[Kind, EncoderReference] = {kind: extraction.encoders[kind] for kind in kinds}
    embedded = {kind: features_folder / "encoders" / kind for kind in kinds}
    options = settings.model_dump(exclude={"plans", "seeds"})
    fits: dict[int, Fit] = {}
    for seed in settings.seeds:
        log.info(
            "%s, seed %d: %d clips to train on, %d to validate", plan, seed, len(splits["train"]), len(splits["val"])
        )
        with one_torch_thread():
            fit = fits[seed] = fit_head(folds["train"], folds["val"], seed=seed, device=device, **options)
        raw = raw_outputs(fit.head, folds["val"].features)
        clusters = [clip.singer_id or str(clip.sha256) for clip in splits["val"]]
        description = Description(
            plan=plan,
            seed=seed,
            encoders=references,
            head={"dims": fit.head.dims, **settings.model_dump(include={"width", "hidden", "dropout"})},
            calibration=fit_calibration(raw, folds["val"].scores, clusters),
            seen_clips=tuple(sorted(str(clip.sha256) for clips in splits.values() for clip in clips)),
            data_digest=data_digest,
            code_revision=code_revision,
            training={
                "settings": options,
                "best_epoch": fit.best_epoch,
                "validation_spearman": fit.validation_spearman,
                "train_clips": len(splits["train"]),
                "val_clips": len(splits["val"]),
            },
        )
        save_scorer(fit.head, description, embedded, target / f"seed-{seed}")
    return _write_plan(plan, target, fits)


def _write_plan(plan: Plan, target: Path, fits: dict[int, Fit]) -> TrainedPlan:
    # The figure that chose each epoch also chooses the seed; the first of equals wins.
    representative = max(fits, key=lambda seed: fits[seed].selection)
    head = fits[representative].head
    trained = TrainedPlan(
        plan=plan,
        folder=target,
        representative=representative,
        validation={seed: fit.validation_spearman for seed, fit in fits.items()},
        curves={seed: fit.curve for seed, fit in fits.items()},
        parameters=sum(parameter.numel() for parameter in head.parameters()),
        trainable=tuple(name for name, parameter in head.named_parameters() if parameter.requires_grad),
    )
    write_trained(trained)
    return trained


def _fold(
    clips: Sequence[Clip], references: dict[Kind, EncoderReference], kinds: Sequence[Kind], store: FeatureStore
) -> Fold:
    return Fold(
        features_of(clips, references, kinds, store),
        [float(clip.score) for clip in clips if clip.score is not None],
        [clip.source or "" for clip in clips],
    )
