"""Matrix products in 8-bit integers on a CPU, for the declared fast mode: each row of the input has its own scale.

A row's result depends on no other row, so that a recording's score does not depend on what it is scored beside.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

LEVELS = 127.0  # of the input
# Of the weights. Processors without VNNI add two products in 16 bits and cut off what is beyond: 2 * 255 * 64 is not.
WEIGHT_LEVELS = 64.0
ZERO = 128  # the unsigned number that stands for 0
SMALLEST = 1e-12  # a row of zeros has no scale of its own
MIN_WIDTH = 256  # channels in and out; below, rounding takes longer than it saves


class Int8Matrix:
    """x W' for many rows x, with W rounded once, by output channel, and x by row each time.

    Shape: weight [O, C].
    """

    def __init__(self, weight: Tensor) -> None:
        self.scale = weight.abs().amax(dim=1).clamp_min(SMALLEST) / WEIGHT_LEVELS
        rounded = (weight / self.scale[:, None]).round().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)

    def __call__(self, rows: Tensor) -> Tensor:
        """Shape: rows [N, C] -> [N, O], float32."""
        scale = rows.abs().amax(dim=1, keepdim=True).clamp_min_(SMALLEST).div_(LEVELS)
        rounded = rows.div(scale).round_().add_(ZERO).to(torch.uint8)
        made: Tensor = torch.ops.onednn.qlinear_pointwise(
            rounded, 1.0, ZERO, self.packed, self.scale, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return made.mul_(scale)


class Int8Linear(nn.Module):
    """A linear layer, or a convolution over single frames, in 8-bit integers. Shape: [..., C] -> [..., O]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.matrix = Int8Matrix(weight)
        self.bias = bias

    def forward(self, values: Tensor) -> Tensor:
        made: Tensor = self.matrix(values.flatten(0, -2)).unflatten(0, values.shape[:-1])
        return made if self.bias is None else made.add_(self.bias)


class _OverFrames(nn.Module):
    """A linear layer where channels come before frames. Shape: [B, C, F] -> [B, O, F]."""

    def __init__(self, linear: Int8Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, values: Tensor) -> Tensor:
        made: Tensor = self.linear(values.transpose(1, 2)).transpose(1, 2)
        return made


def in_int8(module: Any) -> Any:
    """A copy of a module whose wide linear layers and convolutions over single frames compute in 8-bit integers."""
    made = copy.deepcopy(module)
    for name, part in list(made.named_modules()):
        rounded = _rounded(part)
        if rounded is not None:
            parent, _, own = name.rpartition(".")
            setattr(made.get_submodule(parent), own, rounded)
    return made


def _rounded(part: nn.Module) -> nn.Module | None:
    if isinstance(part, nn.Linear) and min(part.weight.shape) >= MIN_WIDTH:
        return Int8Linear(part.weight.detach(), part.bias)
    if isinstance(part, nn.Conv1d) and part.kernel_size == (1,) and min(part.weight.shape[:2]) >= MIN_WIDTH:
        return _OverFrames(Int8Linear(part.weight.detach()[..., 0], part.bias)) if part.groups == 1 else None
    return None
