"""Matrix products of 16-bit integers, compiled for the processor they run on, and the rounding to such integers.

AVX2 multiplies sixteen pairs of them in one instruction, which also adds each two products in 32 bits: twice as many
as of float32. No well-maintained library offers that product. The innermost loop is written in LLVM IR, so a processor
without that instruction computes the same, more slowly. AVX-512 VNNI multiplies 32 pairs and accumulates the sums in
one instruction; there, the loop is assembler.
"""

from functools import partial
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numpy.typing import NDArray

from audioscore.muq_cpu.compiled import (
    F32,
    I16,
    I32,
    I64,
    broadcast,
    compiled,
    has_feature,
    load,
    store,
    summing,
    sums,
    written,
)

Floats = NDArray[np.float32]
Ints = NDArray[np.int16]

# Numba's cache distinguishes processors by their features: what depends on HAS_VNNI may depend on nothing else.
HAS_VNNI = has_feature("avx512vnni")
# Results that are accumulated at once: ROWS rows and a block of columns, VECTORS vectors of SUMS sums each.
VNNI_SIZES = (12, 16, 2)  # 24 of the 32 vector registers hold sums
AVX2_SIZES = (6, 8, 2)  # 12 of the 16
ROWS, SUMS, VECTORS = VNNI_SIZES if HAS_VNNI else AVX2_SIZES
BLOCK = SUMS * VECTORS
DEPTH = 1024  # factors per sum before it is written to memory: the columns' factors stay in the nearest caches
ROWS_HELD = 240  # rows that meet all columns before the next rows: they stay in the second-level cache
# Largest Euclidean norm of a row of integers, and of a column. A sum of products is at most one times the other, which
# is below 2 ** 31, and no integer of a row exceeds the row's norm.
ROW_LENGTH, COLUMN_LENGTH = 32_000.0, 66_000.0


@compiled
def to_ints(values: Floats, ints: Ints, scales: Floats) -> None:
    """Round each row to integers: values = ints * scales. A row with a value that is not finite gets the scale NaN.

    Shape: values [N, C], ints [>= N, C], scales [>= N].
    """
    for row in range(values.shape[0]):
        scales[row] = row_to_ints(values[row], ints[row])


