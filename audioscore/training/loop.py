"""Fit one network on stored features: epochs, early stopping on validation, checkpoints."""

import contextlib
import copy
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from audioscore.encoders.compute import one_torch_thread
from audioscore.encoders.stored_features import FeatureSubset
from audioscore.errors import ModelError, shorten
from audioscore.evaluation.metrics import spearman, within_source_spearman
from audioscore.scoring.network import ScoreNetwork, raw_outputs
from audioscore.training.adversary import SpeakerAdversary
from audioscore.training.batches import draw_batches
from audioscore.training.callbacks import Callback, following
from audioscore.training.checkpoint import FitProgress, read_checkpoint, restore, trained_state, write_checkpoint
from audioscore.training.data import TrainingSplit
from audioscore.training.distributed import start
from audioscore.training.step import FitSettings, Stepper

log = logging.getLogger(__name__)

NOT_VALIDATED = {"val_spearman": 0.0, "val_spearman_within_source": 0.0, "selection": 0.0}


@dataclass(frozen=True)
class HeadWarmup:
    """Head warm-up: `epochs` of the head alone, on the same clips with the output of the untuned MuQ.

    The gradients of a random head would first move MuQ's layers away from what they learned,
    and training the head would need as many expensive steps of MuQ. Source: Kumar et al. 2022, arXiv 2202.10054.
    """

    train: TrainingSplit
    val: TrainingSplit
    epochs: int


@dataclass(frozen=True)
class Fit:
    """A fitted network with the weights of its best epoch, its learning curve, and the figure that chose the epoch."""

    network: ScoreNetwork
    curve: list[dict[str, float]]
    best_epoch: int
    validation_spearman: float
    selection: float


def fit_network(
    network: ScoreNetwork,
    train: TrainingSplit,
    val: TrainingSplit,
    settings: FitSettings,
    *,
    seed: int,
    adversary: SpeakerAdversary | None = None,
    checkpoint: Path | None = None,
    identity: str = "",
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    device: str = "auto",
    warmup: HeadWarmup | None = None,
    stop_after: int | None = None,
    observe: Callable[[int, ScoreNetwork], None] | None = None,
) -> Fit:
    """Train a network in place and keep the epoch that ranks the validation clips best.

    With `stop_after`, so many epochs of the schedule of `settings.epochs` are run without validation, and the last one
    is kept; `observe` is called after each epoch with its number, without the warm-up's, and the network.

    With `warmup`, the head is first fitted alone, with the whole learning-rate schedule over the warm-up's epochs.
    `settings.epochs` follow from its best head; they are numbered on, and that head's epoch is the one to improve on.
    The layers of MuQ in the network must then be as they were loaded.

    The caller sets the statistics of the training clips before (`fit_statistics`, and an adversary's `fit_targets`).
    The same seed, clips and machine give the same weights, also if a killed fit continues from `checkpoint` with
    `resume`. Under torchrun every process calls this with the same arguments, and all get the same fit.

    Args:
        checkpoint: file to write the state to; no checkpoints by default.
        identity: hash of the data and settings, stored in the checkpoint.
    Raises: ModelError if a loss is not finite, naming the batch, or if the checkpoint is of another fit.
    """
    accelerator = start(device, settings.precision)
    with torch.random.fork_rng(enabled=True, devices=[accelerator.device] if accelerator.device.type == "cuda" else []):
        stepper = Stepper(accelerator, network, adversary, train, settings, seed)
        run = _Run(stepper, val, checkpoint, identity, resume, warmup, stop_after, observe)
        first = None
        if warmup is not None and not run.resumed:
            first = _warmup_run(warmup, stepper, checkpoint, identity, resume, device)
        warmup = None  # frees the memory of its features before the others are read
        step, steps = (run if first is None else first).step, run.earlier_steps + stepper.steps
        with following(callbacks, step, steps):
            if first is not None:
                first.to_the_end(callbacks)
                run.continue_from(first.end())
                del first
            run.to_the_end(callbacks)
        return run.end()


