"""One step of a fit: every pair of a batch is compared, whatever the batch is spread over.

That is processes (one a GPU), or passes of `micro_clips` where memory is short. The loss is of all raw outputs
together; each pass then gets its clips' share of the gradient. Random numbers of a pass depend on the seed, the step
and the pass alone, so that any process may compute it, and a fit that goes on from a checkpoint ends where it would.
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
from audioscore.training.data import Fold
from audioscore.training.losses import ABSOLUTE, Objective


def rate_factor(step: int, steps: int, *, schedule: str, warmup_share: float) -> float:
    """Share of the full learning rate at a step: up a line for `warmup_share` of all steps, then constant or a cosine.

    >>> [round(rate_factor(step, 10, schedule="cosine", warmup_share=0.2), 3) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    warmup = round(steps * warmup_share)
    if step < warmup:
        return (step + 1) / warmup  # the first step moves too
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


ADVERSARY_RATE = 3.0  # times the head's learning rate: the discriminator has to keep up
ADVERSARY_BETAS = (0.0, 0.9)  # no momentum: what it chases moves


@dataclass(frozen=True)
class FitSettings:
    """How a network is fitted; see `config.TrainingSection`."""

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
        """Steps of one epoch over so many clips."""
        return -(-clips // self.batch_clips)


class Trained(nn.Module):
    """What the optimizer moves, as one module: the network, and the adversary beside it."""

    def __init__(self, network: ScoreNetwork, adversary: SpeakerAdversary | None) -> None:
        super().__init__()
        self.network = network
        self.adversary = adversary

    def forward(self, batch: Batch, targets: Tensor | None, weight: float) -> tuple[Tensor, Tensor]:
        """Raw outputs [B], and the adversary's loss summed over the clips (0 without one)."""
        representation = self.network.represent(batch)
        raw = self.network.judge(representation)
        if self.adversary is None or targets is None:
            return raw, raw.new_zeros(())
        return raw, len(raw) * adversary_loss(self.adversary, representation, targets, weight=weight)


class Stepper:
    """A network and its optimizer: `step` moves them. `plain` is what moves, without the shell that processes need."""

    def __init__(
        self,
        accelerator: Accelerator,
        network: ScoreNetwork,
        adversary: SpeakerAdversary | None,
        train: Fold,
        settings: FitSettings,
        seed: int,
    ) -> None:
        self.accelerator, self.network, self.train = accelerator, network, train
        self.settings, self.seed = settings, seed
        self.plain = Trained(network, adversary)
        self.parameters = [parameter for parameter in self.plain.parameters() if parameter.requires_grad]
        self.module, self.optimizer = accelerator.prepare(self.plain, _optimizer(self.plain, settings))
        self.scores = torch.tensor(train.scores, dtype=torch.float32)
        self.groups = torch.tensor(train.groups)
        absolute = [score for score, group in zip(train.scores, train.groups, strict=True) if group == ABSOLUTE]
        self.centre = float(np.mean(absolute)) if absolute else 0.0
        self.steps = settings.epochs * settings.batches(len(train.scores))

    def step(self, rows: Rows, step: int, where: str) -> float:
        """One step of the optimizer, the `step`th, on the pairs of a batch; its loss.

        Raises ModelError, naming the batch (`where`) and its clips, where the loss is not finite.
        """
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        passes = -(-len(rows) // (self.settings.micro_clips or -(-len(rows) // world)))
        passes += -passes % world  # each process has as many
        places = np.array_split(np.arange(len(rows)), passes)  # in the batch
        own = [(number, places[number]) for number in range(rank, passes, world)]
        raw = torch.zeros(len(rows), device=self.accelerator.device)
        heard = None
        if len(own) == 1:
            ((number, part),) = own
            heard = self._forward(rows, part, step, number)
            raw[part] = heard[0].detach()[: len(part)]
        else:  # once without a graph, and below, with the gradient known, once more with one
            for number, part in own:
                with torch.no_grad():
                    raw[part] = self._forward(rows, part, step, number)[0][: len(part)]
        if world > 1:
            raw = self.accelerator.reduce(raw)
        where = f"{where}, step {step + 1}"
        loss, gradient = self._judge(raw.requires_grad_(), rows, where)
        if not gradient.any():
            return loss  # nobody ordered any two of these clips: nothing to step for
        for number, part in own:
            with _syncing(self.accelerator, self.module, number == own[-1][0]):
                outputs, adversarial = heard or self._forward(rows, part, step, number)
                # A process without a clip of its own was given another's, which must not count twice.
                share = (outputs[: len(part)] * gradient[part]).sum() + adversarial * (len(part) > 0) / len(rows)
                self.accelerator.backward(share * world)  # DDP takes the mean over processes
        if not self._descend(step):
            raise self._fault(rows, where, "the gradient of this batch is not finite, though its loss is")
        return loss

    def _judge(self, raw: Tensor, rows: Rows, where: str) -> tuple[float, Tensor]:
        """The loss of a batch's raw outputs [B], and its gradient [B]. Raises ModelError where it is not finite."""
        scores, groups = (values[rows].to(raw.device) for values in (self.scores, self.groups))
        loss = self.settings.objective(raw, scores, groups, self.centre)
        (gradient,) = torch.autograd.grad(loss, raw)
        value = float(loss.detach())
        if np.isfinite(value):
            return value, gradient
        wrong = rows[~raw.detach().isfinite().cpu().numpy()]
        count = f"; the outputs of {len(wrong)} of its {len(rows)} clips are not finite" if len(wrong) else ""
        raise self._fault(wrong if len(wrong) else rows, where, f"the loss of this batch is {value}{count}")

    def _fault(self, rows: Rows, where: str, what: str) -> ModelError:
        """A sentence that names clips."""
        named = shorten([self.train.names[place] for place in rows])
        return ModelError(
            f"seed {self.seed}, {where}: {what} ({named}). Look at these recordings, or lower training.learning_rate."
        )

    def _forward(self, rows: Rows, part: Rows, step: int, number: int) -> tuple[Tensor, Tensor]:
        """One pass over some of a batch's clips; its first stands in where there are none."""
        places = rows[part] if len(part) else rows[:1]
        _seed(_derive(self.seed, step, number), self.accelerator.device)
        features = [self.train.features[int(place)] for place in places]
        batch = collate(features, windowed=self.network.windowed).to(self.accelerator.device)
        targets = None if self.train.targets is None else self.train.targets[places].to(self.accelerator.device)
        weight = self.settings.adversary_weight * ramp(step, self.steps)
        raw, adversarial = self.module(batch, targets, weight)
        return raw, adversarial

    def _descend(self, step: int) -> bool:
        """Clip the gradients and step, at the rate that the schedule has now; False, and no step, if one is not finite.

        In fp16, accelerate's scaler looks after that: it leaves such a step out, and scales by less from then on.
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
        """The head's learning rate at a step."""
        return self.settings.learning_rate * self._factor(step)

    def _factor(self, step: int) -> float:
        return rate_factor(step, self.steps, schedule=self.settings.schedule, warmup_share=self.settings.warmup_share)


def _optimizer(module: Trained, settings: FitSettings) -> torch.optim.Optimizer:
    """AdamW with a rate for each part: the head, what is tuned of MuQ, the adversary."""
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


def _syncing(accelerator: Accelerator, module: nn.Module, last: bool) -> Any:
    """Processes exchange gradients once a step: in its last pass."""
    return contextlib.nullcontext() if last else accelerator.no_sync(module)


def _seed(seed: int, device: torch.device) -> None:
    """Seed torch's chance where it is drawn from; torch.manual_seed notes a stack for every other kind of device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _derive(seed: int, step: int, number: int) -> int:
    return int(np.random.SeedSequence([seed % 2**63, step, number]).generate_state(1, np.uint64)[0] >> 1)
