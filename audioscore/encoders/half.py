"""Matrix products of bfloat16 on a CPU, for the declared fast mode; what comes in and goes out is float32.

bfloat16 keeps 8 of a number's 24 binary digits. Processors that multiply it themselves do so about twice as fast.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_WIDTH = 256  # channels in and out; below, rounding takes longer than it saves


def multiplies_half(device: str) -> bool:
    """Whether the device is a CPU that multiplies bfloat16 itself; others take several times as long as for float32."""
    can = torch.cpu.get_capabilities()
    return torch.device(device).type == "cpu" and bool(can.get("avx512_bf16") or can.get("amx_bf16"))


def half_linear(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """A linear layer whose products are of bfloat16, and what it makes too: for what is a product's again.

    Shape: weight [O, C], bias [O] or None; [..., C] -> [..., O].
    """
    rounded, added = weight.detach().bfloat16(), None if bias is None else bias.detach().bfloat16()
    return lambda values: F.linear(values.bfloat16(), rounded, added)


class HalfLinear(nn.Module):
    """A linear layer whose products are of bfloat16. Shape: weight [O, C], bias [O] or None; [..., C] -> [..., O]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight.detach().bfloat16()
        self.bias = None if bias is None else bias.detach().bfloat16()

    def forward(self, values: Tensor) -> Tensor:
        return F.linear(values.bfloat16(), self.weight, self.bias).float()


def in_half(module: Any) -> Any:
    """A copy of a module whose wide linear layers multiply in bfloat16."""
    made = copy.deepcopy(module)
    for name, part in list(made.named_modules()):
        if isinstance(part, nn.Linear) and min(part.weight.shape) >= MIN_WIDTH:
            parent, _, own = name.rpartition(".")
            setattr(made.get_submodule(parent), own, HalfLinear(part.weight, part.bias))
    return made
