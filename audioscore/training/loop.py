"""Fit one network on features that are already there: one seed, early stopping on validation."""

import contextlib
import copy
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from audioscore.encoders.compute import one_torch_thread
from audioscore.encoders.stored_features import Chosen
from audioscore.errors import ModelError, shorten
from audioscore.evaluation.metrics import spearman, within_source_spearman
from audioscore.scoring.network import ScoreNetwork, raw_outputs
from audioscore.training.adversary import SpeakerAdversary
from audioscore.training.batches import draw_batches
from audioscore.training.callbacks import Callback, following
from audioscore.training.checkpoint import Progress, moving_state, read_checkpoint, restore, write_checkpoint
from audioscore.training.data import Fold
from audioscore.training.distributed import start
from audioscore.training.step import FitSettings, Stepper


@dataclass(frozen=True)
class Opening:
    """`epochs` of the head alone, on the same clips as MuQ hears them untuned.

    A head that knows nothing would first pull MuQ's layers where they do not belong, and each of its steps would cost
    theirs. Source: Kumar et al. 2022, arXiv 2202.10054.
    """

    train: Fold
    val: Fold
    epochs: int


def head_checkpoint(checkpoint: Path) -> Path:
    """Where an opening's is kept, beside the fit's own.

    >>> head_checkpoint(Path("seed-1.checkpoint")).name
    'seed-1.head.checkpoint'
    """
    return checkpoint.with_suffix(f".head{checkpoint.suffix}")


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """A fitted network (best epoch's weights), its learning curve, and the validation figure that chose the epoch."""

    network: ScoreNetwork
    curve: list[dict[str, float]]
    best_epoch: int
    validation_spearman: float
    selection: float


def fit_network(
    network: ScoreNetwork,
    train: Fold,
    val: Fold,
    settings: FitSettings,
    *,
    seed: int,
    adversary: SpeakerAdversary | None = None,
    checkpoint: Path | None = None,
    identity: str = "",
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    device: str = "auto",
    opening: Opening | None = None,
) -> Fit:
    """Train a network in place; keep the epoch that ranks validation clips best.

    With `opening` the head is fitted alone first, by the same schedule over its own epochs, and `settings.epochs`
    follow from the best of these; they are counted on, and that epoch is the one to beat. The network must be one whose
    layers of MuQ are still as they were loaded.

    The statistics of the training clips (`fit_statistics`, and an adversary's `fit_targets`) are the caller's to set.

    Same seed, same clips, same machine: same weights, also where a killed fit goes on from `checkpoint` with `resume`.
    Under torchrun every process calls this alike, and all get the same fit. Raises ModelError where a loss is not
    finite, naming the batch, and where the checkpoint is of another fit.
    """
    accelerator = start(device, settings.precision)
    with torch.random.fork_rng(enabled=True, devices=[accelerator.device] if accelerator.device.type == "cuda" else []):
        stepper = Stepper(accelerator, network, adversary, train, settings, seed)
        run = _Run(stepper, val, checkpoint, identity, resume, opening)
        first = None
        if opening is not None and not run.resumed:
            first = _opening_run(opening, stepper, checkpoint, identity, resume, device)
        opening = None  # its features need not stay in memory beside those that follow
        step, steps = (run if first is None else first).step, run.earlier_steps + stepper.steps
        with following(callbacks, step, steps):
            if first is not None:
                first.to_the_end(callbacks)
                run.go_on_from(first.end())
                del first
            run.to_the_end(callbacks)
        return run.end()


def _opening_run(
    opening: Opening, later: Stepper, checkpoint: Path | None, identity: str, resume: bool, device: str
) -> "_Run":
    """A copy of the head, with an optimizer and, in fp16, a scale of its own; no adversary unlearns what is not known.

    Its checkpoint lies beside the fit's. A finished one stays until the whole fit is over, so that a killed fit that
    had not come to a checkpoint of its own finds the head.
    """
    settings = replace(later.settings, epochs=opening.epochs, patience=opening.epochs, adversary_weight=0.0)
    head = ScoreNetwork(copy.deepcopy(later.network.head))
    stepper = Stepper(start(device, settings.precision), head, None, opening.train, settings, later.seed)
    beside = None if checkpoint is None else head_checkpoint(checkpoint)
    return _Run(stepper, opening.val, beside, f"{identity}-head", resume)


