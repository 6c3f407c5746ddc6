"""Products of 16-bit integers on a CPU, for the declared fast mode; what comes in and goes out is float32.

Each row and each column is rounded by a scale of its own, in all a tenth as much as bfloat16 rounds. With AVX2 such
products come about 1.6 times as quickly as float32's, with AVX-512 VNNI 2.1 times (docs/LOG.md).
"""

import copy
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, Self

import torch
from torch import Tensor, nn

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
