"""3 x 3 convolutions over many channels with fewer multiplications: Winograd's algorithm on tiles of the output.

A tile of 6 x 6 outputs costs 64 products for each pair of channels instead of 324. At stride 2, the convolution is
split into one with two taps on every second input and one with one tap on the others, and a tile of 4 x 4 outputs
costs 81 instead of 144. The remaining work is one matrix product for each of these points. Channels are innermost.

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

from audioscore.muq_cpu.matmul import Columns, FastDtype, has_faster_library, product

TAPS = 3
# Tiles per matrix product: enough rows for it, few enough to bound memory (at most 127 MB for 512 channels to 1,024).
TILES = 256
SPARE = 16  # elements between points: at distances of powers of two, points would share cache lines

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
    """Return A, G and B of a correlation, from polynomial products at `points` and infinity; rows of B end in 1.

    Shape: -> [outputs, P], [P, taps], [P, P], where P = outputs + taps - 1 = len(points) + 1.

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
    """Return the algorithm for stride 1 or 2.

    Error of a sum over 512 channels, relative to its standard deviation: float32 with MKL 4e-6 at stride 1 and 4e-7 at
    stride 2 (torch's own convolution: 3e-7), with oneDNN 1.7 times as much; 16-bit integers 0.4 % and 0.07 %.
    """
    if stride == 1:
        return Algorithm(*toom_cook((0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5), 6, TAPS), 1)
    a, g, b = toom_cook((0.0, 1.0, -1.0, 2.0), 4, 2)
    outputs, even = a.shape
    # Even inputs are multiplied with the outer taps, odd inputs with the middle tap alone.
    whole_b, whole_g = np.zeros((even + outputs, even + outputs)), np.zeros((even + outputs, TAPS))
    whole_b[:even, ::2], whole_b[even:, 1::2] = b, np.eye(outputs)
    whole_g[:even, ::2], whole_g[even:, 1] = g, 1.0
    return Algorithm(np.concatenate([a, np.eye(outputs)], axis=1), whole_g, whole_b, 2)


class Scratch:
    """Memory that is reused: tensors by name, for one thread at a time."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def tensor(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return an uninitialized CPU tensor of this shape, valid until the same name is requested again."""
        count, kept = math.prod(shape), self._kept.get(name)
        if kept is None or kept.numel() < count or kept.dtype != dtype:
            self._kept.pop(name, None)
            del kept  # first, so that both never exist at once
            self._kept[name] = kept = torch.empty(count, dtype=dtype)
        return kept[:count].view(shape)


class ScratchPool:
    """One `Scratch` for each thread that runs at the same time."""

    def __init__(self) -> None:
        self._free: deque[Scratch] = deque()  # appending and popping are thread-safe

    def release(self) -> None:
        """Free the memory of those that are not in use."""
        self._free.clear()

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Scratch]:
        """Yield a scratch that no other thread uses while the block runs."""
        try:
            scratch = self._free.pop()
        except IndexError:
            scratch = Scratch()
        try:
            yield scratch
        finally:
            self._free.append(scratch)


