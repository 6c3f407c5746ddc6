"""Train plans: every seed is fitted, calibrated on clips it was not trained on, and written as a scorer folder."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from audioscore.config import Plan
from audioscore.data.versions.revision import folder_digest
from audioscore.errors import ModelError, UsageError
from audioscore.scoring.calibration import fit_calibration
from audioscore.scoring.checkpoint import DESCRIPTION, save_scorer, tuned_state
from audioscore.scoring.network import raw_outputs
from audioscore.scoring.trained_plan import (
    OUT_OF_FOLD,
    PLAN_FILE,
    Outcome,
    OutOfFold,
    SpeakerFigures,
    TrainedPlan,
    read_outcome,
    read_trained,
    write_outcome,
    write_trained,
)
from audioscore.training.adversary import run_singer_probe
from audioscore.training.callbacks import Callback, CallbackFactory
from audioscore.training.checkpoint import clear
from audioscore.training.distributed import count, in_shares, is_main, once, start
from audioscore.training.folds.cross_validation import Folds, cross_validate, default_folds
from audioscore.training.launch import TrainingRequest
from audioscore.training.loop import HeadWarmup, fit_network, head_checkpoint
from audioscore.training.recipe import PlanData, fit_settings, load_plan_data
from audioscore.training.scorers import check_saved, describe, new_network, set_statistics

if TYPE_CHECKING:
    from audioscore.config import TrainingSection

log = logging.getLogger(__name__)


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
            resume=request.resume, callbacks_for=callbacks_for, folds=config.split.folds,
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
    folds: int | None = None,
) -> TrainedPlan:
    """Train a plan on every seed, from the index and the features of the earlier pipeline steps.

    With more than one of `folds` (default: 5, fewer for fewer singers, and 1 where MuQ is tuned or training runs in
    several processes), the plan is cross-validated on train and val, and its scorers are trained on both. With one, val
    chooses the epoch and calibrates; with `resume`, finished seeds under `target` are kept, and the unfinished one
    continues from its checkpoint. Under torchrun every process calls this with the same arguments; the main process
    writes.

    Raises: DataError if a split is too small; ModelError if the training fails, or if the checkpoint to resume from is
        of another training.
    """
    data = load_plan_data(plan, index_folder, features_folder, settings, data_digest, code_revision, device)
    if is_main():
        clear(target, resume)
    if folds is not None and folds > 1 and count() > 1:
        raise UsageError(f"split.folds {folds}: a cross-validation runs in one process, not {count()}. Set it to 1.")
    if folds is None:
        folds = 1 if data.recipe.tuning is not None or count() > 1 else default_folds(data, index_folder)
    if folds > 1:
        return _cross_validated(data, index_folder, target, folds, resume, callbacks_for)
    if is_main():
        _delete_cross_validation(target)
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


def _cross_validated(
    data: PlanData, index: Path, target: Path, folds: int, resume: bool, callbacks_for: CallbackFactory
) -> TrainedPlan:
    """Cross-validate a plan, or keep the result of the same training with `resume`."""
    divided = Folds.of(data, index, folds)
    before = OutOfFold.read(target) if resume else None
    if before is not None and before.identity != data.identity:
        raise ModelError(
            f"{target / OUT_OF_FOLD}: belongs to a training with other data, settings or encoders. Use those, or train "
            f"without --resume."
        )
    if before is not None and before.fits == divided.hash(data) and (target / PLAN_FILE).is_file():
        log.info("%s: already finished, kept", data.plan)
        return read_trained(target)
    _delete_cross_validation(target)
    return cross_validate(data, divided, target, callbacks_for)


def _delete_cross_validation(target: Path) -> None:
    """Delete the result of an earlier cross-validation: the scorers are going to be other ones."""
    if (target / OUT_OF_FOLD).is_file():
        for name in (PLAN_FILE, OUT_OF_FOLD):
            (target / name).unlink(missing_ok=True)


def _train_seed(data: PlanData, seed: int, target: Path, resume: bool, callbacks: Sequence[Callback]) -> Outcome:
    """Fit, calibrate and save one scorer."""
    settings, recipe, train, val = data.settings, data.recipe, data.splits["train"], data.splits["val"]
    checkpoint = target / f"seed-{seed}.checkpoint"
    accelerator = start(data.device, settings.precision)
    made = new_network(data, seed, accelerator.device)
    network, muq, adversary, warm_started = made
    untuned = recipe.tunes_encoder and not warm_started
    set_statistics(data, made, train, lambda: data.untuned("train", kept_bytes=0).features, accelerator.device)
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
        clusters = [clip.singer_id or str(clip.sha256) for clip in val_clips]
        calibration = fit_calibration(raw, val.scores, clusters, val.sources)
        figures = {"best_epoch": fit.best_epoch, "validation_spearman": fit.validation_spearman}
        description = describe(data, seed, calibration, figures)
        save_scorer(network, description, data.encoder_folders, folder, tuned_state(recipe.tuning, muq))
        check_saved(folder, val.features, raw, accelerator.device)
        for left in (checkpoint, head_checkpoint(checkpoint)):
            left.unlink(missing_ok=True)
    trainable = {name: value.numel() for name, value in network.named_parameters() if value.requires_grad}
    return Outcome(
        fit.validation_spearman, fit.selection, fit.curve, sum(trainable.values()), tuple(trainable),
        None if before is None or after is None else SpeakerFigures(before.accuracy, after.accuracy, after.singers),
    )  # fmt: skip
