"""Fit several heads on the same frozen features at once: the folds of a cross-validation, or the seeds of a plan.

A step computes one batch of every head in one call (`torch.func.vmap`), and the projection of the frames is left out
where it can be: it is linear, so mean and deviation of projected frames follow from mean and covariance of the raw
frames, and attention can weight raw frames. In fp32, the results are those of `training.loop` up to rounding, apart
from the random numbers of dropout, which depend on all heads that are fitted together.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from audioscore.encoders.features import Features
from audioscore.errors import ModelError, shorten
from audioscore.scoring.fusion import VARIANCE_FLOOR, frame_mask
from audioscore.scoring.head import ScoreHead
from audioscore.scoring.network import collate
from audioscore.training.batches import Rows, draw_batches
from audioscore.training.data import TrainingSplit
from audioscore.training.losses import ABSOLUTE
from audioscore.training.step import FitSettings, rate_factor

MEMORY = 4 * 2**30  # bytes that the frames, or their covariances, may take
FRAMES_PER_CHANNEL = 2  # from as many on, a covariance saves time
EVALUATED_CLIPS = 256  # in one forward pass
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of AdamW


@dataclass(frozen=True)
class ClipStatistics:
    """What a head reads of N clips. Without MuQ, frames and their statistics are None; without CAM++, the embeddings.

    Shape: frames [N, F, D], zero in padding; lengths [N]; mean [N, D]; covariance [N, D, D] or None, if that would take
    more time than the frames; embedding [N, E].
    """

    frames: Tensor | None
    lengths: Tensor
    mean: Tensor | None
    covariance: Tensor | None
    embedding: Tensor | None

    @classmethod
    def read(cls, features: Sequence[Features], device: torch.device) -> "Self | None":
        """Read all clips; None if they do not fit into MEMORY."""
        first = features[0]
        size = int(first["muq"].shape[-1]) if "muq" in first else 0
        clips, longest = [], 0
        for index in range(len(features)):
            clips.append(features[index])
            longest = max(longest, len(clips[-1]["muq"]) if size else 1)
            if 4 * size * longest * len(features) > MEMORY:
                return None
        batch = collate(clips).to(device)
        if batch.frames is None:
            return cls(None, batch.lengths, None, None, batch.embedding)
        frames = batch.frames.float()
        mask = frame_mask(batch.lengths.to(device), frames.shape[1])[..., None]
        frames, counts = frames.masked_fill(~mask, 0.0), batch.lengths.to(frames)[:, None]
        mean = frames.sum(1) / counts
        covariance = None
        if FRAMES_PER_CHANNEL * size <= longest and 4 * size**2 * len(clips) <= MEMORY:
            centred = (frames - mean[:, None]).masked_fill(~mask, 0.0)
            covariance = centred.transpose(1, 2) @ centred / counts[..., None]
        return cls(frames, batch.lengths, mean, covariance, batch.embedding)

    def batch_bytes(self, clips: int) -> int:
        """Return the bytes that a head reads of so many clips: their frames and covariances."""
        values = [value for value in (self.frames, self.covariance) if value is not None]
        return sum(4 * clips * value[0].numel() for value in values)

    def inputs(self, rows: Tensor) -> tuple[Tensor | None, ...]:
        """Return the inputs of `FrozenHead` for clips; frames are cut to the longest of them. Shape: rows [...]."""
        if self.frames is None:
            assert self.embedding is not None
            return None, None, None, None, self.embedding[rows.to(self.embedding.device)]
        device = self.frames.device
        lengths = self.lengths[rows]
        longest, rows = int(lengths.max()), rows.to(device)
        mask = torch.arange(longest, device=device) < lengths.to(device)[..., None]
        covariance = None if self.covariance is None else self.covariance[rows]
        embedding = None if self.embedding is None else self.embedding[rows]
        assert self.mean is not None
        return self.frames[:, :longest][rows], mask, self.mean[rows], covariance, embedding


class FrozenHead(nn.Module):
    """A light or attention head that reads the statistics of clips; its weights are those of the head."""

    def __init__(self, head: ScoreHead) -> None:
        super().__init__()
        self.head = head

    def forward(
        self, frames: Tensor | None, mask: Tensor | None, mean: Tensor | None, covariance: Tensor | None,
        embedding: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Shape: B clips as `ClipStatistics.inputs` returns them -> raw outputs [B]."""
        means, deviations, weighted, voice = [], [], [], None
        if frames is not None and mask is not None and mean is not None:
            weight, bias = self._projection("muq")
            means.append(mean @ weight.T + bias)
            if self.head.kind == "light":
                deviations.append(_deviation(frames, mask, mean, covariance, weight))
            query = weight.T @ self.head.attention.score.weight[0, : len(bias)]  # of raw frames
            attention = (frames @ query).masked_fill(~mask, float("-inf")).softmax(dim=1)
            weighted.append(torch.einsum("bf,bfd->bd", attention, frames) @ weight.T + bias)
        if embedding is not None:
            weight, bias = self._projection("campplus")
            voice = embedding @ weight.T + bias
            if not self.head.fusion.pooled:  # repeated for every frame: a constant
                means.append(voice)
                deviations.append(torch.full_like(voice, VARIANCE_FLOOR**0.5))
                weighted.append(voice)
        parts = [*means, *deviations, *weighted] if self.head.kind == "light" else weighted
        return self.head.predict(
            torch.cat([*parts, voice] if self.head.fusion.pooled and voice is not None else parts, -1)
        )

    def _projection(self, branch: str) -> tuple[Tensor, Tensor]:
        """Weight and bias of standardisation and projection together. Shape: [W, D], [W]."""
        norm: Any = self.head.fusion.norms[branch]
        linear: Any = self.head.fusion.projections[branch]
        weight = linear.weight / norm.std
        return weight, linear.bias - weight @ norm.mean


