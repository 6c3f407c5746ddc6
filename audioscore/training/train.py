"""Train plans: every seed is fitted, calibrated on validation, and written as a scorer folder."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from audioscore.config import Plan
from audioscore.data.versions.revision import folder_digest
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
from audioscore.training.adversary import SpeakerAdversary, run_singer_probe
from audioscore.training.callbacks import Callback, CallbackFactory
from audioscore.training.checkpoint import clear
from audioscore.training.data import fit_statistics
from audioscore.training.distributed import in_shares, is_main, once, share, start
from audioscore.training.launch import TrainingRequest
from audioscore.training.loop import Fit, HeadWarmup, fit_network, head_checkpoint
from audioscore.training.recipe import PlanData, fit_settings, load_plan_data
from audioscore.training.warm_start import NothingToLoadError, loads_head, warm_start

if TYPE_CHECKING:
    from audioscore.config import TrainingSection

log = logging.getLogger(__name__)

RELOAD_TOLERANCE = 1e-5  # relative difference allowed between a written scorer and the same one read back


def no_callbacks(plan: Plan, seed: int) -> Sequence[Callback]:
    """Return no callbacks: the default `CallbackFactory`."""
    return ()


def train_plans(request: TrainingRequest, callbacks_for: CallbackFactory = no_callbacks) -> None:
    """Train every plan of a request, after extracting missing features if it names a data folder.

    Under torchrun every process calls this; they share the extraction.
    """
    config, index, features, digest = request.config, request.index, request.features, request.data_digest
    if index is None or features is None:
        assert request.data is not None
        index, features, digest = _extract(request, request.data)
    for plan in request.plans:
        train_plan(
            plan, index, features, request.out if request.single else request.out / plan, config.training,
            data_digest=digest or "unknown", code_revision=request.code_revision, device=request.device,
            resume=request.resume, callbacks_for=callbacks_for,
        )  # fmt: skip


def _extract(request: TrainingRequest, data: Path) -> tuple[Path, Path, str]:
    """Extract the missing features of a data folder; return index folder, features folder and data digest."""
    from audioscore.encoders.extract import extract_folder
    from audioscore.home import home_of_model

    config, features = request.config, request.out / "features"
    store = request.store or home_of_model(config.registry.model).features
    source = (data, data, features, store, config.encoders, config.training, request.device)
    in_shares(partial(extract_folder, *source), request.device)
    return data, features, folder_digest(data)


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
    callbacks_for: CallbackFactory = no_callbacks,
) -> TrainedPlan:
    """Train a plan on every seed, from the index and the features of the earlier pipeline steps.

    With `resume`, finished seeds under `target` are kept, and the unfinished one continues from its checkpoint. Under
    torchrun every process calls this with the same arguments; the main process writes.

    Raises: DataError if a split is too small; ModelError if the training fails, or if the checkpoint to resume from is
        of another training.
    """
    data = load_plan_data(plan, index_folder, features_folder, settings, data_digest, code_revision, device)
    if is_main():
        clear(target, resume)
    outcomes: dict[int, Outcome] = {}
    for seed in settings.seeds:
        record = target / f"seed-{seed}.json"
        found = read_outcome(record, data.identity) if resume else None
        if found is not None and (target / f"seed-{seed}" / DESCRIPTION).is_file():
            log.info("%s, seed %d: already finished, kept", plan, seed)
            outcomes[seed] = found
            continue
        counts = [len(data.clips[name]) for name in ("train", "val")]
        log.info("%s, seed %d: %d clips to train on, %d to validate", plan, seed, *counts)
        outcomes[seed] = _train_seed(data, seed, target, resume, callbacks_for(plan, seed))
        if is_main():
            write_outcome(record, data.identity, outcomes[seed])
    # The figure that selects each epoch also selects the seed; the first of equal ones.
    representative = max(outcomes, key=lambda seed: outcomes[seed].selection)
    trained = TrainedPlan(plan, target, representative, outcomes)
    if is_main():
        write_trained(trained)
    return trained


def _train_seed(data: PlanData, seed: int, target: Path, resume: bool, callbacks: Sequence[Callback]) -> Outcome:
    """Fit, calibrate and save one scorer."""
    settings, recipe, train, val = data.settings, data.recipe, data.splits["train"], data.splits["val"]
    checkpoint = target / f"seed-{seed}.checkpoint"
    accelerator = start(data.device, settings.precision)
    network, muq, adversary, warm_started = _new_network(data, seed, accelerator.device)
    untuned = recipe.tunes_encoder and not warm_started
    # A head that warm_start loaded keeps the statistics that it was trained with; others would change its outputs.
    if not (data.warm is not None and loads_head(recipe, data.warm)):
        # The output of an untuned MuQ is in the store; any other is computed here, once.
        source, split = network, train
        if untuned:
            source, split = ScoreNetwork(network.head), data.untuned("train", kept_bytes=0)
        if is_main():
            fit_statistics(source, split.features, accelerator.device, split.names)
        share(network.head.buffers())
    if adversary is not None and train.targets is not None:
        adversary.fit_targets(train.targets)
    val_clips = [one.clip for one in data.clips["val"]]
    before = once(lambda: run_singer_probe(network, val_clips, val.features, accelerator.device))
    epochs = settings.head_warmup_epochs if recipe.tunes_encoder else 0
    if epochs and warm_started:
        log.info("%s, seed %d: no head warm-up, because it does not start from scratch", data.plan, seed)
    fit = fit_network(
        network, train, val, fit_settings(settings, recipe),
        seed=seed, adversary=adversary, checkpoint=checkpoint, resume=resume,
        identity=f"{data.identity}-{seed}", callbacks=callbacks if is_main() else (), device=data.device,
        warmup=HeadWarmup(data.untuned("train"), data.untuned("val"), epochs) if epochs and untuned else None,
    )  # fmt: skip
    network.to(accelerator.device)
    after = once(lambda: run_singer_probe(network, val_clips, val.features, accelerator.device))
    if is_main():
        raw = raw_outputs(network, val.features, accelerator.device)
        folder = target / f"seed-{seed}"
        description = _describe(data, seed, fit, raw)
        save_scorer(network, description, data.encoder_folders, folder, tuned_state(recipe.tuning, muq))
        check_saved(folder, val.features, raw, accelerator.device)
        for left in (checkpoint, head_checkpoint(checkpoint)):
            left.unlink(missing_ok=True)
    trainable = {name: value.numel() for name, value in network.named_parameters() if value.requires_grad}
    return Outcome(
        fit.validation_spearman, fit.selection, fit.curve, sum(trainable.values()), tuple(trainable),
        None if before is None or after is None else SpeakerFigures(before.accuracy, after.accuracy, after.singers),
    )  # fmt: skip


def _new_network(
    data: PlanData, seed: int, device: torch.device
) -> tuple[ScoreNetwork, MuQEncoder | None, SpeakerAdversary | None, bool]:
    """Return a seed's network before its first step, the MuQ that it contains layers of, its adversary, and whether
    any of its weights come from another model.
    """
    settings, recipe = data.settings, data.recipe
    muq = None
    if recipe.tuning is not None:
        loaded = load_reference("muq", data.references["muq"], data.encoder_folders.get("muq"))
        assert isinstance(loaded, MuQEncoder)
        muq = loaded
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(
            recipe.head, recipe.tuning, muq,
            lora_dropout=settings.lora.dropout, checkpointing=settings.gradient_checkpointing,
        )  # fmt: skip
        adversary, targets = None, data.splits["train"].targets
        if targets is not None:
            adversary = SpeakerAdversary(
                network.head.representation_dim, settings.adversary.hidden, int(targets.shape[1])
            )
    warm_started = data.warm is not None
    if data.warm is not None:
        try:
            message = warm_start(network, recipe, muq, data.warm, reference=data.references.get("muq"))
        except NothingToLoadError:
            if data.plan == "baseline":
                raise
            warm_started = False
            message = f"no part of {data.warm} fits this plan; it starts from scratch"
        log.info("%s, seed %d: %s", data.plan, seed, message)
    return network.to(device), muq, adversary, warm_started


def _describe(data: PlanData, seed: int, fit: Fit, raw: np.ndarray[Any, Any]) -> Description:
    settings, val = data.settings, data.clips["val"]
    clusters = [one.clip.singer_id or str(one.clip.sha256) for one in val]
    seen = {str(one.clip.sha256) for clips in data.clips.values() for one in clips}
    if data.warm is not None and (data.warm / DESCRIPTION).is_file():
        seen |= set(read_description(data.warm).seen_clips)  # the model that training started from was trained on them
    # Where a scorer was trained is not a property of the scorer.
    location: dict[str, Any] = {"launcher": True, "trainjob": True, "adversary": {"source"}}
    options = settings.model_dump(exclude={"plans": True, "seeds": True, "init": True, **location})
    training = {
        "settings": options, "init": data.origin, "best_epoch": fit.best_epoch,
        "validation_spearman": fit.validation_spearman, "train_clips": len(data.clips["train"]), "val_clips": len(val),
    }  # fmt: skip
    return Description(
        plan=data.plan, seed=seed, encoders=data.references, head=data.recipe.head,
        calibration=fit_calibration(raw, data.splits["val"].scores, clusters), seen_clips=tuple(sorted(seen)),
        data_digest=data.data_digest, code_revision=data.code_revision, training=training, tuning=data.recipe.tuning,
    )  # fmt: skip


def check_saved(
    folder: Path, features: Sequence[Features], raw: np.ndarray[Any, Any], device: str | torch.device = "cpu"
) -> None:
    """Read a scorer back and compare its raw outputs [N] with those of the network that was written.

    Raises: ModelError if they differ.
    """
    again = raw_outputs(load_network(folder, read_description(folder), device), features, device)
    worst = float(np.abs(again - raw).max(initial=0.0))
    if not worst <= RELOAD_TOLERANCE * max(1.0, float(np.abs(raw).max(initial=0.0))):
        raise ModelError(f"{folder}: read back, its outputs differ by up to {worst:.3g}. Do not use it.")
