"""What numbers matrix products are of: float32, or on a CPU, for the declared fast mode, what it is quicker with. And
which library multiplies float32.
"""

import copy
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioscore.encoders.adapters import merge_layers
from audioscore.muq_cpu.matmul import Int16Linear

Numbers = Literal["float32", "int16"]

MIN_WIDTH = 256  # channels in and out; below, rounding takes longer than it saves


def quick_numbers(device: str) -> Numbers:
    """What a CPU multiplies quicker than float32, or else float32, as on a GPU.

    16-bit integers where it has AVX-512 VNNI, which adds up their products itself, or AVX2 and no wider vectors: of
    those without VNNI, sums of integers' products come no sooner than of float32's. Old ones with AVX2 gain nothing,
    and cannot be told.
    """
    if torch.device(device).type != "cpu":
        return "float32"
    can = torch.cpu.get_capabilities()
    quick = can.get("avx512_vnni") or (can.get("avx2") and not can.get("avx512_f"))
    return "int16" if quick else "float32"


@cache
def has_quicker_library() -> bool:
    """Whether torch has a library that multiplies float32 quicker than the one it takes.

    On AMD's processors MKL leaves the vectors of AVX-512 alone, and oneDNN does not: 2.3 times on an EPYC of the fifth
    generation (docs/LOG.md).
    """
    can = torch.cpu.get_capabilities()
    wide_of_amd = can.get("avx512_f") and str(can.get("cpu_name")).startswith("AMD")
    return bool(wide_of_amd and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"))


def product(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """values @ weight.T + bias in float32, on a CPU, by the quicker library.

    Shape: values [..., C], weight [O, C], bias [O] -> [..., O]. Raises ValueError where gradients are wanted.
    """
    if torch.is_grad_enabled() and values.requires_grad:
        raise ValueError("a quick product has no gradients. Call it under torch.inference_mode(), or take F.linear.")
    if not has_quicker_library():
        return F.linear(values, weight, bias)
    # Torch's compiler calls it where it takes oneDNN; no public function does so for a matrix that is not oneDNN's own.
    made: Tensor = torch.ops.mkldnn._linear_pointwise(values, weight, bias, "none", [], "")
    return made


def linear(weight: Tensor, bias: Tensor | None, numbers: Numbers) -> nn.Module:
    """A linear layer of [..., C] -> [..., O]. Shape: weight [O, C], bias [O] or None."""
    rounded = numbers == "int16" and Int16Linear.suits(weight)
    return Int16Linear(weight, bias) if rounded else Float32Linear(weight, bias)


def multiplying(module: Any, numbers: Numbers) -> Any:
    """A copy of a module whose wide linear layers and convolutions over single frames multiply such numbers; the module
    itself, where nothing would be quicker.

    For inference on a CPU. Where numbers are rounded, adapters, which are narrow, are merged into the layers that they
    stand beside.
    """
    if numbers == "float32" and not has_quicker_library():
        return module
    whole = _quick(module, numbers)
    if whole is not None:
        return whole
    # float32 changes no weight, so that copies may share them. Whether there are adapters is asked so because importing
    # peft takes a second.
    shared = {id(weight): weight for weight in module.parameters()} if numbers == "float32" else {}
    made = copy.deepcopy(module, shared)
    if numbers == "int16" and any(hasattr(part, "lora_A") for part in made.modules()):
        merge_layers(made)
    for name, part in list(made.named_modules()):
        quick = _quick(part, numbers)
        if quick is not None:
            parent, _, own = name.rpartition(".")
            setattr(made.get_submodule(parent), own, quick)
    return made


class Float32Linear(nn.Module):
    """A linear layer of float32. Shape: weight [O, C], bias [O] or None; [..., C] -> [..., O]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()

    def part(self, rows: Tensor) -> "Float32Linear":
        """The layer of some of the channels that it makes. Shape: rows [N], of 0 to O - 1."""
        return Float32Linear(self.weight[rows], None if self.bias is None else self.bias[rows])

    def forward(self, values: Tensor) -> Tensor:
        return product(values, self.weight, self.bias)


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
    return None if min(weight.shape) < MIN_WIDTH else linear(weight, bias, numbers)
