"""Heads: what each plan's features become, one raw output a clip.

A raw output has no unit; higher is better. Calibration turns it into a score.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioscore.errors import ModelError, UsageError
from audioscore.scoring.fusion import (
    AttentionPool,
    Fusion,
    framewise,
    masked_max,
    masked_mean,
    masked_std,
    without_padding,
)
from audioscore.scoring.network import Batch

HELD_BYTES = 64 << 20  # of queries, keys and values at once, on a CPU without gradients


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention of each frame to all real frames of its clip."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads
        self.inputs = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """Shape: values [B, F, D], mask [B, F] -> [B, F, D]."""
        if torch.is_grad_enabled() or (groups := self._groups(values)) == 1:
            out = self._attend(framewise(self.inputs, values), mask, self.heads)
            return framewise(self.output, out)
        out = torch.empty_like(values)
        for group, made in enumerate(out.chunk(groups, dim=-1)):
            inputs = framewise(self._inputs_of(group, groups), values)
            made.copy_(self._attend(inputs, mask, self.heads // groups))
            del inputs  # before the next group's are made
        return framewise(self.output, out, in_place=True)

    def _groups(self, values: Tensor) -> int:
        """Into how many groups the heads must part for what one group is given to be held at once."""
        least = 3 * values.numel() * values.element_size() / HELD_BYTES
        if values.device.type != "cpu":  # which has room for the batch, and loses by more calls
            return 1
        return next((count for count in range(1, self.heads) if self.heads % count == 0 and count >= least), self.heads)

    def _inputs_of(self, group: int, groups: int) -> Callable[[Tensor], Tensor]:
        """The part of `inputs` that the heads of one group are given. Shape: [N, D] -> [N, 3 D / groups]."""
        rows = torch.arange(3 * self.dim).unflatten(0, (3, groups, -1))[:, group].flatten()
        if not isinstance(self.inputs, nn.Linear):  # one that is quicker: encoders.products
            return self.inputs.part(rows)
        return partial(F.linear, weight=self.inputs.weight[rows], bias=self.inputs.bias[rows])

    def _attend(self, inputs: Tensor, mask: Tensor, heads: int) -> Tensor:
        """Shape: inputs [B, F, 3 C] -> [B, F, C]."""
        query, key, value = inputs.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if torch.is_grad_enabled() or inputs.device.type != "cpu":
            heard = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
        else:  # each clip as if it were alone: what a mask changes is little, but layers that round would make it more
            heard = torch.zeros_like(query)
            for clip, real in enumerate(mask.sum(1).tolist()):
                own = slice(clip, clip + 1), slice(None), slice(real)
                heard[own] = F.scaled_dot_product_attention(query[own], key[own], value[own])
        return heard.transpose(1, 2).flatten(-2)


class SongEvalHead(nn.Module):
    """Frames to one vector a clip; what a clip is padded with, or beside, never changes it.

    After SongEval's scorer: Linear-ReLU-Linear, chained multi-head self-attention, time-mean beside time-max; the
    linear output is the caller's. Unlike there, padding is left out everywhere, attention is residual with normalised
    inputs (Xiong et al. 2020, On Layer Normalization in the Transformer Architecture), which learns sooner at small
    learning rates, and mean and max are both of the last layer.

    Source: Yao et al. 2025, SongEval: A Benchmark Dataset for Song Aesthetics Evaluation.
    """

    def __init__(self, dim: int, hidden: int, *, heads: int = 8, layers: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        if layers < 1 or heads < 1 or dim % heads:
            raise UsageError(
                f"head of {dim} channels, {heads} heads, {layers} layers: heads must divide the channels, and there "
                f"must be one layer at least. Change the width or the number of heads."
            )
        self.feed_forward = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        self.attentions = nn.ModuleList(SelfAttention(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)  # not of attention weights: drawing F * F of them is half of a step
        self.representation_dim = 2 * dim

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Shape: frames [B, F, D], mask [B, F] of one real frame at least a clip -> [B, 2 D]."""
        values = self.dropout(framewise(self.feed_forward, without_padding(frames, mask)))
        for norm, attention in zip(self.norms, self.attentions, strict=True):
            values = values + self.dropout(attention(norm(values), mask))
        values = self.norm(values)
        return torch.cat([masked_mean(values, mask), masked_max(values, mask)], dim=-1)


class ScoreHead(nn.Module):
    """Fuses the branches, pools them over real frames, and regresses one raw output.

    `kind` is what pools: "light" takes mean, deviation and attention-weighted mean, "attention" the last of these
    alone, "songeval" the SongEval-style head. What a clip is padded with, or beside, never changes its output.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        *,
        width: int,
        hidden: int,
        dropout: float,
        kind: str = "light",
        pooled: bool = False,
        heads: int = 8,
        layers: int = 4,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.fusion = Fusion(dims, width=width, pooled=pooled)
        frame_dim, voice_dim = self.fusion.frame_dim, self.fusion.voice_dim
        if kind == "songeval":
            self.songeval = SongEvalHead(frame_dim, hidden, heads=heads, layers=layers, dropout=dropout)
            self.representation_dim = self.songeval.representation_dim + voice_dim
            self.regressor = nn.Sequential(nn.Dropout(dropout), nn.Linear(self.representation_dim, 1))
            return
        if kind not in ("light", "attention"):
            raise ValueError(f"a head is light, attention or songeval; got {kind!r}")
        self.attention = AttentionPool(frame_dim)
        self.representation_dim = frame_dim * (3 if kind == "light" else 1) + voice_dim
        self.regressor = nn.Sequential(
            nn.LayerNorm(self.representation_dim), nn.Dropout(dropout), nn.Linear(self.representation_dim, hidden),
            nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, 1),
        )  # fmt: skip

    def represent(self, batch: Batch) -> Tensor:
        """What the head knows of each clip before it judges. Shape: B clips -> [B, representation_dim]."""
        joint, mask, voice = self.fusion(batch)
        if self.kind == "songeval":
            parts = [self.songeval(joint, mask)]
        elif self.kind == "light":
            parts = [masked_mean(joint, mask), masked_std(joint, mask), self.attention(joint, mask)]
        else:
            parts = [self.attention(joint, mask)]
        return torch.cat(parts if voice is None else [*parts, voice], dim=-1)

    def judge(self, representation: Tensor) -> Tensor:
        """Shape: [B, representation_dim] -> raw outputs [B]."""
        raw: Tensor = self.regressor(representation)[:, 0]
        return raw

    def forward(self, batch: Batch) -> Tensor:
        """Shape: B clips -> raw outputs [B]."""
        return self.judge(self.represent(batch))


def build_head(arguments: Mapping[str, Any]) -> Any:
    """A head from what a description says of it, with random weights. Raises ModelError where that cannot be."""
    try:
        if arguments.get("kind") == "predecessor":
            from audioscore.scoring.legacy.model import PredecessorScoreHead

            return PredecessorScoreHead(**{name: value for name, value in arguments.items() if name != "kind"})
        return ScoreHead(**arguments)
    except (TypeError, ValueError, RuntimeError) as fault:
        raise ModelError(f"the description's head cannot be built ({fault}). Train the scorer again.") from fault