def validate(network: ScoreNetwork, split: TrainingSplit, accelerator: Accelerator | None = None) -> dict[str, float]:
    """Return Spearman overall and within source, and `selection`, which selects the epoch: the one within source.

    The overall one rewards recognising the recording domain, because the score bands of the sources differ.

    Raises: ModelError, naming the clips, if an output is not finite: it could not be ranked.
    """
    if accelerator is None or accelerator.num_processes == 1:
        raw = raw_outputs(network, split.features, "cpu" if accelerator is None else accelerator.device)
    else:
        rank, world = accelerator.process_index, accelerator.num_processes
        own = range(rank, len(split.features), world)
        shared = torch.zeros(len(split.features), dtype=torch.float64, device=accelerator.device)
        outputs = raw_outputs(network, FeatureSubset(split.features, own), accelerator.device)
        shared[rank::world] = torch.from_numpy(outputs).to(shared)
        raw = np.asarray(accelerator.reduce(shared).cpu().numpy())
    if wrong := [name for name, output in zip(split.names, raw, strict=True) if not np.isfinite(output)]:
        raise ModelError(
            f"validation: the outputs of {len(wrong)} of {len(raw)} clips are not finite ({shorten(wrong)}). Check "
            f"these recordings, or lower training.learning_rate."
        )
    # Equal outputs have an undefined correlation; they rank nothing, which counts as 0.
    overall = float(np.nan_to_num(spearman(split.scores, raw)))
    within = float(np.nan_to_num(within_source_spearman(split.scores, raw, split.sources), nan=overall))
    return {"val_spearman": overall, "val_spearman_within_source": within, "selection": within}


def head_checkpoint(checkpoint: Path) -> Path:
    """Return the path of a head warm-up's checkpoint, beside that of the fit.

    >>> head_checkpoint(Path("seed-1.checkpoint")).name
    'seed-1.head.checkpoint'
    """
    return checkpoint.with_suffix(f".head{checkpoint.suffix}")


def _warmup_run(
    warmup: HeadWarmup, later: Stepper, checkpoint: Path | None, identity: str, resume: bool, device: str
) -> "_Run":
    """Set up the warm-up: a copy of the head with its own optimizer and fp16 scale, without an adversary.

    Its checkpoint is kept until the whole fit has finished, for a fit that is killed before its own first checkpoint.
    """
    settings = replace(later.settings, epochs=warmup.epochs, patience=warmup.epochs, adversary_weight=0.0)
    head = ScoreNetwork(copy.deepcopy(later.network.head))
    stepper = Stepper(start(device, settings.precision), head, None, warmup.train, settings, later.seed)
    head_path = None if checkpoint is None else head_checkpoint(checkpoint)
    return _Run(stepper, warmup.val, head_path, f"{identity}-head", resume)


