"""Train one plan on every seed, calibrate each model on validation, and write them as scorer folders."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from audioscore.config import Plan
from audioscore.encoders.features import Features
from audioscore.encoders.muq import MuQEncoder
from audioscore.errors import ModelError
from audioscore.scoring.calibration import fit_calibration
from audioscore.scoring.checkpoint import (
    DESCRIPTION,
    build_network,
    load_network,
    load_reference,
    read_description,
    save_scorer,
    tuned_state,
)
from audioscore.scoring.network import ScoreNetwork, raw_outputs
from audioscore.scoring.scorer import Description
from audioscore.scoring.trained_plan import (
    Outcome,
    SpeakerFigures,
    TrainedPlan,
    read_outcome,
    write_outcome,
    write_trained,
)
from audioscore.training.adversary import SpeakerAdversary, probe_speakers
from audioscore.training.callbacks import Callback, Listen
from audioscore.training.checkpoint import clear
from audioscore.training.data import fit_statistics
from audioscore.training.distributed import is_main, once, share, start
from audioscore.training.loop import Fit, Opening, fit_network, head_checkpoint
from audioscore.training.recipe import Ground, fit_settings, read_ground
from audioscore.training.warm_start import NothingFitsError, takes_head, warm_start

if TYPE_CHECKING:
    from audioscore.config import TrainingSection

log = logging.getLogger(__name__)

SAME_RAW = 1e-5  # how far a scorer that was read again may be from the one that was written


def train_plan(
    plan: Plan,
    index_folder: Path,
    features_folder: Path,
    target: Path,
    settings: "TrainingSection",
    *,
    data_digest: str,
    code_revision: str,
    device: str = "auto",
    resume: bool = False,
    listen: Listen = lambda plan, seed: (),
) -> TrainedPlan:
    """Train a plan from the index and the features that the steps before wrote.

    With `resume`, seeds that are finished under `target` stay, and the one that was under way goes on where it stood.
    Under torchrun every process calls this alike; the main one writes. Raises DataError where a split is too small to
    learn from or to choose by, ModelError where training fails or what is to be resumed is another training.
    """
    ground = read_ground(plan, index_folder, features_folder, settings, data_digest, code_revision, device)
    if is_main():
        clear(target, resume)
    outcomes: dict[int, Outcome] = {}
    for seed in settings.seeds:
        note = target / f"seed-{seed}.json"
        found = read_outcome(note, ground.identity) if resume else None
        if found is not None and (target / f"seed-{seed}" / DESCRIPTION).is_file():
            log.info("%s, seed %d: finished before, and kept", plan, seed)
            outcomes[seed] = found
            continue
        counts = [len(ground.entries[name]) for name in ("train", "val")]
        log.info("%s, seed %d: %d clips to train on, %d to validate", plan, seed, *counts)
        outcomes[seed] = _train_seed(ground, seed, target, resume, listen(plan, seed))
        if is_main():
            write_outcome(note, ground.identity, outcomes[seed])
    # The figure that chose each epoch also chooses the seed; the first of equals wins.
    representative = max(outcomes, key=lambda seed: outcomes[seed].selection)
    trained = TrainedPlan(plan, target, representative, outcomes)
    if is_main():
        write_trained(trained)
    return trained


def _train_seed(ground: Ground, seed: int, target: Path, resume: bool, callbacks: Sequence[Callback]) -> Outcome:
    """Fit, calibrate and save one scorer."""
    settings, recipe, train, val = ground.settings, ground.recipe, ground.folds["train"], ground.folds["val"]
    warm, checkpoint = ground.warm, target / f"seed-{seed}.checkpoint"
    accelerator = start(ground.device, settings.precision)
    network, muq, adversary, begun = _new_network(ground, seed, accelerator.device)
    untuned = recipe.tunes_what_is_heard and not begun
    # A head that warm_start took computes with the statistics it brought; others would change what it knows.
    if not (warm is not None and takes_head(recipe, warm)):
        # What an untuned MuQ makes is in the store; anything else is heard, once.
        hearing, clips = network, train
        if untuned:
            hearing, clips = ScoreNetwork(network.head), ground.untuned("train", kept_bytes=0)
        if is_main():
            fit_statistics(hearing, clips.features, accelerator.device, clips.names)
        share(network.head.buffers())
    if adversary is not None and train.targets is not None:
        adversary.fit_targets(train.targets)
    val_clips = [entry.clip for entry in ground.entries["val"]]
    before = once(lambda: probe_speakers(network, val_clips, val.features, accelerator.device))
    epochs = settings.head_epochs if recipe.tunes_what_is_heard else 0
    if epochs and begun:
        log.info("%s, seed %d: no epochs of the head alone, since it does not start from scratch", ground.plan, seed)
    fit = fit_network(
        network, train, val, fit_settings(settings, recipe),
        seed=seed, adversary=adversary, checkpoint=checkpoint, resume=resume,
        identity=f"{ground.identity}-{seed}", callbacks=callbacks if is_main() else (), device=ground.device,
        opening=Opening(ground.untuned("train"), ground.untuned("val"), epochs) if epochs and untuned else None,
    )  # fmt: skip
    network.to(accelerator.device)
    after = once(lambda: probe_speakers(network, val_clips, val.features, accelerator.device))
    if is_main():
        raw = raw_outputs(network, val.features, accelerator.device)
        folder = target / f"seed-{seed}"
        description = _describe(ground, seed, fit, raw)
        save_scorer(network, description, ground.encoder_folders, folder, tuned_state(recipe.tuning, muq))
        check_saved(folder, val.features, raw, accelerator.device)
        for left in (checkpoint, head_checkpoint(checkpoint)):
            left.unlink(missing_ok=True)
    moved = {name: value.numel() for name, value in network.named_parameters() if value.requires_grad}
    return Outcome(
        fit.validation_spearman, fit.selection, fit.curve, sum(moved.values()), tuple(moved),
        None if before is None or after is None else SpeakerFigures(before.accuracy, after.accuracy, after.singers),
    )  # fmt: skip


def _new_network(
    ground: Ground, seed: int, device: torch.device
) -> tuple[ScoreNetwork, MuQEncoder | None, SpeakerAdversary | None, bool]:
    """A seed's network before its first step, the MuQ whose layers it may have, its adversary, and whether any of it
    comes from another model.
    """
    settings, recipe = ground.settings, ground.recipe
    muq = None
    if recipe.tuning is not None:
        loaded = load_reference("muq", ground.references["muq"], ground.encoder_folders.get("muq"))
        assert isinstance(loaded, MuQEncoder)
        muq = loaded
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(
            recipe.head, recipe.tuning, muq,
            lora_dropout=settings.lora.dropout, checkpointing=settings.gradient_checkpointing,
        )  # fmt: skip
        adversary, targets = None, ground.folds["train"].targets
        if targets is not None:
            adversary = SpeakerAdversary(
                network.head.representation_dim, settings.adversary.hidden, int(targets.shape[1])
            )
    begun = ground.warm is not None
    if ground.warm is not None:
        try:
            said = warm_start(network, recipe, muq, ground.warm, reference=ground.references.get("muq"))
        except NothingFitsError:
            if ground.plan == "baseline":
                raise
            begun = False
            said = f"nothing of {ground.warm} is of this plan; it starts from scratch"
        log.info("%s, seed %d: %s", ground.plan, seed, said)
    return network.to(device), muq, adversary, begun


def _describe(ground: Ground, seed: int, fit: Fit, raw: np.ndarray[Any, Any]) -> Description:
    settings, val = ground.settings, ground.entries["val"]
    clusters = [entry.clip.singer_id or str(entry.clip.sha256) for entry in val]
    seen = {str(one.clip.sha256) for entries in ground.entries.values() for one in entries}
    if ground.warm is not None and (ground.warm / DESCRIPTION).is_file():
        seen |= set(read_description(ground.warm).seen_clips)  # what it started from has seen them too
    # Where it was trained is no property of a scorer.
    places: dict[str, Any] = {"launcher": True, "trainjob": True, "adversary": {"source"}}
    options = settings.model_dump(exclude={"plans": True, "seeds": True, "init": True, **places})
    return Description(
        plan=ground.plan,
        seed=seed,
        encoders=ground.references,
        head=ground.recipe.head,
        calibration=fit_calibration(raw, ground.folds["val"].scores, clusters),
        seen_clips=tuple(sorted(seen)),
        data_digest=ground.data_digest,
        code_revision=ground.code_revision,
        training={
            "settings": options,
            "init": ground.origin,
            "best_epoch": fit.best_epoch,
            "validation_spearman": fit.validation_spearman,
            "train_clips": len(ground.entries["train"]),
            "val_clips": len(val),
        },
        tuning=ground.recipe.tuning,
    )


def check_saved(
    folder: Path, features: Sequence[Features], raw: np.ndarray[Any, Any], device: str | torch.device = "cpu"
) -> None:
    """Read a scorer back and compare its raw outputs [N] with those it was written for.

    Raises ModelError where they differ: such a scorer must not be used.
    """
    again = raw_outputs(load_network(folder, read_description(folder), device), features, device)
    worst = float(np.abs(again - raw).max(initial=0.0))
    if not worst <= SAME_RAW * max(1.0, float(np.abs(raw).max(initial=0.0))):
        raise ModelError(f"{folder}: read back, its outputs differ by up to {worst:.3g}. Do not use it.")
