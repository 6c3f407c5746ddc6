"""Pooling and fusion: standardise and project the features of each encoder, and combine them for the head."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from audioscore.scoring.network import Batch

VARIANCE_FLOOR = 1e-6  # keeps the gradient of a deviation finite for constant channels


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """Mask of the frames that are not padding.

    Shape: lengths [B] -> [B, frames], True for real frames.

    >>> frame_mask(torch.tensor([1, 3]), 3).tolist()
    [[True, False, False], [True, True, True]]
    """
    return torch.arange(frames, device=lengths.device)[None] < lengths[:, None]


def without_padding(values: Tensor, mask: Tensor) -> Tensor:
    """Set padding to zero; weights of 0 would not remove a NaN or an infinity.

    Shape: values [B, F, D], mask [B, F] -> [B, F, D]; the same tensor, if no gradients are recorded and no frame is
        padding.
    """
    # Not during training: `mask.all()` would synchronise the GPU in each step, to save a copy that is cheap there.
    if not torch.is_grad_enabled() and bool(mask.all()):
        return values
    return values.masked_fill(~mask[..., None], 0.0)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Compute the mean over real frames.

    Shape: values [B, F, D], mask [B, F] -> [B, D].
    """
    weights = mask.to(values.dtype)[..., None]
    return (values * weights).sum(1) / weights.sum(1)


def masked_std(values: Tensor, mask: Tensor) -> Tensor:
    """Compute the population standard deviation over real frames.

    Shape: values [B, F, D], mask [B, F] -> [B, D].
    """
    weights = mask.to(values.dtype)[..., None]
    centred = (values - masked_mean(values, mask)[:, None]) * weights
    variance = centred.square().sum(1) / weights.sum(1)
    return (variance + VARIANCE_FLOOR).sqrt()


def masked_max(values: Tensor, mask: Tensor) -> Tensor:
    """Compute the maximum of each channel over real frames.

    Shape: values [B, F, D], mask [B, F] -> [B, D].
    """
    return values.masked_fill(~mask[..., None], float("-inf")).amax(dim=1)


class AttentionPool(nn.Module):
    """Attention pooling: the mean over real frames, weighted by the softmax of a learned score of each frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """Shape: values [B, F, D], mask [B, F] -> [B, D]."""
        scores = self.score(values)[..., 0].masked_fill(~mask, float("-inf"))
        return torch.einsum("bf,bfd->bd", scores.softmax(dim=1), values)


class Standardize(nn.Module):
    """Standardise features with the mean and standard deviation of the training clips.

    The statistics are buffers, so that they are saved with the weights.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def fit(self, values: Tensor) -> None:
        """Compute the statistics; constant channels are not scaled. Shape: values [N, D]."""
        self.set(values.mean(dim=0), values.std(dim=0, unbiased=False))

    def set(self, mean: Tensor, deviation: Tensor) -> None:
        """Set the statistics; constant channels are not scaled. Shape: mean [D], deviation [D]."""
        self.mean.copy_(mean)
        self.std.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))

    def forward(self, values: Tensor) -> Tensor:
        out: Tensor = (values - self.mean) / self.std
        return out


class Fusion(nn.Module):
    """Combine MuQ frames and a CAM++ embedding, or use one of them; each is projected to `width` channels.

    Args:
        dims: Branches and their sizes, as {"muq": 1024, "campplus": 192}.
        pooled: Return the embedding separately, to be concatenated after the frames are pooled, instead of repeating
            it for each frame. Has no effect with a single branch.
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
        self.voice_dim = width if self.pooled else 0  # channels of the embedding that is returned separately

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Shape: frames [B, F, frame_dim], mask [B, F], embedding [B, voice_dim] if `pooled`, else None."""
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


PIECE_FRAMES = 2_048  # enough rows for an efficient matrix product; 34 MB at 4,096 channels


def framewise(layer: Callable[[Tensor], Tensor], values: Tensor, *, in_place: bool = False) -> Tensor:
    """Apply `layer` to each frame, in pieces of PIECE_FRAMES frames if no gradients are recorded.

    Pieces bound the memory of layers that are wide inside, which would otherwise hold all frames at once.

    Args:
        in_place: Overwrite `values`, if there is more than one piece.
    Shape: values [B, F, C] -> [B, F, D]; `layer` maps C channels to D channels, frame by frame.
    Raises: ValueError if D is not C with `in_place`.
    """
    if torch.is_grad_enabled() or values.shape[0] * values.shape[1] <= PIECE_FRAMES:
        return layer(values)
    pieces = values.flatten(0, 1).split(PIECE_FRAMES)
    first = layer(pieces[0])
    if in_place and first.shape[1:] != values.shape[2:]:
        raise ValueError(f"{tuple(values.shape[2:])} channels cannot become {tuple(first.shape[1:])} in place")
    out = values if in_place else first.new_empty(*values.shape[:2], *first.shape[1:])
    rows = out.view(-1, *first.shape[1:])
    rows[:PIECE_FRAMES] = first
    for index, piece in enumerate(pieces[1:], 1):
        rows[index * PIECE_FRAMES : (index + 1) * PIECE_FRAMES] = layer(piece)
    return out
