"""The light head: normalise and project each branch, concatenate, pool over time, regress one raw output.

A raw output has no unit; higher is better. Calibration turns it into a score.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from audioscore.encoders.extract import Features
from audioscore.scoring.batch import Batch, collate
from audioscore.scoring.pooling import AttentionPool, frame_mask, masked_mean, masked_std

BATCH_CLIPS = 64  # clips a forward pass, so that a folder of recordings never fills the memory


class Standardize(nn.Module):
    """(x - mean) / std with statistics of the training clips, kept as buffers so that they travel with the weights."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def fit(self, values: Tensor) -> None:
        """Shape: values [N, D]. Channels that never change are left unscaled."""
        deviation = values.std(dim=0, unbiased=False)
        self.mean.copy_(values.mean(dim=0))
        self.std.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))

    def forward(self, values: Tensor) -> Tensor:
        out: Tensor = (values - self.mean) / self.std
        return out


class ScoreHead(nn.Module):
    """MuQ frames and/or a CAM++ embedding to one raw output a clip.

    `dims` names the branches and their sizes: {"muq": 1024, "campplus": 192}. Each branch is standardised and
    projected to `width` channels, the embedding is repeated over time, and the concatenation is pooled to
    mean, deviation and attention-weighted mean over real frames.
    """

    def __init__(self, dims: Mapping[str, int], *, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        if not dims or not set(dims) <= {"muq", "campplus"}:
            raise ValueError(f"branches must be muq and/or campplus; got {sorted(dims)}")
        self.dims = dict(dims)
        self.norms = nn.ModuleDict({name: Standardize(dim) for name, dim in dims.items()})
        self.projections = nn.ModuleDict({name: nn.Linear(dim, width) for name, dim in dims.items()})
        joint = width * len(dims)
        self.attention = AttentionPool(joint)
        self.mlp = nn.Sequential(
            nn.LayerNorm(3 * joint), nn.Dropout(dropout), nn.Linear(3 * joint, hidden), nn.GELU(),
            nn.Dropout(dropout), nn.Linear(hidden, 1),
        )  # fmt: skip

    def forward(self, batch: Batch) -> Tensor:
        """Shape: B clips -> raw outputs [B]. What a clip is padded with, or beside, never changes its output."""
        parts = []
        frames = 1 if batch.frames is None else batch.frames.shape[1]
        if "muq" in self.dims:
            parts.append(self.projections["muq"](self.norms["muq"](batch.frames)))  # (B, F, width)
        if "campplus" in self.dims:
            voice = self.projections["campplus"](self.norms["campplus"](batch.embedding))
            parts.append(voice[:, None].expand(-1, frames, -1))
        joint = torch.cat(parts, dim=-1)
        mask = frame_mask(batch.lengths, frames)
        pooled = torch.cat([masked_mean(joint, mask), masked_std(joint, mask), self.attention(joint, mask)], dim=-1)
        out: Tensor = self.mlp(pooled)[:, 0]
        return out


def raw_outputs(
    head: ScoreHead, features: Sequence[Features], device: str = "cpu"
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Raw outputs of many clips, in eval mode.

    Shape: N clips -> [N], float64.
    """
    head.eval()
    parts = [np.zeros(0)]
    with torch.inference_mode():
        for start in range(0, len(features), BATCH_CLIPS):
            batch = collate(features[start : start + BATCH_CLIPS]).to(device)
            parts.append(head(batch).double().cpu().numpy())
    return np.concatenate(parts)