class WinogradConv:
    """A 3 x 3 convolution, padded by 1 with zeros, for inference on a CPU; its products are in `dtype`.

    Shape: weight [O, C, 3, 3], bias [O].
    """

    def __init__(self, weight: Tensor, bias: Tensor, stride: int = 1, *, dtype: FastDtype = "float32") -> None:
        from audioscore.muq_cpu import winograd_kernels

        self._kernels = winograd_kernels
        self.algorithm = algorithm(stride)
        self.outputs, self.channels = weight.shape[:2]
        self.bias = bias.float().contiguous().numpy()
        self._a, self._b = winograd_kernels.terms(self.algorithm.a), winograd_kernels.terms(self.algorithm.b)
        weights = _at_points(weight, torch.from_numpy(self.algorithm.g))
        self._columns = Columns.of(weights) if dtype == "int16" and self.channels % 2 == 0 else None
        self._weights = torch.stack([one.float() for one in weights]) if self._columns is None else None
        self._zeros = torch.zeros(self.outputs if self._columns is None else self._columns.width)

    def __call__(self, values: Tensor, scratch: Scratch, name: str) -> Tensor:
        """Convolve. The output is in `scratch` under this name; intermediate values are stored there too.

        Shape: values [H, W, C], float32 -> [ceil(H / stride), ceil(W / stride), O].
        """
        return self._run(values, scratch, name, residual=False)

    def residual(self, both: Tensor, scratch: Scratch, name: str) -> Tensor:
        """Compute relu(convolution of relu(x) + y), where the channels of x come before those of y.

        Shape: both [H, W, C + O], float32 -> [H, W, O].
        """
        return self._run(both, scratch, name, residual=True)

    def _run(self, values: Tensor, scratch: Scratch, name: str, *, residual: bool) -> Tensor:
        how, size = self.algorithm, self.algorithm.points**2
        height, width = (-(-length // how.stride) for length in values.shape[:2])
        down, across = -(-height // how.outputs), -(-width // how.outputs)
        count = -(-down * across // TILES)  # the same number of tiles each time
        tiles = -(-down * across // count)
        rows = tiles if self._columns is None else self._columns.rows(tiles)
        wide = self.outputs if self._columns is None else self._columns.width
        kind = torch.float32 if self._columns is None else torch.int16
        points = scratch.tensor("points", size, rows * self.channels + SPARE, dtype=kind)
        scales = scratch.tensor("scales", size, rows)
        products = scratch.tensor("products", size, rows * wide + SPARE)
        source = values.contiguous().numpy()
        added = source if residual else source[:0, :0, :0]
        output = scratch.tensor(name, height, width, self.outputs)
        for first in range(0, down * across, tiles):
            used = min(tiles, down * across - first)
            step = how.outputs * how.stride
            self._kernels.to_points(
                source, self.channels, self._b, step, first, across, residual, used, *_arrays(points), scales.numpy()
            )
            self._multiply(_apart(points, rows, self.channels), scales, used, _apart(products, rows, wide))
            self._kernels.from_points(
                products.numpy(), wide, self._a, self.bias, first, used, across, added, self.channels, output.numpy()
            )
        return output

    def _multiply(self, points: Tensor, scales: Tensor, used: int, products: Tensor) -> None:
        """Shape: points [P * P, N, C], scales [P * P, N] of integers, products [P * P, N, >= O]."""
        if self._columns is not None:
            self._columns.multiply(points, scales, used, self._zeros, products)
        elif self._weights is not None and has_faster_library():
            for point, output, weight in zip(points, products, self._weights, strict=True):
                output[:used] = product(point[:used], weight.T)
        elif self._weights is not None:
            torch.bmm(points[:, :used], self._weights, out=products[:, :used])


def _at_points(weight: Tensor, g: Tensor) -> Iterator[Tensor]:
    """A convolution's weights at each point; a few at a time, since together they are many times as large.

    Shape: weight [O, C, 3, 3], g [P, 3] -> P * P of [C, O], float64.
    """
    taps = weight.double().permute(2, 3, 1, 0).flatten(2)  # (3, 3, C * O)
    for first in g:
        yield from (g @ torch.tensordot(first, taps, 1)).view(-1, weight.shape[1], weight.shape[0])


def _apart(memory: Tensor, rows: int, channels: int) -> Tensor:
    """Matrices at distances that do not share cache lines.

    Shape: memory [P * P, more than rows * channels] -> [P * P, rows, channels].
    """
    return memory[:, : rows * channels].view(-1, rows, channels)


def _arrays(values: Tensor) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
    """The values as float32 or as integers; the other array has no rows. Shape: [N, C] each."""
    if values.dtype == torch.float32:
        return values.numpy(), np.empty((0, 0), dtype=np.int16)
    return np.empty((0, 0), dtype=np.float32), values.numpy()
