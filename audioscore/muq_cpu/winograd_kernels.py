"""The transforms of Winograd's algorithm, compiled: tiles of an image to points, and products at points to outputs.

Each processes a tile a few channels at a time, so that intermediate values stay in the processor's nearest cache;
torch works on whole arrays and would write them to memory and read them back. Values at points are float32 or 16-bit
integers. Numba compiles at first use and caches the result beside this file or in the user's cache.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from audioscore.muq_cpu.compiled import F32, I64, broadcast, compiled, fetch, load, store, sums, written
from audioscore.muq_cpu.int16_kernels import row_to_ints

CHANNELS = 128  # at a time
STRETCH = 64  # elements of a sum at once, in eight AVX2 registers
CONTRACT = ("contract",)  # LLVM may fuse a multiplication and an addition

Floats = NDArray[np.float32]
Ints = NDArray[np.int16]
Terms = tuple[NDArray[np.int64], Floats, NDArray[np.int64]]


def terms(matrix: NDArray[np.float64]) -> Terms:
    """List the non-zero elements of a matrix, row by row: their column indices, values and count.

    Shape: [I, K] -> [I, K], [I, K], [I]; in each row, the first `count` are used.
    """
    indices, factors = np.zeros(matrix.shape, dtype=np.int64), np.zeros(matrix.shape, dtype=np.float32)
    counts = np.count_nonzero(matrix, axis=1)
    for row, values in enumerate(matrix):
        used = np.flatnonzero(values)
        indices[row, : len(used)], factors[row, : len(used)] = used, values[used]
    return indices, factors, counts


@compiled
def _combine(matrix: Terms, rows: Floats, out: Floats) -> None:
    """out = matrix (given as `terms`) @ rows. Shape: rows [K, L] -> out [I, L], L a multiple of STRETCH."""
    indices, factors, counts = matrix
    rows_at, stride = rows.ctypes.data, rows.strides[0]
    for i in range(counts.shape[0]):
        indices_at, factors_at, out_at = indices[i].ctypes.data, factors[i].ctypes.data, out[i].ctypes.data
        for start in range(0, 4 * rows.shape[1], 4 * STRETCH):
            _add_rows(rows_at + start, stride, indices_at, factors_at, counts[i], out_at + start)


_VECTOR = ir.VectorType(F32, 16)
_VECTORS = range(0, 4 * STRETCH, 4 * 16)  # their offsets, in bytes


@written
def _add_rows(typing_context: Any, rows: Any, stride: Any, indices: Any, factors: Any, count: Any, out: Any) -> Any:
    """STRETCH elements of a sum of rows, each times its factor.

    All arguments are addresses but `stride`, in bytes, and `count`, the number of rows.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        rows, stride, indices, factors, count, out = given

        def add(term: Any, totals: list[Any]) -> list[Any]:
            index = load(builder, builder.add(indices, builder.mul(term, I64(8))), 0, I64)
            factor = load(builder, builder.add(factors, builder.mul(term, I64(4))), 0, F32)
            row, wide = builder.add(rows, builder.mul(index, stride)), broadcast(builder, factor, 16)
            return [
                builder.fadd(total, builder.fmul(load(builder, row, at, _VECTOR), wide, flags=CONTRACT), flags=CONTRACT)
                for at, total in zip(_VECTORS, totals, strict=True)
            ]

        for at, total in zip(_VECTORS, sums(builder, count, [_VECTOR] * len(_VECTORS), add), strict=True):
            store(builder, total, out, at)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), generate


