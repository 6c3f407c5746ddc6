"""The transforms of Winograd's algorithm, compiled: tiles of an image to points, and products at points to outputs.

Each goes over a tile a few channels at a time, so that what is between its two passes never leaves the processor's
nearest cache; torch, which knows whole arrays only, would write it to memory and read it back. Numbers at points are
float32, or bfloat16, whose bits are the upper half of a float32's. Numba compiles at first use and keeps the result
beside this file or in the user's cache.
"""

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

CHANNELS = 128  # at a time
GROUP = 4  # terms that are added up at once

Floats = NDArray[np.float32]
Halves = NDArray[np.uint16]
Terms = tuple[NDArray[np.int64], Floats]
Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """The function as machine code, during which other threads run; kept on disk where that is possible."""
    try:
        made: Any = njit(nogil=True, fastmath={"contract"}, cache=True)(function)
    except RuntimeError:  # there is no folder that can be written
        return cast(Function, njit(nogil=True, fastmath={"contract"})(function))
    keep = made._cache.save_overload

    def keep_if_possible(*arguments: Any) -> None:
        with contextlib.suppress(OSError):  # a full disk; what was compiled is used all the same
            keep(*arguments)

    made._cache.save_overload = keep_if_possible
    return cast(Function, made)


def terms(matrix: NDArray[np.float64]) -> Terms:
    """What of a matrix is not zero, row by row: its places, and its numbers, filled up with zeros to whole groups.

    Shape: [I, K] -> [I, n], [I, n], n being a multiple of GROUP.
    """
    most = int(np.count_nonzero(matrix, axis=1).max())
    places = np.zeros((len(matrix), -(-most // GROUP) * GROUP), dtype=np.int64)
    factors = np.zeros(places.shape, dtype=np.float32)
    for row, numbers in enumerate(matrix):
        used = np.flatnonzero(numbers)
        places[row], places[row, : len(used)] = used[0], used
        factors[row, : len(used)] = numbers[used]
    return places, factors


@compiled
def _combine(places: NDArray[np.int64], factors: Floats, rows: Floats, out: Floats) -> None:
    """out = the matrix of these terms times rows. Shape: rows [K, L] -> out [I, L]."""
    for i in range(places.shape[0]):
        made = out[i]
        for first in range(0, places.shape[1], GROUP):
            # Four at a time: one at a time, most of the work is to fetch and to store what has been added up so far.
            f0, f1, f2, f3 = factors[i, first], factors[i, first + 1], factors[i, first + 2], factors[i, first + 3]
            if first > 0 and f0 == 0:
                break
            r0, r1 = rows[places[i, first]], rows[places[i, first + 1]]
            r2, r3 = rows[places[i, first + 2]], rows[places[i, first + 3]]
            if first == 0:
                for c in range(made.shape[0]):
                    made[c] = f0 * r0[c] + f1 * r1[c] + f2 * r2[c] + f3 * r3[c]
            else:
                for c in range(made.shape[0]):
                    made[c] += f0 * r0[c] + f1 * r1[c] + f2 * r2[c] + f3 * r3[c]


@compiled
def to_points(
    values: Floats, channels: int, b: Terms, step: int, first: int, across: int, relu: bool, points: Floats,
    halves: Halves,
) -> None:  # fmt: skip
    """Write B d B' of tiles from `first` on, counted row by row with `across` a row; d is zero beyond the image.

    The first `channels` of the values count, with `relu` those above zero. One of `points` and `halves` is written: the
    one with tiles in it.
    Shape: values [H, W, >= channels], b the terms of [P, P], points or halves [P * P, N, channels].
    """
    height, width = values.shape[:2]
    size = b[0].shape[0]
    tile = np.zeros((size, size, CHANNELS), dtype=np.float32)
    half = np.empty((size, size, CHANNELS), dtype=np.float32)
    made = np.empty((size, CHANNELS), dtype=np.float32)
    bits = made.view(np.uint32)
    for place in range(max(points.shape[1], halves.shape[1])):
        top = (first + place) // across * step - 1
        left = (first + place) % across * step - 1
        for start in range(0, channels, CHANNELS):
            end = min(start + CHANNELS, channels)
            for k in range(size):
                for j in range(size):
                    one = tile[k, j]
                    if 0 <= top + k < height and 0 <= left + j < width:
                        value = values[top + k, left + j, start:end]
                        if relu:
                            for c in range(value.shape[0]):
                                one[c] = max(value[c], np.float32(0))
                        else:
                            one[: value.shape[0]] = value
                    else:
                        one[:] = 0
            _combine(b[0], b[1], tile.reshape(size, size * CHANNELS), half.reshape(size, size * CHANNELS))
            for i in range(size):
                _combine(b[0], b[1], half[i], made)
                for j in range(size):
                    if points.shape[1] > 0:
                        points[i * size + j, place, start:end] = made[j, : end - start]
                    else:
                        out, source = halves[i * size + j, place, start:end], bits[j]
                        for c in range(out.shape[0]):
                            out[c] = (source[c] + np.uint32(0x7FFF) + ((source[c] >> 16) & 1)) >> 16  # to the nearest


@compiled
def from_points(
    products: Floats, halves: Halves, size: int, a: Terms, bias: Floats, first: int, across: int, beside: Floats,
    skip: int, out: Floats,
) -> None:  # fmt: skip
    """Write A p A' + bias of tiles from `first` on; beyond the image nothing is written.

    `products` or `halves` has tiles in it. With rows in `beside`, its channels from `skip` on are added, and what is
    below zero becomes zero.
    Shape: products or halves [P * P, N, O] where P is `size`, a the terms of [M, P], bias [O],
    beside [H, W, >= skip + O] or [0, 0, 0], out [H, W, O].
    """
    count = a[0].shape[0]
    height, width, channels = out.shape
    point = np.zeros((size, size, CHANNELS), dtype=np.float32)
    half = np.empty((count, size, CHANNELS), dtype=np.float32)
    made = np.empty((count, CHANNELS), dtype=np.float32)
    bits = point.view(np.uint32)
    for place in range(max(products.shape[1], halves.shape[1])):
        top, left = (first + place) // across * count, (first + place) % across * count
        for start in range(0, channels, CHANNELS):
            end = min(start + CHANNELS, channels)
            for k in range(size):
                for j in range(size):
                    if products.shape[1] > 0:
                        point[k, j, : end - start] = products[k * size + j, place, start:end]
                    else:
                        wide, source = bits[k, j], halves[k * size + j, place, start:end]
                        for c in range(source.shape[0]):
                            wide[c] = np.uint32(source[c]) << 16
            _combine(a[0], a[1], point.reshape(size, size * CHANNELS), half.reshape(count, size * CHANNELS))
            shift = bias[start:end]
            for i in range(min(count, height - top)):
                _combine(a[0], a[1], half[i], made)
                for j in range(min(count, width - left)):
                    to, value = out[top + i, left + j, start:end], made[j]
                    if beside.shape[0] > 0:
                        more = beside[top + i, left + j, skip + start : skip + end]
                        for c in range(to.shape[0]):
                            to[c] = max(value[c] + shift[c] + more[c], np.float32(0))
                    else:
                        for c in range(to.shape[0]):
                            to[c] = value[c] + shift[c]
