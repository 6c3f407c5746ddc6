"""One optimizer step: all pairs of a batch are compared, even if the batch is split over processes or passes.

Processes (one per GPU) and passes of `micro_clips` (where memory is short) each compute the raw outputs of some clips.
The loss is computed on all raw outputs together; each pass then backpropagates the gradient of its own clips. Random
numbers of a pass depend only on the seed, the step and the pass: it does not matter which process runs it, and a
resumed training continues as if it had not stopped.
"""

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from audioscore.errors import ModelError, shorten
from audioscore.scoring.network import Batch, ScoreNetwork, collate
from audioscore.training.adversary import SpeakerAdversary, adversary_loss, ramp
from audioscore.training.batches import Rows
from audioscore.training.data import TrainingSplit
from audioscore.training.losses import ABSOLUTE, Objective

ADVERSARY_RATE = 3.0  # times the head's learning rate: the discriminator has to follow the features
ADVERSARY_BETAS = (0.0, 0.9)  # no momentum: its target moves


@dataclass(frozen=True)
class FitSettings:
    """How a network is fitted; the fields are those of `config.TrainingSection`."""

    objective: Objective
    epochs: int
    patience: int
    batch_clips: int
    micro_clips: int | None
    learning_rate: float
    encoder_learning_rate: float
    weight_decay: float
    schedule: str
    warmup_share: float
    clip_norm: float
    precision: str
    checkpoint_steps: int
    adversary_weight: float = 0.0

    def batches(self, clips: int) -> int:
        """Count the steps in one epoch over this many clips."""
        return -(-clips // self.batch_clips)


class TrainedModule(nn.Module):
    """Everything that the optimizer updates, as one module: the network, and the adversary if there is one.

    One module, because DistributedDataParallel synchronizes the gradients of one module.
    """

    def __init__(self, network: ScoreNetwork, adversary: SpeakerAdversary | None) -> None:
        super().__init__()
        self.network = network
        self.adversary = adversary

    def forward(self, batch: Batch, targets: Tensor | None, weight: float) -> tuple[Tensor, Tensor]:
        """Return raw outputs [B] and the adversary's loss, summed over the clips (0 without an adversary)."""
        representation = self.network.represent(batch)
        raw = self.network.predict(representation)
        if self.adversary is None or targets is None:
            return raw, raw.new_zeros(())
        return raw, len(raw) * adversary_loss(self.adversary, representation, targets, weight=weight)


class Stepper:
    """A network with its optimizer, updated by `step`.

    `plain` is the trained module without the wrapper that several processes need; checkpoints are made of it.
    """

    def __init__(
        self, accelerator: Accelerator, network: ScoreNetwork, adversary: SpeakerAdversary | None,
        train: TrainingSplit, settings: FitSettings, seed: int,
    ) -> None:  # fmt: skip
        self.accelerator, self.network, self.train = accelerator, network, train
        self.settings, self.seed = settings, seed
        self.plain = TrainedModule(network, adversary)
        self.parameters = [parameter for parameter in self.plain.parameters() if parameter.requires_grad]
        self.module, self.optimizer = accelerator.prepare(self.plain, _optimizer(self.plain, settings))
        self.scores = torch.tensor(train.scores, dtype=torch.float32)
        self.groups = torch.tensor(train.groups)
        absolute = [score for score, group in zip(train.scores, train.groups, strict=True) if group == ABSOLUTE]
        self.centre = float(np.mean(absolute)) if absolute else 0.0
        self.steps = settings.epochs * settings.batches(len(train.scores))

    def step(self, rows: Rows, step: int, where: str) -> float:
        """Update the parameters with the pairs of one batch, and return its loss.

        Args:
            rows: row numbers of the batch's clips in the training split, [B].
            step: number of steps done before this one; it decides the learning rate and the random numbers.
            where: name of the batch for error messages.
        Raises: ModelError, naming the batch and its clips, if the loss or its gradient is not finite.
        """
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        passes = -(-len(rows) // (self.settings.micro_clips or -(-len(rows) // world)))
        passes += -passes % world  # the same number in each process
        parts = np.array_split(np.arange(len(rows)), passes)  # positions in the batch
        own = [(number, parts[number]) for number in range(rank, passes, world)]
        raw = torch.zeros(len(rows), device=self.accelerator.device)
        output = None
        if len(own) == 1:
            ((number, part),) = own
            output = self._forward(rows, part, step, number)
            raw[part] = output[0].detach()[: len(part)]
        else:  # first without a graph; below, once the gradient is computed, a second time with one
            for number, part in own:
                with torch.no_grad():
                    raw[part] = self._forward(rows, part, step, number)[0][: len(part)]
        if world > 1:
            raw = self.accelerator.reduce(raw)
        where = f"{where}, step {step + 1}"
        loss, gradient = self._loss(raw.requires_grad_(), rows, where)
        if not gradient.any():
            return loss  # no two clips of this batch have an order: there is nothing to learn from
        for number, part in own:
            with _synchronized(self.accelerator, self.module, number == own[-1][0]):
                outputs, adversarial = output or self._forward(rows, part, step, number)
                # A process without clips of its own runs another's clip, which must not count twice.
                share = (outputs[: len(part)] * gradient[part]).sum() + adversarial * (len(part) > 0) / len(rows)
                self.accelerator.backward(share * world)  # DistributedDataParallel averages over the processes
        if not self._descend(step):
            raise self._error(rows, where, "the gradient of this batch is not finite, though its loss is")
        return loss

    def _loss(self, raw: Tensor, rows: Rows, where: str) -> tuple[float, Tensor]:
        """Return the loss of a batch's raw outputs [B] and its gradient [B]. Raises ModelError if it is not finite."""
        scores, groups = (values[rows].to(raw.device) for values in (self.scores, self.groups))
        loss = self.settings.objective(raw, scores, groups, self.centre)
        (gradient,) = torch.autograd.grad(loss, raw)
        value = float(loss.detach())
        if np.isfinite(value):
            return value, gradient
        wrong = rows[~raw.detach().isfinite().cpu().numpy()]
        count = f"; the outputs of {len(wrong)} of its {len(rows)} clips are not finite" if len(wrong) else ""
        raise self._error(wrong if len(wrong) else rows, where, f"the loss of this batch is {value}{count}")

    def _error(self, rows: Rows, where: str, problem: str) -> ModelError:
        """Return an error that names the clips."""
        names = shorten([self.train.names[row] for row in rows])
        return ModelError(
            f"seed {self.seed}, {where}: {problem} ({names}). Check these recordings, or lower training.learning_rate."
        )

    def _forward(self, rows: Rows, part: Rows, step: int, number: int) -> tuple[Tensor, Tensor]:
        """Run some of a batch's clips, or its first clip if `part` is empty: every process must run a pass."""
        chosen = rows[part] if len(part) else rows[:1]
        _seed(_derive(self.seed, step, number), self.accelerator.device)
        features = [self.train.features[int(row)] for row in chosen]
        batch = collate(features, windowed=self.network.windowed).to(self.accelerator.device)
        targets = None if self.train.targets is None else self.train.targets[chosen].to(self.accelerator.device)
        weight = self.settings.adversary_weight * ramp(step, self.steps)
        raw, adversarial = self.module(batch, targets, weight)
        return raw, adversarial

    def _descend(self, step: int) -> bool:
        """Clip the gradients and step at the scheduled rate; return False, without a step, if one is not finite.

        In fp16, accelerate's gradient scaler handles that case: it skips the step and lowers its scale.
        """
        factor = self._factor(step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.settings.clip_norm)
        if self.accelerator.mixed_precision != "fp16" and not bool(torch.isfinite(norm)):
            return False
        self.optimizer.step()
        self.optimizer.zero_grad()
        return True

    def rate(self, step: int) -> float:
        """Return the learning rate of the head at a step."""
        return self.settings.learning_rate * self._factor(step)

    def _factor(self, step: int) -> float:
        return rate_factor(step, self.steps, schedule=self.settings.schedule, warmup_share=self.settings.warmup_share)


def rate_factor(step: int, steps: int, *, schedule: str, warmup_share: float) -> float:
    """Return the factor on the learning rate at a step: linear warm-up over `warmup_share` of all steps, then the
    schedule, "constant" or "cosine".

    >>> [round(rate_factor(step, 10, schedule="cosine", warmup_share=0.2), 3) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    warmup = round(steps * warmup_share)
    if step < warmup:
        return (step + 1) / warmup  # not 0 at the first step
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


def _optimizer(module: TrainedModule, settings: FitSettings) -> torch.optim.Optimizer:
    """AdamW with a learning rate for each part: the head, the tuned layers of MuQ, the adversary."""
    suffix = [] if module.network.suffix is None else list(module.network.suffix.parameters())
    adversary = [] if module.adversary is None else list(module.adversary.parameters())
    apart = {id(parameter) for parameter in [*suffix, *adversary]}
    head = [parameter for parameter in module.parameters() if id(parameter) not in apart]
    decay = settings.weight_decay
    groups: list[dict[str, Any]] = [{"params": head, "lr": settings.learning_rate, "weight_decay": decay}]
    if tuned := [parameter for parameter in suffix if parameter.requires_grad]:
        groups.append({"params": tuned, "lr": settings.encoder_learning_rate, "weight_decay": decay})
    if adversary:
        rate = ADVERSARY_RATE * settings.learning_rate
        groups.append({"params": adversary, "lr": rate, "betas": ADVERSARY_BETAS, "weight_decay": 0.0})
    for group in groups:
        group["initial_lr"] = group["lr"]
    return torch.optim.AdamW(groups)


def _synchronized(accelerator: Accelerator, module: nn.Module, last: bool) -> Any:
    """Exchange gradients between processes only in the last pass of a step."""
    return contextlib.nullcontext() if last else accelerator.no_sync(module)


def _seed(seed: int, device: torch.device) -> None:
    """Seed only the generators that are used; torch.manual_seed formats a stack trace for every other device type."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _derive(seed: int, step: int, number: int) -> int:
    return int(np.random.SeedSequence([seed % 2**63, step, number]).generate_state(1, np.uint64)[0] >> 1)
