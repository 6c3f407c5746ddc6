"""What the plans hear, brought together: each branch standardised, projected, and the voice laid beside the frames."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from audioscore.scoring.network import Batch

VARIANCE_FLOOR = 1e-6  # keeps the gradient of a deviation finite for constant channels


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """True where a frame is real.

    Shape: lengths [B] -> [B, frames].

    >>> frame_mask(torch.tensor([1, 3]), 3).tolist()
    [[True, False, False], [True, True, True]]
    """
    return torch.arange(frames, device=lengths.device)[None] < lengths[:, None]


def without_padding(values: Tensor, mask: Tensor) -> Tensor:
    """Zero where a frame is not real: weights of 0 would not undo a NaN or an infinity there.

    Shape: values [B, F, D], mask [B, F] -> [B, F, D]; without gradients, the same tensor where all frames are real.
    """
    # A GPU would have to be waited for in every step of a training, to save a copy that is small there.
    if not torch.is_grad_enabled() and bool(mask.all()):
        return values
    return values.masked_fill(~mask[..., None], 0.0)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over real frames. Shape: values [B, F, D], mask [B, F] -> [B, D]."""
    weights = mask.to(values.dtype)[..., None]
    return (values * weights).sum(1) / weights.sum(1)


def masked_std(values: Tensor, mask: Tensor) -> Tensor:
    """Population standard deviation over real frames. Shape: values [B, F, D], mask [B, F] -> [B, D]."""
    weights = mask.to(values.dtype)[..., None]
    centred = (values - masked_mean(values, mask)[:, None]) * weights
    variance = centred.square().sum(1) / weights.sum(1)
    return (variance + VARIANCE_FLOOR).sqrt()


def masked_max(values: Tensor, mask: Tensor) -> Tensor:
    """Largest value of each channel over real frames. Shape: values [B, F, D], mask [B, F] -> [B, D]."""
    return values.masked_fill(~mask[..., None], float("-inf")).amax(dim=1)


class AttentionPool(nn.Module):
    """Mean over real frames, weighted by a learned score of each frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """Shape: values [B, F, D], mask [B, F] -> [B, D]."""
        scores = self.score(values)[..., 0].masked_fill(~mask, float("-inf"))
        return torch.einsum("bf,bfd->bd", scores.softmax(dim=1), values)


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


PIECE_FRAMES = 2_048  # at once: enough rows for a matrix product, and at 4,096 channels 34 MB


def framewise(layer: Callable[[Tensor], Tensor], values: Tensor, *, in_place: bool = False) -> Tensor:
    """layer(values), without gradients in pieces, so that what is wider inside the layer is never there for all frames.

    With `in_place`, where there are pieces, the values are overwritten. Raises ValueError where D is then not C.
    Shape: values [B, F, C] -> [B, F, D], as `layer` makes D channels of C, of each frame by itself.
    """
    if torch.is_grad_enabled() or values.shape[0] * values.shape[1] <= PIECE_FRAMES:
        return layer(values)
    pieces = values.flatten(0, 1).split(PIECE_FRAMES)
    first = layer(pieces[0])
    if in_place and first.shape[1:] != values.shape[2:]:
        raise ValueError(f"{tuple(values.shape[2:])} channels cannot become {tuple(first.shape[1:])} in place")
    made = values if in_place else first.new_empty(*values.shape[:2], *first.shape[1:])
    rows = made.view(-1, *first.shape[1:])
    rows[:PIECE_FRAMES] = first
    for place, piece in enumerate(pieces[1:], 1):
        rows[place * PIECE_FRAMES : (place + 1) * PIECE_FRAMES] = layer(piece)
    return made
