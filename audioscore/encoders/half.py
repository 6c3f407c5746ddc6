"""Matrix products of bfloat16 on a CPU, for the declared fast mode; what comes in and goes out is float32.

bfloat16 keeps 8 of a number's 24 binary digits. Processors that multiply it themselves do so about twice as fast.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_WIDTH = 256  # channels in and out; below, rounding takes longer than it saves


def multiplies_half(device: str) -> bool:
    """Whether the device is a CPU that multiplies bfloat16 itself; others take several times as long as for float32."""
    can = torch.cpu.get_capabilities()
    return torch.device(device).type == "cpu" and bool(can.get("avx512_bf16") or can.get("amx_bf16"))


class HalfLinear(nn.Module):
    """A linear layer whose products are of bfloat16. Shape: weight [O, C], bias [O] or None; [..., C] -> [..., O]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight.detach().bfloat16()
        self.bias = None if bias is None else bias.detach().bfloat16()

    def forward(self, values: Tensor) -> Tensor:
        return self.rounded(values).float()

    def rounded(self, values: Tensor) -> Tensor:
        """The same as bfloat16, for what goes on in that: a wide layer's numbers need not be written down twice."""
        return F.linear(values.bfloat16(), self.weight, self.bias)


class _OverFrames(nn.Module):
    """A linear layer where channels come before frames. Shape: [B, C, F] -> [B, O, F]."""

    def __init__(self, linear: HalfLinear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, values: Tensor) -> Tensor:
        made: Tensor = self.linear(values.transpose(1, 2)).transpose(1, 2)
        return made


def in_half(module: Any) -> Any:
    """A copy of a module whose wide linear layers and convolutions over single frames multiply in bfloat16."""
    made = copy.deepcopy(module)
    for name, part in list(made.named_modules()):
        rounded = _rounded(part)
        if rounded is not None:
            parent, _, own = name.rpartition(".")
            setattr(made.get_submodule(parent), own, rounded)
    return made


def _rounded(part: nn.Module) -> nn.Module | None:
    if isinstance(part, nn.Linear) and min(part.weight.shape) >= MIN_WIDTH:
        return HalfLinear(part.weight, part.bias)
    if isinstance(part, nn.Conv1d) and part.kernel_size == (1,) and min(part.weight.shape[:2]) >= MIN_WIDTH:
        return _OverFrames(HalfLinear(part.weight[..., 0], part.bias)) if part.groups == 1 else None
    return None
