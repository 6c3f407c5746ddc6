"""Matrix products of 16-bit integers, compiled for the processor they run on, and the rounding to such integers.

AVX2 multiplies sixteen pairs of them in one instruction, which adds up each two products in 32 bits: twice as many as
of float32. No library that is kept well offers that product. Its innermost loop is written in LLVM's own terms, which
are of no processor in particular: one without that instruction computes the same, only later. AVX-512 VNNI multiplies
32 pairs and has them added to sums as well: where it is, the loop is assembler (vnni_kernels.py).
"""

from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from audioscore.muq_cpu import vector_kernels as vnni_kernels
from audioscore.muq_cpu.compiled import compiled, summing
from audioscore.muq_cpu.vector_kernels import F32, HAS_VNNI, I16, I32, I64, everywhere, load, store, sums, written

Floats = NDArray[np.float32]
Ints = NDArray[np.int16]

# Results that are added up at once: of ROWS rows and a block of columns, VECTORS of SUMS each. In AVX2 they take twelve
# of sixteen registers.
ROWS, SUMS, VECTORS = (vnni_kernels.ROWS, vnni_kernels.SUMS, vnni_kernels.VECTORS) if HAS_VNNI else (6, 8, 2)
BLOCK = SUMS * VECTORS
DEPTH = 1024  # factors of a sum before it goes to memory: what they are multiplied with stays in the nearest caches
ROWS_HELD = 240  # rows that meet all columns before the next rows: they stay in the second cache
# How long, as vectors, a row of integers is and a column may be. The largest sum of products is one times the other,
# and below 2 ** 31; no integer of a row is larger than the row is long.
ROW_LENGTH, COLUMN_LENGTH = 32_000.0, 66_000.0


@compiled
def to_ints(values: Floats, ints: Ints, scales: Floats) -> None:
    """Round each row to integers: values = ints * scales. What is not finite makes its row's scale NaN.

    Shape: values [N, C], ints [>= N, C], scales [>= N].
    """
    for row in range(values.shape[0]):
        scales[row] = row_to_ints(values[row], ints[row])


@summing
def row_to_ints(values: Floats, ints: Ints) -> np.float32:
    """One row of `to_ints`; its scale is returned. Shape: values [C], ints [C]."""
    squares = np.float32(0)
    for c in range(values.shape[0]):
        squares += values[c] * values[c]
    if not squares < np.inf:  # nor is NaN
        return np.float32(np.nan)
    factor = np.float32(ROW_LENGTH) / np.sqrt(squares) if squares > 0 else np.float32(0)
    for c in range(values.shape[0]):
        ints[c] = np.int16(np.rint(values[c] * factor))
    scale: np.float32 = np.sqrt(squares) / np.float32(ROW_LENGTH)
    return scale


