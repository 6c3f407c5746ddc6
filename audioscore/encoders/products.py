"""What numbers matrix products are of: float32, or on a CPU, for the declared fast mode, what it is quicker with."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioscore.encoders.adapters import merge_layers
from audioscore.encoders.half import HalfLinear
from audioscore.encoders.int16 import Int16Linear

Numbers = Literal["float32", "bfloat16", "int16"]

MIN_WIDTH = 256  # channels in and out; below, rounding takes longer than it saves


def quick_numbers(device: str) -> Numbers:
    """What a CPU multiplies quicker than float32, or else float32, as on a GPU.

    bfloat16 where a CPU multiplies that itself; 16-bit integers where it has AVX2 and no wider vectors, of which the
    sums of integers' products come no sooner than of float32. Old ones with AVX2 gain nothing, and cannot be told.
    """
    if torch.device(device).type != "cpu":
        return "float32"
    can = torch.cpu.get_capabilities()
    if can.get("avx512_bf16") or can.get("amx_bf16"):
        return "bfloat16"
    return "int16" if can.get("avx2") and not can.get("avx512_f") else "float32"


def linear(weight: Tensor, bias: Tensor | None, numbers: Numbers) -> Callable[[Tensor], Tensor]:
    """A linear layer of [..., C] -> [..., O], float32 or, of bfloat16, that. Shape: weight [O, C], bias [O] or None."""
    if numbers == "bfloat16":
        return HalfLinear(weight, bias).rounded
    if numbers == "int16" and Int16Linear.suits(weight):
        return Int16Linear(weight, bias)
    return partial(F.linear, weight=weight, bias=bias)


def multiplying(module: Any, numbers: Numbers) -> Any:
    """A copy of a module whose wide linear layers and convolutions over single frames multiply such numbers.

    Adapters, which are narrow, are merged into the layers that they stand beside.
    """
    made = copy.deepcopy(module)
    if any(hasattr(part, "lora_A") for part in made.modules()):  # asked so, since importing peft takes a second
        merge_layers(made)
    for name, part in list(made.named_modules()):
        quick = _quick(part, numbers)
        if quick is not None:
            parent, _, own = name.rpartition(".")
            setattr(made.get_submodule(parent), own, quick)
    return made


class _OverFrames(nn.Module):
    """A linear layer where channels come before frames. Shape: [B, C, F] -> [B, O, F]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, values: Tensor) -> Tensor:
        made: Tensor = self.layer(values.transpose(1, 2)).transpose(1, 2)
        return made


def _quick(part: nn.Module, numbers: Numbers) -> nn.Module | None:
    """What takes the place of a layer, if anything does."""
    if type(part) is nn.Linear:
        return _quick_linear(part.weight, part.bias, numbers)
    if isinstance(part, nn.Conv1d) and part.kernel_size == (1,) and part.groups == 1:
        layer = _quick_linear(part.weight[..., 0], part.bias, numbers)
        return None if layer is None else _OverFrames(layer)
    return None


def _quick_linear(weight: Tensor, bias: Tensor | None, numbers: Numbers) -> nn.Module | None:
    if numbers == "float32" or min(weight.shape) < MIN_WIDTH:
        return None
    if numbers == "bfloat16":
        return HalfLinear(weight, bias)
    return Int16Linear(weight, bias) if Int16Linear.suits(weight) else None