@compiled
def to_points(
    values: Floats, channels: int, b: Terms, step: int, first: int, across: int, relu: bool, count: int,
    points: Floats, ints: Ints, scales: Floats,
) -> None:  # fmt: skip
    """Write B d B' of `count` tiles from tile `first` on, counted row by row with `across` tiles per row.

    d is zero outside the image. The first `channels` channels are used, after a ReLU if `relu`. Of `points` and `ints`,
    the one with rows is written; integers have a scale for each point of a tile.
    Shape: values [H, W, >= channels], b the terms of [P, P], points or ints [P * P, >= count * channels],
    scales [P * P, >= count].
    """
    size = b[0].shape[0]
    tile = np.zeros((size, size, CHANNELS), dtype=np.float32)
    half = np.empty((size, size, CHANNELS), dtype=np.float32)
    output = np.empty((size, CHANNELS), dtype=np.float32)
    whole = np.empty((ints.shape[0], channels), dtype=np.float32)
    for index in range(count):
        top = (first + index) // across * step - 1
        left = (first + index) % across * step - 1
        for start in range(0, channels, CHANNELS):
            end = min(start + CHANNELS, channels)
            _read_tile(values, top, left, start, end, relu, tile)
            _combine(b, tile.reshape(size, size * CHANNELS), half.reshape(size, size * CHANNELS))
            at, until = index * channels + start, index * channels + end
            for i in range(size):
                _combine(b, half[i], output)
                for j in range(size):
                    point = i * size + j
                    if points.shape[0] > 0:
                        _copy(output[j], points[point, at:until])
                        fetch(points[point, at:].ctypes.data + 4 * CHANNELS, 4 * CHANNELS)
                    else:
                        _copy(output[j], whole[point, start:end])
        for point in range(whole.shape[0]):  # a scale needs all channels
            own = ints[point, index * channels : (index + 1) * channels]
            scales[point, index] = row_to_ints(whole[point], own)
            fetch(own.ctypes.data + 2 * channels, 2 * channels)


@compiled
def _read_tile(values: Floats, top: int, left: int, start: int, end: int, relu: bool, tile: Floats) -> None:
    """Copy a tile of an image, zero outside the image. Shape: tile [P, P, >= end - start]."""
    height, width = values.shape[:2]
    for k in range(tile.shape[0]):
        for j in range(tile.shape[1]):
            one = tile[k, j]
            if not (0 <= top + k < height and 0 <= left + j < width):
                one[:] = 0
            elif relu:
                value = values[top + k, left + j, start:end]
                for c in range(value.shape[0]):
                    one[c] = max(value[c], np.float32(0))
            else:
                _copy(values[top + k, left + j, start:end], one[: end - start])


@compiled
def _copy(source: Floats, out: Floats) -> None:
    """Copy len(out) elements: Numba does not use vectors for an assignment of slices."""
    for c in range(out.shape[0]):
        out[c] = source[c]


@compiled
def from_points(
    products: Floats, across_products: int, a: Terms, bias: Floats, first: int, count: int, across: int,
    residual: Floats, skip: int, out: Floats,
) -> None:  # fmt: skip
    """Write A p A' + bias of `count` tiles from tile `first` on, inside the image.

    The products of two tiles are `across_products` apart. If `residual` has rows, its channels from `skip` on are
    added, followed by a ReLU.
    Shape: products [P * P, >= count * across_products], a the terms of [M, P], bias [O],
    residual [H, W, >= skip + O] or [0, 0, 0], out [H, W, O].
    """
    outputs, size = a[0].shape
    height, width, channels = out.shape
    point = np.zeros((size, size, CHANNELS), dtype=np.float32)
    half = np.empty((outputs, size, CHANNELS), dtype=np.float32)
    output = np.empty((outputs, CHANNELS), dtype=np.float32)
    for index in range(count):
        top, left = (first + index) // across * outputs, (first + index) % across * outputs
        for start in range(0, channels, CHANNELS):
            end = min(start + CHANNELS, channels)
            at, until = index * across_products + start, index * across_products + end
            for k in range(size):
                for j in range(size):
                    source = products[k * size + j, at:until]
                    fetch(source.ctypes.data + 4 * CHANNELS, 4 * CHANNELS)
                    _copy(source, point[k, j, : end - start])
            _combine(a, point.reshape(size, size * CHANNELS), half.reshape(outputs, size * CHANNELS))
            shift = bias[start:end]
            for i in range(min(outputs, height - top)):
                _combine(a, half[i], output)
                for j in range(min(outputs, width - left)):
                    to, value = out[top + i, left + j, start:end], output[j]
                    if residual.shape[0] > 0:
                        more = residual[top + i, left + j, skip + start : skip + end]
                        for c in range(to.shape[0]):
                            to[c] = max(value[c] + shift[c] + more[c], np.float32(0))
                    else:
                        for c in range(to.shape[0]):
                            to[c] = value[c] + shift[c]
