"""Frames to one vector, padding left out."""

import torch
from torch import Tensor, nn

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
