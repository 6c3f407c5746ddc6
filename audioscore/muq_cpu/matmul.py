"""Faster linear layers for inference on a CPU: float32 by the faster of torch's libraries, or 16-bit integers.

Integers are for the fast mode; inputs and outputs are float32. Each row and each column is rounded with a scale of its
own, with a tenth of bfloat16's rounding error. Such products are about 1.6 times as fast as float32's with AVX2, and
2.1 times with AVX-512 VNNI (docs/LOG.md).
"""

import copy
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FastDtype = Literal["float32", "int16"]

SHARED = 1 << 26  # multiplications, about 1 ms, for which starting another thread pays
MIN_WIDTH = 256  # input and output channels; below, rounding takes longer than it saves


def fast_dtype(device: str) -> FastDtype:
    """Return the dtype that this CPU multiplies fastest; float32 on a GPU.

    int16 with AVX-512 VNNI, which accumulates products in the same instruction, and with AVX2 without wider vectors.
    With AVX-512 but no VNNI, integers are no faster than float32. Old processors with AVX2 gain nothing either, but
    torch does not report them as such.
    """
    if torch.device(device).type != "cpu":
        return "float32"
    can = torch.cpu.get_capabilities()
    faster = can.get("avx512_vnni") or (can.get("avx2") and not can.get("avx512_f"))
    return "int16" if faster else "float32"


