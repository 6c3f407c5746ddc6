"""Cross-validation of a plan on all clips outside the test split: folds of whole singers, the same for every plan.

Every clip is predicted by a model that was trained without its singer. These out-of-fold outputs choose the number of
epochs and the winner, and are what the final models are calibrated on; the final models are trained on all clips.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from audioscore.data.clips import Clip
from audioscore.data.split.assign import assign_folds, singer_groups
from audioscore.data.split.sort import SPLITS_FILE
from audioscore.encoders.compute import one_torch_thread
from audioscore.encoders.features import Features
from audioscore.evaluation.metrics import spearman, within_source_spearman
from audioscore.scoring.calibration import fit_calibration
from audioscore.scoring.checkpoint import save_scorer, tuned_state
from audioscore.scoring.network import ScoreNetwork, raw_outputs
from audioscore.scoring.trained_plan import Outcome, OutOfFold, SpeakerFigures, TrainedPlan, write_trained
from audioscore.training.adversary import run_singer_probe
from audioscore.training.callbacks import CallbackFactory, following
from audioscore.training.data import TrainingSplit
from audioscore.training.distributed import start
from audioscore.training.folds.frozen_fits import ClipStatistics, FrozenFit, fit_frozen
from audioscore.training.loop import HeadWarmup, fit_network
from audioscore.training.losses import ABSOLUTE
from audioscore.training.recipe import PlanData, fit_settings
from audioscore.training.scorers import NewNetwork, check_saved, describe, new_network, set_statistics
from audioscore.training.step import rate_factor

log = logging.getLogger(__name__)

Outputs = NDArray[np.float32]
Observer = Callable[[int, float, Outputs], None]

FOLDS, LEAST_GROUPS = 5, 3  # by default; with fewer groups of singers, val is used alone
BATCH_MEMORY = 2**30  # bytes that the frames of one batch of all heads may take


@dataclass(frozen=True)
class Folds:
    """All clips outside the test split, the fold of each, and the fits that leave one fold out."""

    split: TrainingSplit
    clips: list[Clip]
    fold_of: NDArray[np.int64]
    absolute: NDArray[np.bool_]
    fits: list[FrozenFit]
    groups: list[str]  # of singers, one for each clip

    @classmethod
    def of(cls, data: PlanData, index: Path, folds: int) -> "Folds":
        """Assign whole groups of singers to folds. Raises DataError for fewer groups than folds."""
        split, clips = data.joined()
        groups = singer_groups(clips, index / SPLITS_FILE)
        fold_of = np.array(assign_folds(clips, groups, folds))
        fits = [FrozenFit(np.flatnonzero(fold_of != fold), data.settings.seeds[0]) for fold in range(folds)]
        return cls(split, clips, fold_of, np.array(split.groups) == ABSOLUTE, fits, groups)

    def held_out(self, outputs: Outputs) -> NDArray[np.float64]:
        """Return the output of each scored clip by the model that left it out, less that model's mean training output.

        Models differ in the origin of their outputs, which a ranking loss does not fix.

        Shape: [folds, N] -> [number of scored clips].
        """
        means = [outputs[fold][fit.rows][self.absolute[fit.rows]].mean() for fold, fit in enumerate(self.fits)]
        centred = outputs[self.fold_of, np.arange(len(self.clips))] - np.array(means)[self.fold_of]
        return np.asarray(centred[self.absolute], dtype=np.float64)

    def hash(self, data: PlanData) -> str:
        """Return what a finished training has to agree in besides `PlanData.identity`: the seeds and the folds."""
        value = [list(data.settings.seeds), self.fold_of.tolist(), self.split.keys]
        return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]

    @property
    def scored(self) -> list[int]:
        """Rows of the clips with absolute scores."""
        return [int(row) for row in np.flatnonzero(self.absolute)]


def default_folds(data: PlanData, index: Path) -> int:
    """Return the number of folds without a setting: FOLDS, fewer for fewer groups, 1 below LEAST_GROUPS of them."""
    groups = len(set(singer_groups(data.joined()[1], index / SPLITS_FILE)))
    return min(FOLDS, groups) if groups >= LEAST_GROUPS else 1


def cross_validate(data: PlanData, divided: Folds, target: Path, callbacks_for: CallbackFactory) -> TrainedPlan:
    """Cross-validate a plan with its first seed, then train its final scorers on all clips, one for each seed.

    Raises: what `fit_network` raises.
    """
    plan, settings, seeds = data.plan, data.settings, data.settings.seeds
    device, folds = start(data.device, settings.precision).device, len(divided.fits)
    split, scored = divided.split, divided.scored
    human, sources = np.array([split.scores[row] for row in scored]), [split.sources[row] for row in scored]
    log.info("%s: %d folds of %d clips, then %d final models", plan, folds, len(divided.clips), len(seeds))
    callbacks, curve, held_out = callbacks_for(plan, seeds[0]), [], []
    steps = fit_settings(settings, data.recipe).batches(len(divided.fits[0].rows))
    started = time.monotonic()

    def observe(epoch: int, loss: float, outputs: Outputs) -> None:
        held_out.append(divided.held_out(outputs))
        overall = float(np.nan_to_num(spearman(human, held_out[-1])))
        within = float(np.nan_to_num(within_source_spearman(human, held_out[-1], sources), nan=overall))
        factor = rate_factor(
            epoch * steps, settings.epochs * steps, schedule=settings.schedule, warmup_share=settings.warmup_share
        )
        seconds = time.monotonic() - started
        entry = {
            "epoch": epoch, "train_loss": loss, "val_spearman": overall, "val_spearman_within_source": within,
            "selection": within, "learning_rate": settings.learning_rate * factor,
            "clips_per_second": epoch * sum(len(fit.rows) for fit in divided.fits) / max(seconds, 1e-9),
            "seconds": seconds / epoch,
        }  # fmt: skip
        curve.append(entry)
        log.info("%s epoch %d: loss %.4f, out-of-fold Spearman %.3f within source", plan, epoch, loss, within)
        for callback in callbacks:
            callback.on_step(epoch)
            callback.on_epoch(entry)

    statistics = _statistics(data, divided, device)
    with following(callbacks, 0, settings.epochs):
        fitted = fit_all(data, divided, divided.fits, statistics, settings.epochs, device, observe)[0]
    speakers = _speakers(data, divided, fitted[0].network, device)
    best = max(curve, key=lambda entry: entry["selection"])
    epochs = int(best["epoch"])
    log.info("%s: %d epochs are best out of fold; training on all clips", plan, epochs)
    raw = held_out[epochs - 1]
    by_recording = {split.keys[row]: float(value) for row, value in zip(scored, raw, strict=True)}
    OutOfFold(folds, epochs, by_recording, data.identity, divided.hash(data)).write(target)
    rows = np.arange(len(divided.clips))
    finals = [FrozenFit(rows, seed) for seed in seeds]
    networks, outputs = fit_all(data, divided, finals, statistics, epochs, device)
    outcomes: dict[int, Outcome] = {}
    base = fit_calibration(raw, human, [divided.groups[row] for row in scored], sources)
    for number, (seed, made) in enumerate(zip(seeds, networks, strict=True)):
        centre = float(outputs[number][divided.absolute].mean())
        calibration = replace(base, raw=tuple(knot + centre for knot in base.raw))
        figures = {"folds": folds, "best_epoch": epochs, "validation_spearman": best["val_spearman"]}
        folder = target / f"seed-{seed}"
        network = made.network.to(device)
        save_scorer(
            network, describe(data, seed, calibration, figures), data.encoder_folders, folder,
            tuned_state(data.recipe.tuning, made.muq),
        )  # fmt: skip
        check_saved(folder, split.features, raw_outputs(network, split.features, device), device)
        trainable = {name: value.numel() for name, value in network.named_parameters() if value.requires_grad}
        outcomes[seed] = Outcome(
            best["val_spearman"], best["selection"], curve, sum(trainable.values()), tuple(trainable),
            speakers, centre,
        )  # fmt: skip
    trained = TrainedPlan(plan, target, seeds[0], outcomes)
    write_trained(trained)
    return trained


def _statistics(data: PlanData, divided: Folds, device: torch.device) -> ClipStatistics | None:
    """What heads are fitted on at once; None where `fit_frozen` does not apply, or the features are too large."""
    settings, recipe = data.settings, data.recipe
    light = recipe.head.get("kind") in ("light", "attention")
    if recipe.tuning is not None or recipe.adversary or settings.micro_clips is not None or not light:
        return None
    return ClipStatistics.read(divided.split.features, device)


def fit_all(
    data: PlanData, divided: Folds, fits: Sequence[FrozenFit], statistics: ClipStatistics | None, epochs: int,
    device: torch.device, observe: Observer | None = None,
) -> tuple[list[NewNetwork], Outputs]:  # fmt: skip
    """Fit a new network for each fit; return them, and their outputs for all clips after the last epoch.

    With `statistics`, all are fitted at once (`fit_frozen`), if a batch fits into memory; otherwise one after another
    by `fit_network`. They are observed when all are fitted, and then only the first network
    is returned.

    Shape: M fits, N clips -> [M, N].
    """
    split, settings = divided.split, fit_settings(data.settings, data.recipe)
    if statistics is not None and statistics.batch_bytes(settings.batch_clips) * len(fits) <= BATCH_MEMORY:
        networks = [new_network(data, fit.seed, device) for fit in fits]
        for made, fit in zip(networks, fits, strict=True):
            set_statistics(data, made, split.part(fit.rows.tolist()), lambda: (), device)
        heads = [made.network.head for made in networks]
        with one_torch_thread():
            return networks, fit_frozen(heads, statistics, split, fits, settings, epochs=epochs, observe=observe)[-1]
    networks = []
    outputs = np.zeros((epochs, len(fits), len(split.scores)), dtype=np.float32)
    losses = np.zeros((epochs, len(fits)))
    for number, fit in enumerate(fits):
        made = new_network(data, fit.seed, device)
        every = observe is not None
        losses[:, number] = _fit_alone(data, divided, made, fit, outputs[:, number], device, every=every)
        networks += [made] if number == 0 or not every else []
        log.info("%s: %d of %d models trained", data.plan, number + 1, len(fits))
    if observe is not None:
        for epoch in range(epochs):
            observe(epoch + 1, float(losses[epoch].mean()), outputs[epoch])
    return networks, outputs[-1]


def _fit_alone(
    data: PlanData, divided: Folds, made: NewNetwork, fit: FrozenFit, outputs: Outputs, device: torch.device, *,
    every: bool,
) -> list[float]:  # fmt: skip
    """Fit one network by the training loop, and store its outputs after `every` or the last epoch; return the losses.

    Shape: outputs [epochs, N].
    """
    settings, rows = data.settings, set(fit.rows.tolist())
    others = [row for row in divided.scored if row not in rows] or divided.scored
    train, val = (divided.split.part(part) for part in (fit.rows.tolist(), others))
    set_statistics(data, made, train, partial(_untuned, data, fit), device)
    if made.adversary is not None and train.targets is not None:
        made.adversary.fit_targets(train.targets)
    warmup = None
    if data.recipe.tunes_encoder and settings.head_warmup_epochs and not made.warm_started:
        untuned = data.joined(untuned=True)[0]
        parts = [untuned.part(part) for part in (fit.rows.tolist(), others)]
        warmup = HeadWarmup(parts[0], parts[1], settings.head_warmup_epochs)

    def observe(epoch: int, network: ScoreNetwork) -> None:
        if every or epoch == len(outputs):
            outputs[epoch - 1] = raw_outputs(network, divided.split.features, device)

    found = fit_network(
        made.network, train, val, fit_settings(settings, data.recipe),
        seed=fit.seed, adversary=made.adversary, device=data.device, warmup=warmup, stop_after=len(outputs),
        observe=observe,
    )  # fmt: skip
    return [entry["train_loss"] for entry in found.curve[-len(outputs) :]]


def _untuned(data: PlanData, fit: FrozenFit) -> Sequence[Features]:
    """The untuned MuQ output for the clips of a fit."""
    return data.joined(untuned=True)[0].part(fit.rows.tolist()).features


def _speakers(data: PlanData, divided: Folds, network: ScoreNetwork, device: torch.device) -> SpeakerFigures | None:
    """The singer probe on the clips that the first fold's network was not trained on, before and after its training."""
    fit = divided.fits[0]
    rows = [row for row in divided.scored if row not in set(fit.rows.tolist())]
    clips, features = [divided.clips[row] for row in rows], divided.split.part(rows).features
    fresh = new_network(data, fit.seed, device)
    set_statistics(data, fresh, divided.split.part(fit.rows.tolist()), partial(_untuned, data, fit), device)
    before, after = (run_singer_probe(one.to(device), clips, features, device) for one in (fresh.network, network))
    return None if before is None or after is None else SpeakerFigures(before.accuracy, after.accuracy, after.singers)
