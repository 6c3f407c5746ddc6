"""3 x 3 convolutions over many channels with fewer multiplications: Winograd's algorithm on tiles of the output.

Of a tile of 6 x 6 outputs, each pair of channels costs 64 products in place of 324; at stride 2, where a convolution is
one with two taps of every second input and one with one tap of the others, a tile of 4 x 4 outputs costs 81 in place of
144. What is left are matrix products, one for each of these points, at which a CPU is best. Channels lie innermost.

Source: Lavin and Gray 2015, Fast Algorithms for Convolutional Neural Networks (arXiv 1509.09308).
"""

import contextlib
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audioscore.muq_cpu.matmul import Columns, Numbers, has_quicker_library, product


class Scratch:
    """Tensors by name, for one thread at a time."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor of this shape, on the CPU, with anything in it, until the same name is taken again."""
        count, kept = math.prod(shape), self._kept.get(name)
        if kept is None or kept.numel() < count or kept.dtype != dtype:
            self._kept.pop(name, None)
            del kept  # first, so that both are never there
            self._kept[name] = kept = torch.empty(count, dtype=dtype)
        return kept[:count].view(shape)


class Scratches:
    """As many as were ever used at once, whichever threads came for them."""

    def __init__(self) -> None:
        self._free: deque[Scratch] = deque()  # whose ends threads may share

    def forget(self) -> None:
        """Give back the memory of those that nobody has."""
        self._free.clear()

    @contextlib.contextmanager
    def one(self) -> Iterator[Scratch]:
        """A scratch that nobody else has while the block runs."""
        try:
            scratch = self._free.pop()
        except IndexError:
            scratch = Scratch()
        try:
            yield scratch
        finally:
            self._free.append(scratch)


TAPS = 3
# Transformed before each matrix product: enough rows for it, few enough to bound memory (127 MB at most of 512 channels
# to 1,024).
TILES = 256
SPARE = 16  # numbers between points: at powers of two apart, they would share a place in the processor's cache

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Algorithm:
    """A ((G g) * (B d)) is the correlation of inputs d with three taps g, `stride` apart.

    Shape: A [outputs, points], G [points, 3], B [points, inputs]; as many inputs as points.
    """

    a: Matrix
    g: Matrix
    b: Matrix
    stride: int

    @property
    def outputs(self) -> int:
        return len(self.a)

    @property
    def points(self) -> int:
        return len(self.g)


def toom_cook(points: Sequence[float], outputs: int, taps: int) -> tuple[Matrix, Matrix, Matrix]:
    """A, G and B of a correlation, from products of polynomials at `points` and infinity. Rows of B are scaled to end
    in 1.

    Shape: -> [outputs, P], [P, taps], [P, P], where P = outputs + taps - 1 is one more than there are points.

    >>> a, g, b = toom_cook((0.0, 1.0, -1.0), 2, 3)
    >>> (a @ ((g @ [1, 2, 3]) * (b @ [1, 0, 0, 1]))).tolist()
    [1.0, 3.0]
    """

    def powers(count: int) -> Matrix:
        return np.concatenate([np.vander(points, count, increasing=True), np.eye(count)[-1:]])

    inverse = np.linalg.inv(powers(outputs + taps - 1)).T
    inverse[np.abs(inverse) < 1e-12] = 0.0
    last = np.array([row[np.flatnonzero(row)[-1]] for row in inverse])[:, None]
    return powers(outputs).T, powers(taps) * last, inverse / last


@cache
def algorithm(stride: int) -> Algorithm:
    """For stride 1 or 2.

    Errors of a sum over 512 channels, of its deviation: in float32, multiplied by MKL, 4e-6 at stride 1, 4e-7 at stride
    2, where torch's own is 3e-7, and by oneDNN 1.7 times as much; in 16-bit integers 0.4 % and 0.07 %.
    """
    if stride == 1:
        return Algorithm(*toom_cook((0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5), 6, TAPS), 1)
    a, g, b = toom_cook((0.0, 1.0, -1.0, 2.0), 4, 2)
    outputs, even = a.shape
    # Of the inputs, the even ones meet the outer taps, the odd ones the middle tap alone.
    whole_b, whole_g = np.zeros((even + outputs, even + outputs)), np.zeros((even + outputs, TAPS))
    whole_b[:even, ::2], whole_b[even:, 1::2] = b, np.eye(outputs)
    whole_g[:even, ::2], whole_g[even:, 1] = g, 1.0
    return Algorithm(np.concatenate([a, np.eye(outputs)], axis=1), whole_g, whole_b, 2)