class _Run:
    """A running fit: its epochs, the best of them, and its checkpoints, which the main process writes."""

    def __init__(
        self, stepper: Stepper, val: TrainingSplit, checkpoint: Path | None, identity: str, resume: bool,
        warmup: HeadWarmup | None = None, stop_after: int | None = None,
        observe: Callable[[int, ScoreNetwork], None] | None = None,
    ) -> None:  # fmt: skip
        self.stepper, self.val, self.checkpoint, self.identity = stepper, val, checkpoint, identity
        self.stop_after, self.observe = stop_after, observe
        found = None
        if checkpoint is not None and resume:
            scaler = stepper.accelerator.scaler
            found = read_checkpoint(checkpoint, identity, stepper.plain, stepper.optimizer, scaler)
        if found is not None:
            log.info("resuming from epoch %d, step %d", found.epoch, found.step)
        self.resumed = found is not None
        self.progress = found or FitProgress(best_state=trained_state(stepper.plain))
        self.earlier_epochs = self.earlier_steps = 0
        if warmup is not None:
            self.earlier_epochs = warmup.epochs
            self.earlier_steps = warmup.epochs * stepper.settings.batches(len(warmup.train.scores))

    def continue_from(self, warmup: Fit) -> None:
        """Start from the head that a warm-up fitted."""
        self.stepper.network.head.load_state_dict(warmup.network.head.state_dict())
        self.progress = FitProgress(
            epoch=self.earlier_epochs + 1, curve=list(warmup.curve), best=warmup.selection,
            best_epoch=warmup.best_epoch, best_state=trained_state(self.stepper.plain),
        )  # fmt: skip

    @property
    def step(self) -> int:
        """Number of finished steps, those of a warm-up included."""
        return self.earlier_steps + self.progress.step

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or there was no better one for `patience` epochs."""
        settings, best = self.stepper.settings, self.progress.best_epoch - self.earlier_epochs
        done = self.progress.epoch - 1 - self.earlier_epochs
        if self.stop_after is not None:
            return done >= self.stop_after
        return done >= settings.epochs or done - max(best, 0) >= settings.patience

    def to_the_end(self, callbacks: Sequence[Callback]) -> None:
        """Run the remaining epochs."""
        # The matrices of a light head are so small that splitting them over threads takes longer than multiplying them.
        with one_torch_thread() if self.stepper.network.suffix is None else contextlib.nullcontext():
            while not self.finished:
                entry = self.epoch(callbacks)
                for callback in callbacks:
                    callback.on_epoch(entry)

    def epoch(self, callbacks: Sequence[Callback]) -> dict[str, float]:
        """Run the rest of the current epoch and return its entry of the learning curve."""
        stepper, progress, train = self.stepper, self.progress, self.stepper.train
        earlier, started = progress.seconds, time.monotonic()
        drawn = draw_batches(
            train.scores, train.sources, train.groups,
            keys=train.keys, batch_clips=stepper.settings.batch_clips, seed=stepper.seed, epoch=progress.epoch,
        )  # fmt: skip
        stepper.module.train()
        for rows in drawn[progress.batch :]:
            progress.losses.append(stepper.step(rows, progress.step, f"epoch {progress.epoch}"))
            progress.batch += 1
            progress.step += 1
            progress.seconds = earlier + time.monotonic() - started
            for callback in callbacks:
                callback.on_step(self.step)
            if progress.step % stepper.settings.checkpoint_steps == 0:
                self.write()
        figures = dict(NOT_VALIDATED)
        if self.stop_after is None:
            figures = validate(stepper.network, self.val, stepper.accelerator)
        entry = {
            "epoch": progress.epoch,
            "train_loss": float(np.mean(progress.losses)) if progress.losses else 0.0,
            **figures,
            "learning_rate": stepper.rate(progress.step),
            "clips_per_second": len(train.scores) / max(progress.seconds, 1e-9),
            "seconds": earlier + time.monotonic() - started,
        }
        if self.observe is not None:
            self.observe(progress.epoch - self.earlier_epochs, stepper.network)
        self._record(entry)
        return entry

    def _record(self, entry: dict[str, float]) -> None:
        """Add an epoch to the curve, keep its weights if it is the best so far, and write a checkpoint."""
        progress = self.progress
        progress.curve.append(entry)
        if entry["selection"] > progress.best or self.stop_after is not None:
            progress.best, progress.best_epoch = entry["selection"], progress.epoch
            progress.best_state = trained_state(self.stepper.plain)
        log.info(
            "seed %d epoch %d: loss %.4f, validation Spearman %.3f, %.0f clips/s",
            self.stepper.seed, progress.epoch, entry["train_loss"], entry["val_spearman"], entry["clips_per_second"],
        )  # fmt: skip
        progress.epoch, progress.batch, progress.losses, progress.seconds = progress.epoch + 1, 0, [], 0.0
        self.write()

    def write(self) -> None:
        """Write a checkpoint."""
        stepper = self.stepper
        if self.checkpoint is not None and stepper.accelerator.is_main_process:
            write_checkpoint(
                self.checkpoint, self.identity, stepper.plain, stepper.optimizer, self.progress,
                stepper.accelerator.scaler,
            )  # fmt: skip

    def end(self) -> Fit:
        """Return the network with the weights of the best epoch, on the CPU."""
        restore(self.stepper.plain, self.progress.best_state)
        network = self.stepper.network.cpu().eval()
        chosen = self.progress.curve[self.progress.best_epoch - 1]
        return Fit(network, self.progress.curve, self.progress.best_epoch, chosen["val_spearman"], chosen["selection"])