def _deviation(frames: Tensor, mask: Tensor, mean: Tensor, covariance: Tensor | None, weight: Tensor) -> Tensor:
    """Deviation of the projected frames. Shape: [B, F, D], [B, F], [B, D], [B, D, D], [W, D] -> [B, W]."""
    if covariance is None:
        projected = ((frames - mean[:, None]) * mask[..., None]) @ weight.T
        variance = projected.square().sum(1) / mask.sum(1, keepdim=True)
    else:
        variance = ((covariance @ weight.T) * weight.T).sum(1)
    return (variance.clamp(min=0.0) + VARIANCE_FLOOR).sqrt()


@dataclass(frozen=True)
class FrozenFit:
    """The clips that one head is trained on, and its seed. Shape: rows [n] of the split."""

    rows: Rows
    seed: int


@dataclass
class _State:
    """Parameters of all heads, and the moments of AdamW, with the numbers of batches and of updates.

    Shape: each [M, ...], steps [M], updates [M].
    """

    parameters: dict[str, Tensor]
    first: dict[str, Tensor]
    second: dict[str, Tensor]
    steps: Tensor
    updates: Tensor


Observer = Callable[[int, float, NDArray[np.float32]], None]


def fit_frozen(
    heads: Sequence[ScoreHead],
    clips: ClipStatistics,
    split: TrainingSplit,
    fits: Sequence[FrozenFit],
    settings: FitSettings,
    *,
    epochs: int,
    observe: Observer | None = None,
) -> NDArray[np.float32]:
    """Train heads in place for `epochs`; return their raw outputs for all clips after each epoch, or, without
    `observe`, after the last one (zeros before).

    The learning rate follows the schedule of `settings.epochs`, so that fewer epochs are the beginning of the same fit.

    Args:
        heads: of one architecture, each with its statistics, on the device of `clips`.
        observe: called after each epoch with its number, the mean loss and the outputs [M, N].
    Shape: M heads, N clips -> [epochs, M, N].
    Raises: ModelError, naming the clips, if a loss or gradient is not finite.
    """
    device = next(heads[0].parameters()).device
    wrapped = [FrozenHead(head) for head in heads]
    stacked, buffers = stack_module_state(wrapped)
    template = copy.deepcopy(wrapped[0]).to("meta")
    parameters = {name: value.detach().requires_grad_() for name, value in stacked.items()}
    zeros = [{name: torch.zeros_like(value) for name, value in parameters.items()} for _ in range(2)]
    counts = [torch.zeros(len(heads), device=device) for _ in range(2)]
    state = _State(parameters, zeros[0], zeros[1], *counts)
    centres = [_centre(split, fit.rows) for fit in fits]
    outputs = np.zeros((epochs, len(heads), len(split.scores)), dtype=np.float32)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(fits[0].seed)
        for epoch in range(1, epochs + 1):
            drawn = [_batches(split, fit, settings, epoch) for fit in fits]
            losses: list[float] = []
            for number in range(max(map(len, drawn))):
                rows = [batches[number] if number < len(batches) else None for batches in drawn]
                losses.append(_step(template, state, buffers, clips, split, fits, rows, centres, settings, epoch))
            if observe is not None or epoch == epochs:
                found = _evaluate(template, state.parameters, buffers, clips, len(split.scores))
                outputs[epoch - 1] = found.cpu().numpy()
            if observe is not None:
                observe(epoch, float(np.mean(losses)), outputs[epoch - 1])
    for index, head in enumerate(wrapped):
        head.load_state_dict({name: value[index] for name, value in {**state.parameters, **buffers}.items()})
        head.eval()
    return outputs


