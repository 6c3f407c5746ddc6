"""Heads: map the features of each clip to one raw output.

A raw output has no unit; higher is better. Calibration maps it to a score.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioscore.errors import ModelError, UsageError
from audioscore.scoring import fusion
from audioscore.scoring.network import Batch

LEGACY_KIND = "predecessor"  # value in scorer.json and in the configuration; the name must not change
HELD_BYTES = 64 << 20  # limit of queries, keys and values that are in memory at once, on a CPU without gradients


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention of each frame to all real frames of its clip.

    On a CPU without gradients, the attention heads are processed in groups, to bound the memory of long recordings.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads
        self.inputs = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """Shape: values [B, F, D], mask [B, F] -> [B, F, D]."""
        if torch.is_grad_enabled() or (groups := self._groups(values)) == 1:
            out = self._attend(fusion.framewise(self.inputs, values), mask, self.heads)
            return fusion.framewise(self.output, out)
        out = torch.empty_like(values)
        for group, target in enumerate(out.chunk(groups, dim=-1)):
            inputs = fusion.framewise(self._inputs_of(group, groups), values)
            target.copy_(self._attend(inputs, mask, self.heads // groups))
            del inputs  # free the memory before the next group
        return fusion.framewise(self.output, out, in_place=True)

    def _groups(self, values: Tensor) -> int:
        """Number of groups of heads, so that the inputs of one group fit into HELD_BYTES."""
        least = 3 * values.numel() * values.element_size() / HELD_BYTES
        if values.device.type != "cpu":  # a GPU has memory for the batch, and more calls are slower
            return 1
        return next((count for count in range(1, self.heads) if self.heads % count == 0 and count >= least), self.heads)

    def _inputs_of(self, group: int, groups: int) -> Callable[[Tensor], Tensor]:
        """The input projection of one group of heads. Shape: [N, D] -> [N, 3 D / groups]."""
        rows = torch.arange(3 * self.dim).unflatten(0, (3, groups, -1))[:, group].flatten()
        if not isinstance(self.inputs, nn.Linear):  # an optimized layer of audioscore.muq_cpu
            return self.inputs.part(rows)
        return partial(F.linear, weight=self.inputs.weight[rows], bias=self.inputs.bias[rows])

    def _attend(self, inputs: Tensor, mask: Tensor, heads: int) -> Tensor:
        """Shape: inputs [B, F, 3 C] -> [B, F, C]."""
        query, key, value = inputs.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if torch.is_grad_enabled() or inputs.device.type != "cpu":
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
        else:  # clip by clip without a mask: its rounding errors are small, but int16 layers would enlarge them
            attended = torch.zeros_like(query)
            for clip, real in enumerate(mask.sum(1).tolist()):
                own = slice(clip, clip + 1), slice(None), slice(real)
                attended[own] = F.scaled_dot_product_attention(query[own], key[own], value[own])
        return attended.transpose(1, 2).flatten(-2)


class SongEvalHead(nn.Module):
    """Map frames to one vector per clip, independent of padding and of the other clips of the batch.

    Based on the scorer of SongEval: Linear-ReLU-Linear, chained multi-head self-attention, time-mean and time-max. The
    caller adds the linear output. Unlike the original, padding is masked everywhere, attention is residual with
    pre-layer normalisation (Xiong et al. 2020, On Layer Normalization in the Transformer Architecture), which converges
    earlier at small learning rates, and mean and max are both computed from the last layer.

    Source: Yao et al. 2025, SongEval: A Benchmark Dataset for Song Aesthetics Evaluation.
    """

    def __init__(self, dim: int, hidden: int, *, heads: int = 8, layers: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        if layers < 1 or heads < 1 or dim % heads:
            raise UsageError(
                f"head with {dim} channels, {heads} heads, {layers} layers: the channels must be a multiple of the "
                f"heads, with at least one layer. Change the width or the number of heads."
            )
        self.feed_forward = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        self.attentions = nn.ModuleList(SelfAttention(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)  # not on attention weights: drawing F * F values is half of a step's time
        self.representation_dim = 2 * dim

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Shape: frames [B, F, D], mask [B, F] with at least one real frame per clip -> [B, 2 D]."""
        values = self.dropout(fusion.framewise(self.feed_forward, fusion.without_padding(frames, mask)))
        for norm, attention in zip(self.norms, self.attentions, strict=True):
            values = values + self.dropout(attention(norm(values), mask))
        values = self.norm(values)
        return torch.cat([fusion.masked_mean(values, mask), fusion.masked_max(values, mask)], dim=-1)


class ScoreHead(nn.Module):
    """Fuse the branches, pool them over real frames, and predict one raw output per clip.

    The output of a clip does not depend on padding or on the other clips of the batch.

    Args:
        kind: Pooling. "light": mean, standard deviation and attention-weighted mean; "attention": only the
            attention-weighted mean; "songeval": `SongEvalHead`.
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
        self.fusion = fusion.Fusion(dims, width=width, pooled=pooled)
        frame_dim, voice_dim = self.fusion.frame_dim, self.fusion.voice_dim
        if kind == "songeval":
            self.songeval = SongEvalHead(frame_dim, hidden, heads=heads, layers=layers, dropout=dropout)
            self.representation_dim = self.songeval.representation_dim + voice_dim
            self.regressor = nn.Sequential(nn.Dropout(dropout), nn.Linear(self.representation_dim, 1))
            return
        if kind not in ("light", "attention"):
            raise ValueError(f"a head is light, attention or songeval; got {kind!r}")
        self.attention = fusion.AttentionPool(frame_dim)
        self.representation_dim = frame_dim * (3 if kind == "light" else 1) + voice_dim
        self.regressor = nn.Sequential(
            nn.LayerNorm(self.representation_dim), nn.Dropout(dropout), nn.Linear(self.representation_dim, hidden),
            nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, 1),
        )  # fmt: skip

    def represent(self, batch: Batch) -> Tensor:
        """Pool each clip to the input of `predict`. Shape: B clips -> [B, representation_dim]."""
        joint, mask, voice = self.fusion(batch)
        if self.kind == "songeval":
            parts = [self.songeval(joint, mask)]
        elif self.kind == "light":
            parts = [fusion.masked_mean(joint, mask), fusion.masked_std(joint, mask), self.attention(joint, mask)]
        else:
            parts = [self.attention(joint, mask)]
        return torch.cat(parts if voice is None else [*parts, voice], dim=-1)

    def predict(self, representation: Tensor) -> Tensor:
        """Shape: [B, representation_dim] -> raw outputs [B]."""
        raw: Tensor = self.regressor(representation)[:, 0]
        return raw

    def forward(self, batch: Batch) -> Tensor:
        """Shape: B clips -> raw outputs [B]."""
        return self.predict(self.represent(batch))


def build_head(arguments: Mapping[str, Any]) -> Any:
    """Build the head of a scorer's description, with random weights.

    Raises: ModelError for unknown or invalid arguments.
    """
    try:
        if arguments.get("kind") == LEGACY_KIND:
            from audioscore.scoring.legacy.model import LegacyScoreHead

            return LegacyScoreHead(**{name: value for name, value in arguments.items() if name != "kind"})
        return ScoreHead(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"head of the description: cannot be built ({error}). Train the scorer again.") from error