@summing
def row_to_ints(values: Floats, ints: Ints) -> np.float32:
    """Round one row as `to_ints` does and return its scale. Shape: values [C], ints [C]."""
    squares = np.float32(0)
    for c in range(values.shape[0]):
        squares += values[c] * values[c]
    if not squares < np.inf:  # also false for NaN
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
    """Compute out = rows @ columns, scaled, plus `start`, for P matrices and column blocks `first` to `last` - 1.

    The first `used` rows are computed, rounded up to a multiple of ROWS.
    Shape: rows [P, >= used, C], row_scales [P, >= used], columns [P, O / BLOCK, C / 2, BLOCK, 2],
    column_scales [P, O], start [O], out [P, >= used, O].
    """
    products, _, pairs = columns.shape[:3]
    end = -(-used // ROWS) * ROWS
    for product in range(products):
        one, one_scales, output = rows[product], row_scales[product], out[product]
        for top in range(0, end, ROWS_HELD):
            bottom = min(top + ROWS_HELD, end)
            for pair in range(0, pairs, DEPTH // 2):
                count = min(DEPTH // 2, pairs - pair)
                for block in range(first, last):
                    left = block * BLOCK
                    bias = np.int64(start[left:].ctypes.data)
                    for row in range(top, bottom, ROWS):
                        # Signed, as the sums of addresses are: Numba makes a float of a signed and an unsigned one.
                        to = np.int64(output.ctypes.data) + row * output.strides[0] + left * 4
                        _add_block(
                            one.ctypes.data + row * one.strides[0] + pair * 4, one.strides[0],
                            columns[product, block, pair:].ctypes.data, count,
                            one_scales[row:].ctypes.data, column_scales[product, left:].ctypes.data,
                            to if pair > 0 else bias, output.strides[0] if pair > 0 else 0, to, output.strides[0],
                        )  # fmt: skip


_FACTORS, _WIDE = ir.VectorType(I16, 2 * SUMS), ir.VectorType(I32, 2 * SUMS)
_INTS, _FLOATS = ir.VectorType(I32, SUMS), ir.VectorType(F32, SUMS)
_BYTES = 4 * SUMS
_CELLS = [(row, vector) for row in range(ROWS) for vector in range(VECTORS)]


@written
def _add_block(
    typing_context: Any, rows: Any, row_stride: Any, columns: Any, pairs: Any, row_scales: Any, column_scales: Any,
    start: Any, start_stride: Any, out: Any, out_stride: Any,
) -> Any:  # fmt: skip
    """Compute one block of results: ROWS rows times BLOCK columns, scaled, plus the values at `start`, into `out`.

    All arguments are addresses but `pairs`, the number of pairs of factors, and the strides between rows, in bytes.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        rows, row_stride, columns, pairs, row_scales, column_scales, start, start_stride, out, out_stride = given
        row_at = partial(_row_at, builder)
        add_up = vnni_sums_of_pairs if HAS_VNNI else _sums_of_pairs
        totals = add_up(builder, rows, row_stride, columns, pairs)
        scales = [load(builder, column_scales, _BYTES * vector, _FLOATS) for vector in range(VECTORS)]
        for (row, vector), total in zip(_CELLS, totals, strict=True):
            scale = broadcast(builder, load(builder, row_scales, 4 * row, F32), SUMS)
            output = builder.fmul(builder.fmul(builder.sitofp(total, _FLOATS), scale), scales[vector])
            before = load(builder, row_at(start, start_stride, row), _BYTES * vector, _FLOATS)
            store(builder, builder.fadd(output, before), row_at(out, out_stride, row), _BYTES * vector)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10), generate


def _sums_of_pairs(builder: Any, rows: Any, stride: Any, columns: Any, pairs: Any) -> list[Any]:
    """Sums of products of ROWS rows with BLOCK columns, row by row, as vectors of 32-bit integers.

    Rows start at the address `rows`, `stride` bytes apart. At the address `columns`, two factors of each column follow
    each other, `pairs` times (at least once).
    """

    def add(pair: Any, totals: list[Any]) -> list[Any]:
        factors, offset = builder.add(columns, builder.mul(pair, I64(4 * BLOCK))), builder.mul(pair, I64(4))
        of_columns = [load(builder, factors, _BYTES * vector, _FACTORS) for vector in range(VECTORS)]
        of_rows = [
            load(builder, builder.add(_row_at(builder, rows, stride, row), offset), 0, I32) for row in range(ROWS)
        ]
        wide = [builder.bitcast(broadcast(builder, one, SUMS), _FACTORS) for one in of_rows]
        return [
            builder.add(total, _paired_products(builder, wide[row], of_columns[vector]))
            for (row, vector), total in zip(_CELLS, totals, strict=True)
        ]

    return sums(builder, pairs, [_INTS] * len(_CELLS), add)


def _row_at(builder: Any, address: Any, stride: Any, row: int) -> Any:
    return builder.add(address, builder.mul(stride, I64(row)))


def _paired_products(builder: Any, first: Any, second: Any) -> Any:
    """Products of integers, each two added: a pattern that LLVM compiles to one x86 instruction."""
    products = builder.mul(builder.sext(first, _WIDE), builder.sext(second, _WIDE))
    even, odd = (
        builder.shuffle_vector(products, ir.Constant(_WIDE, ir.Undefined), ir.Constant(_INTS, list(lanes)))
        for lanes in (range(0, 2 * SUMS, 2), range(1, 2 * SUMS, 2))
    )
    return builder.add(even, odd)


def vnni_sums_of_pairs(builder: Any, rows: Any, stride: Any, columns: Any, pairs: Any) -> list[Any]:
    """Compute `_sums_of_pairs` with VNNI_SIZES, in assembler for AVX-512 VNNI."""
    row_count, width, vectors = VNNI_SIZES
    binding.initialize_native_asmparser()
    # An instruction adds no, one or two strides to an address by itself: one address for three rows.
    addresses = [builder.add(rows, builder.mul(stride, I64(3 * group))) for group in range(row_count // 3)]
    changing = [*addresses, columns, pairs]
    # Registers: the columns' factors, then the rows' factors, then the sums.
    totals = [f"zmm{8 + index}" for index in range(row_count * vectors)]
    factors = [f"zmm{index}" for index in range(8)]
    # LLVM sees new values in the registers that change (=, and the indices of the inputs). None of them may be the
    # stride's register, which is read in each round (&). The loop's counter sets flags, and LLVM may still need those.
    constraints = [
        *["=&r"] * len(changing), *(f"={{{name}}}" for name in totals), *map(str, range(len(changing))), "r",
        *(f"~{{{name}}}" for name in (*factors, "flags", "memory")),
    ]  # fmt: skip
    kinds = [I64] * len(changing) + [ir.VectorType(I32, width)] * len(totals)
    kind = ir.FunctionType(ir.LiteralStructType(kinds), [I64] * (len(changing) + 1))
    code = "\n".join(_vnni_code(totals, len(addresses), stride=f"${2 * len(changing) + len(totals)}"))
    output = builder.asm(kind, code, ",".join(constraints), [*changing, stride], False)
    return [builder.extract_value(output, len(changing) + index) for index in range(len(totals))]


def _vnni_code(totals: list[str], groups: int, stride: str) -> list[str]:
    """Lines in AT&T order (source, target). $N is an operand in the order of the constraints; $$N is a number."""
    row_count, width, vectors = VNNI_SIZES
    addresses, columns, pairs = [f"${group}" for group in range(groups)], f"${groups}", f"${groups + 1}"
    loop = [f"vmovdqu64 {4 * width * vector}({columns}), %zmm{vector}" for vector in range(vectors)]
    for row in range(row_count):
        address, offset = addresses[row // 3], ("", f",{stride}", f",{stride},2")[row % 3]
        factors = vectors + row % (8 - vectors)
        loop.append(f"vpbroadcastd ({address}{offset}), %zmm{factors}")
        of_row = totals[vectors * row : vectors * (row + 1)]
        loop += [f"vpdpwssd %zmm{vector}, %zmm{factors}, %{name}" for vector, name in enumerate(of_row)]
    return [
        *(f"vpxord %{name}, %{name}, %{name}" for name in totals),
        "1:",
        *loop,
        *(f"addq $$4, {address}" for address in addresses),
        f"addq $${4 * width * vectors}, {columns}",
        f"decq {pairs}",
        "jnz 1b",
    ]