def validate(network: ScoreNetwork, fold: Fold, accelerator: Accelerator | None = None) -> dict[str, float]:
    """Spearman overall and within source, and their mean, which selects the epoch.

    Overall alone would be won by hearing the room: the sources' score bands differ. Raises ModelError, naming the
    clips, where an output is not finite: it would rank as if it were equal to all.
    """
    if accelerator is None or accelerator.num_processes == 1:
        raw = raw_outputs(network, fold.features, "cpu" if accelerator is None else accelerator.device)
    else:
        rank, world = accelerator.process_index, accelerator.num_processes
        mine = range(rank, len(fold.features), world)
        shared = torch.zeros(len(fold.features), dtype=torch.float64, device=accelerator.device)
        own = raw_outputs(network, Chosen(fold.features, mine), accelerator.device)
        shared[rank::world] = torch.from_numpy(own).to(shared)
        raw = np.asarray(accelerator.reduce(shared).cpu().numpy())
    if wrong := [name for name, output in zip(fold.names, raw, strict=True) if not np.isfinite(output)]:
        raise ModelError(
            f"validation: the outputs of {len(wrong)} of {len(raw)} clips are not finite ({shorten(wrong)}). Look at "
            f"these recordings, or lower training.learning_rate."
        )
    # Undefined means that the outputs rank nothing (all equal), which is worth 0 here.
    overall = float(np.nan_to_num(spearman(fold.scores, raw)))
    within = float(np.nan_to_num(within_source_spearman(fold.scores, raw, fold.sources), nan=overall))
    return {"val_spearman": overall, "val_spearman_within_source": within, "selection": (overall + within) / 2}


class _Run:
    """One fit under way: epochs, the best of them, and checkpoints, by the main process alone."""

    def __init__(
        self,
        stepper: Stepper,
        val: Fold,
        checkpoint: Path | None,
        identity: str,
        resume: bool,
        opening: Opening | None = None,
    ) -> None:
        self.stepper, self.val, self.checkpoint, self.identity = stepper, val, checkpoint, identity
        found = None
        if checkpoint is not None and resume:
            scaler = stepper.accelerator.scaler
            found = read_checkpoint(checkpoint, identity, stepper.plain, stepper.optimizer, scaler)
        if found is not None:
            log.info("going on from epoch %d, step %d", found.epoch, found.step)
        self.resumed = found is not None
        self.progress = found or Progress(best_state=moving_state(stepper.plain))
        self.earlier_epochs = self.earlier_steps = 0
        if opening is not None:
            self.earlier_epochs = opening.epochs
            self.earlier_steps = opening.epochs * stepper.settings.batches(len(opening.train.scores))

    def go_on_from(self, opening: Fit) -> None:
        """Begin with the head that an opening fitted."""
        self.stepper.network.head.load_state_dict(opening.network.head.state_dict())
        self.progress = Progress(
            epoch=self.earlier_epochs + 1,
            curve=list(opening.curve),
            best=opening.selection,
            best_epoch=opening.best_epoch,
            best_state=moving_state(self.stepper.plain),
        )

    @property
    def step(self) -> int:
        """Steps that are done, an opening's included."""
        return self.earlier_steps + self.progress.step

    @property
    def finished(self) -> bool:
        """Whether there is no epoch left, or none was better for too long."""
        settings, best = self.stepper.settings, self.progress.best_epoch - self.earlier_epochs
        done = self.progress.epoch - 1 - self.earlier_epochs
        return done >= settings.epochs or done - max(best, 0) >= settings.patience

    def to_the_end(self, callbacks: Sequence[Callback]) -> None:
        """All epochs that are left."""
        # The small matrices of a light head are done before several threads have agreed to share them.
        with one_torch_thread() if self.stepper.network.suffix is None else contextlib.nullcontext():
            while not self.finished:
                entry = self.epoch(callbacks)
                for callback in callbacks:
                    callback.on_epoch(entry)

    def epoch(self, callbacks: Sequence[Callback]) -> dict[str, float]:
        """The rest of the epoch under way, and its line of the learning curve."""
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
        figures = validate(stepper.network, self.val, stepper.accelerator)
        entry = {
            "epoch": progress.epoch,
            "train_loss": float(np.mean(progress.losses)) if progress.losses else 0.0,
            **figures,
            "learning_rate": stepper.rate(progress.step),
            "clips_per_second": len(train.scores) / max(progress.seconds, 1e-9),
            "seconds": earlier + time.monotonic() - started,
        }
        self._note(entry)
        return entry

    def _note(self, entry: dict[str, float]) -> None:
        """Close the epoch: is it the best so far?"""
        progress = self.progress
        progress.curve.append(entry)
        if entry["selection"] > progress.best:
            progress.best, progress.best_epoch = entry["selection"], progress.epoch
            progress.best_state = moving_state(self.stepper.plain)
        log.info(
            "seed %d epoch %d: loss %.4f, validation Spearman %.3f, %.0f clips/s",
            self.stepper.seed, progress.epoch, entry["train_loss"], entry["val_spearman"], entry["clips_per_second"],
        )  # fmt: skip
        progress.epoch, progress.batch, progress.losses, progress.seconds = progress.epoch + 1, 0, [], 0.0
        self.write()

    def write(self) -> None:
        """Checkpoint."""
        stepper = self.stepper
        if self.checkpoint is not None and stepper.accelerator.is_main_process:
            write_checkpoint(
                self.checkpoint, self.identity, stepper.plain, stepper.optimizer, self.progress,
                stepper.accelerator.scaler,
            )  # fmt: skip

    def end(self) -> Fit:
        """The best epoch's weights, on the CPU."""
        restore(self.stepper.plain, self.progress.best_state)
        network = self.stepper.network.cpu().eval()
        chosen = self.progress.curve[self.progress.best_epoch - 1]
        return Fit(network, self.progress.curve, self.progress.best_epoch, chosen["val_spearman"], chosen["selection"])