def _centre(split: TrainingSplit, rows: Rows) -> float:
    absolute = [split.scores[row] for row in rows if split.groups[row] == ABSOLUTE]
    return float(np.mean(absolute)) if absolute else 0.0


def _batches(split: TrainingSplit, fit: FrozenFit, settings: FitSettings, epoch: int) -> list[Rows]:
    part = [[values[row] for row in fit.rows] for values in (split.scores, split.sources, split.groups, split.keys)]
    drawn = draw_batches(
        part[0], part[1], part[2], keys=part[3], batch_clips=settings.batch_clips, seed=fit.seed, epoch=epoch
    )
    return [fit.rows[batch] for batch in drawn]


def _step(
    template: nn.Module, state: _State, buffers: Mapping[str, Tensor], clips: ClipStatistics, split: TrainingSplit,
    fits: Sequence[FrozenFit], rows: Sequence[Rows | None], centres: Sequence[float], settings: FitSettings, epoch: int,
) -> float:  # fmt: skip
    """One step of every head that has a batch left in this epoch; return the mean loss."""
    device = state.steps.device
    size = max(len(batch) for batch in rows if batch is not None)
    padded = np.zeros((len(rows), size), dtype=np.int64)
    for index, batch in enumerate(rows):
        if batch is not None:
            padded[index] = np.resize(batch, size)
    raw = _forward(template.train(), state.parameters, buffers, clips.inputs(torch.from_numpy(padded)), 0)
    losses = []
    for index, batch in enumerate(rows):
        if batch is None:
            continue
        chosen = torch.from_numpy(batch)
        scores = torch.tensor([split.scores[row] for row in batch], dtype=torch.float32, device=device)
        groups = torch.tensor([split.groups[row] for row in batch], device=device)
        loss = settings.objective(raw[index, : len(chosen)], scores, groups, centres[index])
        if not bool(torch.isfinite(loss)):
            finite = torch.isfinite(raw[index, : len(chosen)]).tolist()
            wrong = [split.names[row] for row, fine in zip(batch, finite, strict=True) if not fine]
            listed = shorten(wrong or [split.names[row] for row in batch])
            count = f"; the outputs of {len(wrong)} of its {len(batch)} clips are not finite" if wrong else ""
            raise ModelError(
                f"seed {fits[index].seed}, epoch {epoch}: the loss of a batch is {float(loss.detach())}{count} "
                f"({listed}). Check these recordings, or lower training.learning_rate."
            )
        losses.append(loss)
    total = torch.stack(losses).sum()
    names = list(state.parameters)
    gradients = torch.autograd.grad(
        total, [state.parameters[name] for name in names], allow_unused=True, materialize_grads=True
    )
    _descend(state, dict(zip(names, gradients, strict=True)), rows, fits, split, settings)
    return float(total.detach()) / len(losses)