class WinogradConv:
    """A 3 x 3 convolution, padded by 1 with zeros, for inference on a CPU; its products are of `numbers`.

    Shape: weight [O, C, 3, 3], bias [O].
    """

    def __init__(self, weight: Tensor, bias: Tensor, stride: int = 1, *, numbers: Numbers = "float32") -> None:
        from audioscore.muq_cpu import winograd_kernels

        self._kernels = winograd_kernels
        self.how = algorithm(stride)
        self.made, self.channels = weight.shape[:2]
        self.bias = bias.float().contiguous().numpy()
        self._a, self._b = winograd_kernels.terms(self.how.a), winograd_kernels.terms(self.how.b)
        weights = _at_points(weight, torch.from_numpy(self.how.g))
        self._columns = Columns.of(weights) if numbers == "int16" and self.channels % 2 == 0 else None
        self._weights = torch.stack([one.float() for one in weights]) if self._columns is None else None
        self._nothing = torch.zeros(self.made if self._columns is None else self._columns.width)

    def __call__(self, values: Tensor, scratch: Scratch, name: str) -> Tensor:
        """The convolution, in `scratch` under this name, where what is computed on the way has room too.

        Shape: values [H, W, C], float32 -> [ceil(H / stride), ceil(W / stride), O].
        """
        return self._run(values, scratch, name, joined=False)

    def joined(self, both: Tensor, scratch: Scratch, name: str) -> Tensor:
        """relu(convolution of relu(x) + y), x and y lying beside each other; in `scratch` as above.

        Shape: both [H, W, C + O], float32 -> [H, W, O].
        """
        return self._run(both, scratch, name, joined=True)

    def _run(self, values: Tensor, scratch: Scratch, name: str, *, joined: bool) -> Tensor:
        how, size = self.how, self.how.points**2
        height, width = (-(-length // how.stride) for length in values.shape[:2])
        down, across = -(-height // how.outputs), -(-width // how.outputs)
        count = -(-down * across // TILES)  # equally many tiles each time
        tiles = -(-down * across // count)
        rows = tiles if self._columns is None else self._columns.rows(tiles)
        wide = self.made if self._columns is None else self._columns.width
        kind = torch.float32 if self._columns is None else torch.int16
        points = scratch.take("points", size, rows * self.channels + SPARE, dtype=kind)
        scales = scratch.take("scales", size, rows)
        products = scratch.take("products", size, rows * wide + SPARE)
        source = values.contiguous().numpy()
        beside = source if joined else source[:0, :0, :0]
        made = scratch.take(name, height, width, self.made)
        for first in range(0, down * across, tiles):
            used = min(tiles, down * across - first)
            step = how.outputs * how.stride
            self._kernels.to_points(
                source, self.channels, self._b, step, first, across, joined, used, *_arrays(points), scales.numpy()
            )
            self._multiply(_apart(points, rows, self.channels), scales, used, _apart(products, rows, wide))
            self._kernels.from_points(
                products.numpy(), wide, self._a, self.bias, first, used, across, beside, self.channels, made.numpy()
            )
        return made

    def _multiply(self, points: Tensor, scales: Tensor, used: int, products: Tensor) -> None:
        """Shape: points [P * P, N, C], scales [P * P, N] of integers, products [P * P, N, >= O]."""
        if self._columns is not None:
            self._columns.multiply(points, scales, used, self._nothing, products)
        elif self._weights is not None and has_quicker_library():
            for point, made, weight in zip(points, products, self._weights, strict=True):
                made[:used] = product(point[:used], weight.T)
        elif self._weights is not None:
            torch.bmm(points[:, :used], self._weights, out=products[:, :used])


def _at_points(weight: Tensor, g: Tensor) -> Iterator[Tensor]:
    """What a convolution's weights are at each point; a few at a time, since together they are many times as large.

    Shape: weight [O, C, 3, 3], g [P, 3] -> P * P of [C, O], float64.
    """
    taps = weight.double().permute(2, 3, 1, 0).flatten(2)  # (3, 3, C * O)
    for first in g:
        yield from (g @ torch.tensordot(first, taps, 1)).view(-1, weight.shape[1], weight.shape[0])


def _apart(room: Tensor, rows: int, channels: int) -> Tensor:
    """Matrices that do not share places in the processor's cache.

    Shape: room [P * P, more than rows * channels] -> [P * P, rows, channels].
    """
    return room[:, : rows * channels].view(-1, rows, channels)


def _arrays(numbers: Tensor) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
    """The numbers as float32 or as integers, the others without rows. Shape: [N, C] each."""
    if numbers.dtype == torch.float32:
        return numbers.numpy(), np.empty((0, 0), dtype=np.int16)
    return np.empty((0, 0), dtype=np.float32), numbers.numpy()
