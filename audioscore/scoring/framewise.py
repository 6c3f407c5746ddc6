"""Layers that make of each frame something by itself, over recordings of any length."""

from collections.abc import Callable

import torch
from torch import Tensor

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