def _forward(
    template: nn.Module, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor],
    inputs: tuple[Tensor | None, ...], dimension: int | None,
) -> Tensor:  # fmt: skip
    """Raw outputs of every head. Shape: inputs [M, B, ...], or [B, ...] with `dimension` None -> [M, B]."""

    def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], *inputs: Tensor | None) -> Tensor:
        found: Tensor = functional_call(template, (parameters, buffers), inputs)
        return found

    dims = (0, 0, *(None if value is None else dimension for value in inputs))
    found: Tensor = vmap(one, in_dims=dims, randomness="different")(dict(parameters), dict(buffers), *inputs)
    return found


def _evaluate(
    template: nn.Module, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], clips: ClipStatistics,
    count: int,
) -> Tensor:  # fmt: skip
    """Raw outputs of every head for all clips, without dropout. Shape: -> [M, N]."""
    with torch.no_grad():
        parts = torch.arange(count).split(EVALUATED_CLIPS)
        return torch.cat(
            [_forward(template.eval(), parameters, buffers, clips.inputs(part), None) for part in parts], 1
        )


def _descend(
    state: _State, gradients: Mapping[str, Tensor], rows: Sequence[Rows | None], fits: Sequence[FrozenFit],
    split: TrainingSplit, settings: FitSettings,
) -> None:  # fmt: skip
    """Clip each head's gradient and apply AdamW at its scheduled rate; heads without a batch do not change.

    A batch without an order has no gradient, and then its head does not change either.
    """
    device = state.steps.device
    squares = sum(gradient.flatten(1).square().sum(1) for gradient in gradients.values())
    norms = torch.as_tensor(squares, device=device).sqrt()
    for index, fine in enumerate(torch.isfinite(norms).tolist()):
        if not fine:
            batch = rows[index]
            listed = shorten([] if batch is None else [split.names[row] for row in batch])
            raise ModelError(
                f"seed {fits[index].seed}: the gradient of a batch is not finite, though its loss is ({listed}). Check "
                f"these recordings, or lower training.learning_rate."
            )
    used = torch.tensor([batch is not None for batch in rows], device=device)
    moving = used & (norms > 0)
    factors = [
        settings.learning_rate
        * rate_factor(
            int(step), settings.epochs * settings.batches(len(fit.rows)),
            schedule=settings.schedule, warmup_share=settings.warmup_share,
        )
        for step, fit in zip(state.steps.tolist(), fits, strict=True)
    ]  # fmt: skip
    rates = torch.tensor(factors, device=device)
    scale = (settings.clip_norm / (norms + 1e-6)).clamp(max=1.0)
    state.steps += used
    state.updates += moving
    with torch.no_grad():
        for name, value in state.parameters.items():
            shape = (-1, *(1 for _ in value.shape[1:]))
            first, second = state.first[name], state.second[name]
            moved = moving.view(shape)
            gradient = gradients[name] * scale.view(shape)
            first.copy_(torch.where(moved, BETAS[0] * first + (1 - BETAS[0]) * gradient, first))
            second.copy_(torch.where(moved, BETAS[1] * second + (1 - BETAS[1]) * gradient.square(), second))
            steps = state.updates.clamp(min=1).view(shape)
            change = (first / (1 - BETAS[0] ** steps)) / ((second / (1 - BETAS[1] ** steps)).sqrt() + EPSILON)
            rate = rates.view(shape)
            value.copy_(torch.where(moved, value * (1 - rate * settings.weight_decay) - rate * change, value))
