"""Memory that is used again: pages fresh from the kernel can cost more time than what is computed in them."""

import contextlib
import math
from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor


class Scratch:
    """Tensors by name, for one thread at a time."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor of this shape, on the CPU, with anything in it, until the same name is taken again."""
        count, kept = math.prod(shape), self._kept.get(name)
        if kept is None or kept.numel() < count or kept.dtype != dtype:
            self._kept.pop(name, None)
            del kept  # first, so that both are never there
            self._kept[name] = kept = torch.empty(count, dtype=dtype)
        return kept[:count].view(shape)


class Scratches:
    """As many as were ever used at once, whichever threads came for them."""

    def __init__(self) -> None:
        self._free: deque[Scratch] = deque()  # whose ends threads may share

    def forget(self) -> None:
        """Give back the memory of those that nobody has."""
        self._free.clear()

    @contextlib.contextmanager
    def one(self) -> Iterator[Scratch]:
        """A scratch that nobody else has while the block runs."""
        try:
            scratch = self._free.pop()
        except IndexError:
            scratch = Scratch()
        try:
            yield scratch
        finally:
            self._free.append(scratch)
