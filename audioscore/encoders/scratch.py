"""Memory that is used again: pages fresh from the kernel can cost more time than what is computed in them."""

import math
import threading

import torch
from torch import Tensor


class Scratch:
    """Tensors by name, each thread's own; they live as long as thread and scratch."""

    def __init__(self) -> None:
        self._own = threading.local()

    def take(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor of this shape, on the CPU, with anything in it, until this thread takes the same name again."""
        kept: dict[str, Tensor] = self._own.__dict__
        count = math.prod(shape)
        if name not in kept or kept[name].numel() < count or kept[name].dtype != dtype:
            kept.pop(name, None)  # first, so that both are never there
            kept[name] = torch.empty(count, dtype=dtype)
        return kept[name][:count].view(shape)
