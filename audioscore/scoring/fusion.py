"""What the plans hear, brought together: each branch standardised, projected, and the voice laid beside the frames."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from audioscore.scoring.batch import Batch
from audioscore.scoring.pooling import frame_mask


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
        self.set(values.mean(dim=0), values.std(dim=0, unbiased=False))

    def set(self, mean: Tensor, deviation: Tensor) -> None:
        """Shape: mean [D], deviation [D]. Channels that never change are left unscaled."""
        self.mean.copy_(mean)
        self.std.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))

    def forward(self, values: Tensor) -> Tensor:
        out: Tensor = (values - self.mean) / self.std
        return out


class Fusion(nn.Module):
    """MuQ frames and/or a CAM++ embedding, `width` channels each.

    `dims` names the branches and their sizes: {"muq": 1024, "campplus": 192}. With `pooled`, the embedding is not
    repeated over time but waits for the frames to be pooled; it needs both branches then.
    """

    def __init__(self, dims: Mapping[str, int], *, width: int, pooled: bool = False) -> None:
        super().__init__()
        if not dims or not set(dims) <= {"muq", "campplus"}:
            raise ValueError(f"branches must be muq and/or campplus; got {sorted(dims)}")
        self.dims = dict(dims)
        self.pooled = pooled and len(dims) == 2
        self.norms = nn.ModuleDict({name: Standardize(dim) for name, dim in dims.items()})
        self.projections = nn.ModuleDict({name: nn.Linear(dim, width) for name, dim in dims.items()})
        self.frame_dim = width * (1 if self.pooled else len(dims))  # channels of each frame
        self.voice_dim = width if self.pooled else 0  # channels that wait

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Frames [B, F, frame_dim], True where one is real [B, F], and the voice [B, voice_dim] where it waits."""
        parts, voice = [], None
        frames = 1 if batch.frames is None else batch.frames.shape[1]
        if "muq" in self.dims:
            parts.append(self.projections["muq"](self.norms["muq"](batch.frames)))  # (B, F, width)
        if "campplus" in self.dims:
            voice = self.projections["campplus"](self.norms["campplus"](batch.embedding))  # (B, width)
            if not self.pooled:
                parts.append(voice[:, None].expand(-1, frames, -1))
        joint = torch.cat(parts, dim=-1)
        return joint, frame_mask(batch.lengths.to(joint.device), frames), voice if self.pooled else None