@cache
def has_faster_library() -> bool:
    """Whether torch has a faster library for float32 products than the one it uses.

    On AMD's processors MKL does not use AVX-512, and oneDNN does: 2.3 times as fast on an EPYC of the fifth generation
    (docs/LOG.md).
    """
    can = torch.cpu.get_capabilities()
    wide_amd = can.get("avx512_f") and str(can.get("cpu_name")).startswith("AMD")
    return bool(wide_amd and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"))


def product(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute values @ weight.T + bias in float32 on a CPU, with the faster library.

    Shape: values [..., C], weight [O, C], bias [O] -> [..., O].
    Raises: ValueError where gradients are needed.
    """
    if torch.is_grad_enabled() and values.requires_grad:
        raise ValueError("product() has no gradients. Call it under torch.inference_mode(), or use F.linear.")
    if not has_faster_library():
        return F.linear(values, weight, bias)
    # torch.compile calls this operator for oneDNN; no public function does so for a matrix in torch's own layout.
    output: Tensor = torch.ops.mkldnn._linear_pointwise(values, weight, bias, "none", [], "")
    return output


def linear(weight: Tensor, bias: Tensor | None, dtype: FastDtype) -> nn.Module:
    """Build a linear layer [..., C] -> [..., O]; odd C stays in float32. Shape: weight [O, C], bias [O] or None."""
    even = weight.shape[1] % 2 == 0  # integers are multiplied in pairs of channels
    return Int16Linear(weight, bias) if dtype == "int16" and even else Float32Linear(weight, bias)


def optimize_module(module: Any, dtype: FastDtype) -> Any:
    """Copy a module with faster wide linear layers and 1 x 1 convolutions, for inference on a CPU.

    Returns the module itself where nothing would be faster. With int16, adapters, which are narrow, are merged into
    the layers beside them.
    """
    if dtype == "float32" and not has_faster_library():
        return module
    replacement = _replacement(module, dtype)
    if replacement is not None:
        return replacement
    # float32 changes no weight, so copies may share them.
    shared = {id(weight): weight for weight in module.parameters()} if dtype == "float32" else {}
    output = copy.deepcopy(module, shared)
    if dtype == "int16" and any(hasattr(part, "lora_A") for part in output.modules()):
        from audioscore.encoders.adapters import merge_layers  # imports peft, which takes a second

        merge_layers(output)
    for name, part in list(output.named_modules()):
        replacement = _replacement(part, dtype)
        if replacement is not None:
            parent, _, own = name.rpartition(".")
            setattr(output.get_submodule(parent), own, replacement)
    return output


def _replacement(part: nn.Module, dtype: FastDtype) -> nn.Module | None:
    """A faster layer for a wide linear layer or 1 x 1 convolution; None for other modules."""
    if type(part) is nn.Linear and min(part.weight.shape) >= MIN_WIDTH:
        return linear(part.weight, part.bias, dtype)
    if isinstance(part, nn.Conv1d) and part.kernel_size == (1,) and part.groups == 1:
        weight = part.weight[..., 0]
        return ChannelsFirst(linear(weight, part.bias, dtype)) if min(weight.shape) >= MIN_WIDTH else None
    return None


class ChannelsFirst(nn.Module):
    """A linear layer for channels before frames. Shape: [B, C, F] -> [B, O, F]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, values: Tensor) -> Tensor:
        output: Tensor = self.layer(values.transpose(1, 2)).transpose(1, 2)
        return output


class Float32Linear(nn.Module):
    """A linear layer in float32. Shape: weight [O, C], bias [O] or None; [..., C] -> [..., O]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()

    def part(self, rows: Tensor) -> "Float32Linear":
        """Return a layer with some of the output channels. Shape: rows [N], 0 to O - 1."""
        return Float32Linear(self.weight[rows], None if self.bias is None else self.bias[rows])

    def forward(self, values: Tensor) -> Tensor:
        return product(values, self.weight, self.bias)


class Int16Linear(nn.Module):
    """A linear layer with 16-bit integer products.

    Shape: weight [O, C], C even, bias [O] or None; [..., C] -> [..., O].
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.outputs = len(weight)
        self.columns = Columns.of([weight.T])
        self.bias = _filled(torch.zeros(len(weight)) if bias is None else bias.detach().float(), 0)

    def part(self, rows: Tensor) -> "Int16Linear":
        """Return a layer with some of the output channels. Shape: rows [N], 0 to O - 1."""
        part = copy.copy(self)
        part.outputs, part.columns, part.bias = len(rows), self.columns.part(rows), _filled(self.bias[rows], 0)
        return part

    def forward(self, values: Tensor) -> Tensor:
        flat = values.float().reshape(-1, values.shape[-1]).contiguous()
        rows = self.columns.rows(len(flat))
        ints, scales = torch.empty(1, rows, flat.shape[1], dtype=torch.int16), torch.empty(1, rows)
        self.columns.to_ints(flat, ints[0], scales[0])
        out = torch.empty(1, rows, self.columns.width)
        self.columns.multiply(ints, scales, len(flat), self.bias, out)
        output: Tensor = out[0, : len(flat), : self.outputs].reshape(*values.shape[:-1], self.outputs)
        return output


class Columns:
    """P matrices to multiply rows with: integers in the blocks that the kernels read, and a scale for each column.

    B blocks of N columns hold the O columns of a matrix; N depends on the processor.
    """

    def __init__(self, blocks: Tensor, scales: Tensor) -> None:
        """Shape: blocks [P, B, C / 2, N, 2], int16; scales [P, B N], float32."""
        self.blocks, self.scales = blocks.contiguous(), scales.contiguous()
        self.width = self.scales.shape[1]

    @classmethod
    def of(cls, matrices: Iterable[Tensor]) -> Self:
        """Round matrices; zero columns fill the last block. Shape: P matrices [C, O], C even."""
        blocks, scales = zip(*map(_rounded, matrices), strict=True)
        return cls(torch.stack(blocks), torch.stack(scales))

    def part(self, columns: Tensor) -> "Columns":
        """Return some of the columns. Shape: columns [K], 0 to B N - 1."""
        ints = self.blocks.transpose(2, 3).flatten(1, 2)[:, columns]  # (P, K, C / 2, 2)
        return Columns(_in_blocks(ints), _filled(self.scales[:, columns], 1))

    def rows(self, count: int) -> int:
        """Number of rows to allocate for `count` rows, since several are multiplied at a time."""
        at_once = int(_kernels().ROWS)
        return -(-count // at_once) * at_once

    @staticmethod
    def to_ints(values: Tensor, ints: Tensor, scales: Tensor) -> None:
        """Round rows before they are multiplied. Shape: values [R, C], ints [>= R, C], scales [>= R]."""
        _kernels().to_ints(values.numpy(), ints.numpy(), scales.numpy())

    def multiply(self, ints: Tensor, scales: Tensor, used: int, start: Tensor, out: Tensor) -> None:
        """Compute out = rows @ columns + `start`, for the first `used` rows and those that fill the last group.

        Shape: ints [P, R, C], scales [P, R], start [B N], out [P, R, B N], where R >= `rows(used)`.
        Raises: ValueError for columns from a processor with vectors of another width.
        """
        wide = self.blocks.shape[3]
        if wide != _kernels().BLOCK:
            raise ValueError(
                f"columns in blocks of {wide}: this processor uses {_kernels().BLOCK}. Round the weights on this "
                "machine."
            )
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


def _rounded(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Integers in blocks, and their scales; NaN for a column that, or whose square, is not finite.

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
    """The values, filled with zeros to whole blocks along `dim`."""
    missing = -values.shape[dim] % _kernels().BLOCK
    return torch.cat([values, values.new_zeros(*values.shape[:dim], missing, *values.shape[dim + 1 :])], dim)


@cache
def _kernels() -> Any:
    from audioscore.muq_cpu import int16_kernels

    return int16_kernels
