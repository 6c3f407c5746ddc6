"""Layers that make of each frame something by itself, over recordings of any length."""

from collections.abc import Callable

import torch
from torch import Tensor

PIECE_FRAMES = 2_048  # at once: enough rows for a matrix product, and at 4,096 channels 34 MB


def framewise(layer: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """layer(values), without gradients in pieces, so that what is wider inside the layer is never there for all frames.

    Shape: values [B, F, C] -> [B, F, D], as `layer` makes D channels of C, of each frame by itself.
    """
    if torch.is_grad_enabled() or values.shape[0] * values.shape[1] <= PIECE_FRAMES:
        return layer(values)
    pieces = values.flatten(0, 1).split(PIECE_FRAMES)
    first = layer(pieces[0])
    made = first.new_empty(values.shape[0] * values.shape[1], *first.shape[1:])
    made[:PIECE_FRAMES] = first
    for place, piece in enumerate(pieces[1:], 1):
        made[place * PIECE_FRAMES : (place + 1) * PIECE_FRAMES] = layer(piece)
    joined: Tensor = made.unflatten(0, values.shape[:2])
    return joined
