"""Products of 16-bit integers on a CPU, for the declared fast mode; what comes in and goes out is float32.

Each row and each column is rounded by a scale of its own, in all a tenth as much as bfloat16 rounds. With AVX2 such
products come about 1.6 times as quickly as float32's, with AVX-512 VNNI 2.1 times (docs/LOG.md).
"""

import copy
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioscore.encoders.adapters import merge_layers

SHARED = 1 << 26  # products, a thousandth of a second, for which a thread that helps is worth its beginning


@cache
def _kernels() -> Any:
    from audioscore.muq_cpu import int16_kernels

    return int16_kernels


class Columns:
    """P matrices that rows are multiplied with: integers in blocks, as they are read, and a scale for each column.

    B blocks of N columns hold the O columns of a matrix; the processor decides how many these are.
    """

    def __init__(self, blocks: Tensor, scales: Tensor) -> None:
        """Shape: blocks [P, B, C / 2, N, 2], int16; scales [P, B N], float32."""
        self.blocks, self.scales = blocks.contiguous(), scales.contiguous()
        self.width = self.scales.shape[1]

    @classmethod
    def of(cls, matrices: Iterable[Tensor]) -> Self:
        """Columns of zeros fill up the last block. Shape: P matrices [C, O], C even."""
        blocks, scales = zip(*map(_rounded, matrices), strict=True)
        return cls(torch.stack(blocks), torch.stack(scales))

    def part(self, columns: Tensor) -> "Columns":
        """Some of the columns. Shape: columns [K], of 0 to B N - 1."""
        ints = self.blocks.transpose(2, 3).flatten(1, 2)[:, columns]  # (P, K, C / 2, 2)
        return Columns(_in_blocks(ints), _filled(self.scales[:, columns], 1))

    def rows(self, count: int) -> int:
        """For how many rows there must be room: they are multiplied a few at a time."""
        at_once = int(_kernels().ROWS)
        return -(-count // at_once) * at_once

    @staticmethod
    def to_ints(values: Tensor, ints: Tensor, scales: Tensor) -> None:
        """Round rows to be multiplied. Shape: values [R, C], ints [>= R, C], scales [>= R]."""
        _kernels().to_ints(values.numpy(), ints.numpy(), scales.numpy())

    def multiply(self, ints: Tensor, scales: Tensor, used: int, start: Tensor, out: Tensor) -> None:
        """out = rows times columns plus `start`, for the first rows that are `used`, and what fills up the last few.

        Shape: ints [P, R, C], scales [P, R], start [B N], out [P, R, B N], R being `rows(used)` at least.
        Raises ValueError for columns that were made where a processor has wider or narrower vectors.
        """
        wide = self.blocks.shape[3]
        if wide != _kernels().BLOCK:
            raise ValueError(f"columns in blocks of {wide}: here they are of {_kernels().BLOCK}. Make them anew here.")
        multiply = partial(
            _kernels().multiply, ints.numpy(), scales.numpy(), self.blocks.numpy(), self.scales.numpy(), start.numpy(),
            out.numpy(), used,
        )  # fmt: skip
        blocks, products = self.blocks.shape[1], used * self.blocks.numel()
        shares = max(1, min(torch.get_num_threads(), blocks, products // SHARED))
        if shares == 1:
            multiply(0, blocks)
            return
        bounds = [blocks * share // shares for share in range(shares + 1)]
        with ThreadPoolExecutor(shares, thread_name_prefix="multiply") as pool:
            list(pool.map(multiply, bounds, bounds[1:]))


class Int16Linear(nn.Module):
    """A linear layer whose products are of integers. Shape: weight [O, C], C even, bias [O] or None;
    [..., C] -> [..., O].
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.made = len(weight)
        self.columns = Columns.of([weight.T])
        self.bias = _filled(torch.zeros(len(weight)) if bias is None else bias.detach().float(), 0)

    @staticmethod
    def suits(weight: Tensor) -> bool:
        """Whether the channels that come in are even: they are multiplied in pairs."""
        return weight.shape[1] % 2 == 0

    def part(self, rows: Tensor) -> "Int16Linear":
        """The layer of some of the channels that it makes. Shape: rows [N], of 0 to O - 1."""
        part = copy.copy(self)
        part.made, part.columns, part.bias = len(rows), self.columns.part(rows), _filled(self.bias[rows], 0)
        return part

    def forward(self, values: Tensor) -> Tensor:
        flat = values.float().reshape(-1, values.shape[-1]).contiguous()
        rows = self.columns.rows(len(flat))
        ints, scales = torch.empty(1, rows, flat.shape[1], dtype=torch.int16), torch.empty(1, rows)
        self.columns.to_ints(flat, ints[0], scales[0])
        out = torch.empty(1, rows, self.columns.width)
        self.columns.multiply(ints, scales, len(flat), self.bias, out)
        made: Tensor = out[0, : len(flat), : self.made].reshape(*values.shape[:-1], self.made)
        return made


def _rounded(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Integers in blocks, and their scales; of what is not finite, or whose square is not, a scale of NaN.

    Shape: [C, O] -> [B, C / 2, N, 2], [B N].
    """
    wide = matrix.detach().float()
    length, largest = wide.norm(dim=0), wide.abs().amax(dim=0)
    factors = torch.minimum(_kernels().COLUMN_LENGTH / length, 32_767 / largest).masked_fill(length == 0, 0.0)
    ints = (wide * factors).round().nan_to_num().to(torch.int16)
    scales = (1 / factors).masked_fill(length == 0, 0.0).float()
    return _in_blocks(ints.unflatten(0, (-1, 2)).permute(2, 0, 1)[None])[0], _filled(scales, 0)


def _in_blocks(ints: Tensor) -> Tensor:
    """Shape: [P, O, C / 2, 2] -> [P, B, C / 2, N, 2]."""
    blocks: Tensor = _filled(ints, 1).unflatten(1, (-1, _kernels().BLOCK)).transpose(2, 3)
    return blocks


def _filled(values: Tensor, dim: int) -> Tensor:
    """The values, with zeros up to whole blocks along `dim`."""
    missing = -values.shape[dim] % _kernels().BLOCK
    return torch.cat([values, values.new_zeros(*values.shape[:dim], missing, *values.shape[dim + 1 :])], dim)


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
