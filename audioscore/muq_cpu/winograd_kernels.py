"""The transforms of Winograd's algorithm, compiled: tiles of an image to points, and products at points to outputs.

Each goes over a tile a few channels at a time, so that what is between its two passes never leaves the processor's
nearest cache; torch, which knows whole arrays only, would write it to memory and read it back. Numbers at points are
float32 or 16-bit integers. Numba compiles at first use and keeps the result beside this file or in the user's cache.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from audioscore.muq_cpu.compiled import compiled
from audioscore.muq_cpu.int16_kernels import row_to_ints
from audioscore.muq_cpu.vector_kernels import F32, I64, everywhere, fetch, load, store, sums, written

CHANNELS = 128  # at a time
STRETCH = 64  # numbers of a sum at once, in eight registers of AVX2
CONTRACT = ("contract",)  # a product may be added unrounded

Floats = NDArray[np.float32]
Ints = NDArray[np.int16]
Terms = tuple[NDArray[np.int64], Floats, NDArray[np.int64]]


def terms(matrix: NDArray[np.float64]) -> Terms:
    """What of a matrix is not zero, row by row: its places, its numbers, and how many they are.

    Shape: [I, K] -> [I, K], [I, K], [I]; of each row, the first count.
    """
    places, factors = np.zeros(matrix.shape, dtype=np.int64), np.zeros(matrix.shape, dtype=np.float32)
    counts = np.count_nonzero(matrix, axis=1)
    for row, numbers in enumerate(matrix):
        used = np.flatnonzero(numbers)
        places[row, : len(used)], factors[row, : len(used)] = used, numbers[used]
    return places, factors, counts


@compiled
def _combine(matrix: Terms, rows: Floats, out: Floats) -> None:
    """out = the matrix of these terms times rows. Shape: rows [K, L] -> out [I, L], L a multiple of STRETCH."""
    places, factors, counts = matrix
    rows_at, stride = rows.ctypes.data, rows.strides[0]
    for i in range(counts.shape[0]):
        places_at, factors_at, out_at = places[i].ctypes.data, factors[i].ctypes.data, out[i].ctypes.data
        for start in range(0, 4 * rows.shape[1], 4 * STRETCH):
            _add_rows(rows_at + start, stride, places_at, factors_at, counts[i], out_at + start)


_VECTOR = ir.VectorType(F32, 16)
_VECTORS = range(0, 4 * STRETCH, 4 * 16)  # where they begin, in bytes


@written
def _add_rows(typing_context: Any, rows: Any, stride: Any, places: Any, factors: Any, count: Any, out: Any) -> Any:
    """STRETCH numbers of a sum of rows, each times its factor; all are addresses, but for the stride, in bytes, and
    how many rows there are.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        rows, stride, places, factors, count, out = given

        def add(term: Any, totals: list[Any]) -> list[Any]:
            place = load(builder, builder.add(places, builder.mul(term, I64(8))), 0, I64)
            factor = load(builder, builder.add(factors, builder.mul(term, I64(4))), 0, F32)
            row, wide = builder.add(rows, builder.mul(place, stride)), everywhere(builder, factor, 16)
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
    """Write B d B' of `count` tiles from `first` on, counted row by row with `across` a row; d is zero beyond the
    image.

    The first `channels` of the values count, with `relu` those above zero. Of `points` and `ints` the one with rows is
    written; integers have a scale for each point of a tile.
    Shape: values [H, W, >= channels], b the terms of [P, P], points or ints [P * P, >= count * channels],
    scales [P * P, >= count].
    """
    size = b[0].shape[0]
    tile = np.zeros((size, size, CHANNELS), dtype=np.float32)
    half = np.empty((size, size, CHANNELS), dtype=np.float32)
    made = np.empty((size, CHANNELS), dtype=np.float32)
    whole = np.empty((ints.shape[0], channels), dtype=np.float32)
    for place in range(count):
        top = (first + place) // across * step - 1
        left = (first + place) % across * step - 1
        for start in range(0, channels, CHANNELS):
            end = min(start + CHANNELS, channels)
            _take_tile(values, top, left, start, end, relu, tile)
            _combine(b, tile.reshape(size, size * CHANNELS), half.reshape(size, size * CHANNELS))
            at, until = place * channels + start, place * channels + end
            for i in range(size):
                _combine(b, half[i], made)
                for j in range(size):
                    point = i * size + j
                    if points.shape[0] > 0:
                        _copy(made[j], points[point, at:until])
                        fetch(points[point, at:].ctypes.data + 4 * CHANNELS, 4 * CHANNELS)
                    else:
                        _copy(made[j], whole[point, start:end])
        for point in range(whole.shape[0]):  # a scale is of all channels, so these come first
            own = ints[point, place * channels : (place + 1) * channels]
            scales[point, place] = row_to_ints(whole[point], own)
            fetch(own.ctypes.data + 2 * channels, 2 * channels)


@compiled
def _take_tile(values: Floats, top: int, left: int, start: int, end: int, relu: bool, tile: Floats) -> None:
    """The tile of an image from a place on, zero beyond it, of some channels. Shape: tile [P, P, >= end - start]."""
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
    """As many as there is room for. An assignment of slices would not be made of vectors."""
    for c in range(out.shape[0]):
        out[c] = source[c]


@compiled
def from_points(
    products: Floats, across_products: int, a: Terms, bias: Floats, first: int, count: int, across: int,
    beside: Floats, skip: int, out: Floats,
) -> None:  # fmt: skip
    """Write A p A' + bias of `count` tiles from `first` on; beyond the image nothing is written.

    A tile's products are `across_products` behind those of the one before. With rows in `beside`, its channels from
    `skip` on are added, and what is below zero becomes zero.
    Shape: products [P * P, >= count * across_products], a the terms of [M, P], bias [O],
    beside [H, W, >= skip + O] or [0, 0, 0], out [H, W, O].
    """
    outputs, size = a[0].shape
    height, width, channels = out.shape
    point = np.zeros((size, size, CHANNELS), dtype=np.float32)
    half = np.empty((outputs, size, CHANNELS), dtype=np.float32)
    made = np.empty((outputs, CHANNELS), dtype=np.float32)
    for place in range(count):
        top, left = (first + place) // across * outputs, (first + place) % across * outputs
        for start in range(0, channels, CHANNELS):
            end = min(start + CHANNELS, channels)
            at, until = place * across_products + start, place * across_products + end
            for k in range(size):
                for j in range(size):
                    source = products[k * size + j, at:until]
                    fetch(source.ctypes.data + 4 * CHANNELS, 4 * CHANNELS)
                    _copy(source, point[k, j, : end - start])
            _combine(a, point.reshape(size, size * CHANNELS), half.reshape(outputs, size * CHANNELS))
            shift = bias[start:end]
            for i in range(min(outputs, height - top)):
                _combine(a, half[i], made)
                for j in range(min(outputs, width - left)):
                    to, value = out[top + i, left + j, start:end], made[j]
                    if beside.shape[0] > 0:
                        more = beside[top + i, left + j, skip + start : skip + end]
                        for c in range(to.shape[0]):
                            to[c] = max(value[c] + shift[c] + more[c], np.float32(0))
                    else:
                        for c in range(to.shape[0]):
                            to[c] = value[c] + shift[c]