@compiled
def multiply(
    rows: Ints, row_scales: Floats, columns: Ints, column_scales: Floats, start: Floats, out: Floats, used: int,
    first: int, last: int,
) -> None:  # fmt: skip
    """out = rows times columns, each times its scale, plus `start`; of the columns' blocks from `first` to `last`.

    Of P products beside each other; of the rows, those `used` count, rounded up to a multiple of ROWS.
    Shape: rows [P, >= used, C], row_scales [P, >= used], columns [P, O / BLOCK, C / 2, BLOCK, 2],
    column_scales [P, O], start [O], out [P, >= used, O].
    """
    products, _, pairs = columns.shape[:3]
    end = -(-used // ROWS) * ROWS
    for product in range(products):
        one, one_scales, made = rows[product], row_scales[product], out[product]
        for top in range(0, end, ROWS_HELD):
            bottom = min(top + ROWS_HELD, end)
            for pair in range(0, pairs, DEPTH // 2):
                count = min(DEPTH // 2, pairs - pair)
                for block in range(first, last):
                    left = block * BLOCK
                    bias = np.int64(start[left:].ctypes.data)
                    for row in range(top, bottom, ROWS):
                        # Signed, as the sums of addresses: of a signed and an unsigned one, Numba makes a float.
                        to = np.int64(made.ctypes.data) + row * made.strides[0] + left * 4
                        _add_block(
                            one.ctypes.data + row * one.strides[0] + pair * 4, one.strides[0],
                            columns[product, block, pair:].ctypes.data, count,
                            one_scales[row:].ctypes.data, column_scales[product, left:].ctypes.data,
                            to if pair > 0 else bias, made.strides[0] if pair > 0 else 0, to, made.strides[0],
                        )  # fmt: skip


_FACTORS, _WIDE = ir.VectorType(I16, 2 * SUMS), ir.VectorType(I32, 2 * SUMS)
_INTS, _FLOATS = ir.VectorType(I32, SUMS), ir.VectorType(F32, SUMS)
_BYTES = 4 * SUMS
_PLACES = [(row, vector) for row in range(ROWS) for vector in range(VECTORS)]


@written
def _add_block(
    typing_context: Any, rows: Any, row_stride: Any, columns: Any, pairs: Any, row_scales: Any, column_scales: Any,
    start: Any, start_stride: Any, out: Any, out_stride: Any,
) -> Any:  # fmt: skip
    """One block of results: ROWS rows, from the address `rows` on, times as many pairs of factors of BLOCK columns,
    each times its scale, plus what is at `start`, written to `out`. Strides, of one row to the next, are in bytes.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        rows, row_stride, columns, pairs, row_scales, column_scales, start, start_stride, out, out_stride = given
        row_at = partial(_row_at, builder)
        add_up = vnni_kernels.sums_of_pairs if HAS_VNNI else _sums_of_pairs
        totals = add_up(builder, rows, row_stride, columns, pairs)
        scales = [load(builder, column_scales, _BYTES * vector, _FLOATS) for vector in range(VECTORS)]
        for (row, vector), total in zip(_PLACES, totals, strict=True):
            scale = everywhere(builder, load(builder, row_scales, 4 * row, F32), SUMS)
            made = builder.fmul(builder.fmul(builder.sitofp(total, _FLOATS), scale), scales[vector])
            before = load(builder, row_at(start, start_stride, row), _BYTES * vector, _FLOATS)
            store(builder, builder.fadd(made, before), row_at(out, out_stride, row), _BYTES * vector)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10), generate


def _sums_of_pairs(builder: Any, rows: Any, stride: Any, columns: Any, pairs: Any) -> list[Any]:
    """Sums of products of ROWS rows with BLOCK columns, row by row: vectors of 32-bit integers.

    Rows begin at the address `rows`, `stride` bytes apart. At the address `columns`, two factors of each column follow
    each other, `pairs` times, at least once.
    """

    def add(pair: Any, totals: list[Any]) -> list[Any]:
        factors, offset = builder.add(columns, builder.mul(pair, I64(4 * BLOCK))), builder.mul(pair, I64(4))
        beside = [load(builder, factors, _BYTES * vector, _FACTORS) for vector in range(VECTORS)]
        own = [load(builder, builder.add(_row_at(builder, rows, stride, row), offset), 0, I32) for row in range(ROWS)]
        wide = [builder.bitcast(everywhere(builder, one, SUMS), _FACTORS) for one in own]
        return [
            builder.add(total, _paired_products(builder, wide[row], beside[vector]))
            for (row, vector), total in zip(_PLACES, totals, strict=True)
        ]

    return sums(builder, pairs, [_INTS] * len(_PLACES), add)


def _row_at(builder: Any, address: Any, stride: Any, row: int) -> Any:
    return builder.add(address, builder.mul(stride, I64(row)))


def _paired_products(builder: Any, first: Any, second: Any) -> Any:
    """Products of integers, each two added up: what LLVM knows as one instruction of x86."""
    products = builder.mul(builder.sext(first, _WIDE), builder.sext(second, _WIDE))
    even, odd = (
        builder.shuffle_vector(products, ir.Constant(_WIDE, ir.Undefined), ir.Constant(_INTS, list(places)))
        for places in (range(0, 2 * SUMS, 2), range(1, 2 * SUMS, 2))
    )
    return builder.add(even, odd)
