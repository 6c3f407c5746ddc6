"""3 x 3 convolutions over many channels with fewer multiplications: Winograd's algorithm on tiles of the output.

Of a tile of 6 x 6 outputs, each pair of channels costs 64 products in place of 324; at stride 2, where a convolution is
one with two taps of every second input and one with one tap of the others, a tile of 3 x 3 outputs costs 49 in place of
81. What is left are matrix products, one for each of these points, at which a CPU is best. Channels lie innermost.

Source: Lavin and Gray 2015, Fast Algorithms for Convolutional Neural Networks (arXiv 1509.09308).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audioscore.encoders.scratch import Scratch

TAPS = 3
TILES = (
    256  # transformed before each matrix product: enough rows for it, few enough to bound memory (67 to 84 MB at 512)
)
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
def algorithm(stride: int, *, half: bool = False) -> Algorithm:
    """For stride 1 or 2; `half`: for products in bfloat16, which large tiles would round too much.

    Errors of a sum over 512 channels, of its deviation: in float32 4e-6 at stride 1, 3e-7 at stride 2, where torch's
    own is 3e-7; in bfloat16 1.2 % and 0.4 %, where a plain convolution's is 0.2 %.
    """
    if stride == 1:
        if half:
            return Algorithm(*toom_cook((0.0, 0.6, -0.6, 1.5, -1.5), 4, TAPS), 1)
        return Algorithm(*toom_cook((0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5), 6, TAPS), 1)
    a, g, b = toom_cook((0.0, 1.0, -1.0), 3, 2)
    # Of inputs 0 to 6, the even ones meet the outer taps, the odd ones the middle tap alone.
    whole_b, whole_g = np.zeros((7, 7)), np.zeros((7, TAPS))
    whole_b[:4, ::2], whole_b[4:, 1::2] = b, np.eye(3)
    whole_g[:4, ::2], whole_g[4:, 1] = g, 1.0
    return Algorithm(np.concatenate([a, np.eye(3)], axis=1), whole_g, whole_b, 2)


class WinogradConv:
    """A 3 x 3 convolution, padded by 1 with zeros, for inference on a CPU; `half`: its products are of bfloat16.

    Shape: weight [O, C, 3, 3], bias [O].
    """

    def __init__(self, weight: Tensor, bias: Tensor, stride: int = 1, *, half: bool = False) -> None:
        from audioscore.encoders import winograd_kernels  # Numba takes a second to import

        self._kernels = winograd_kernels
        self.how = algorithm(stride, half=half)
        rows = torch.from_numpy(self.how.g)
        points = torch.einsum("xi,yj,ocij->xyco", rows, rows, weight.double())
        self.weights = points.flatten(0, 1).to(torch.bfloat16 if half else torch.float32).contiguous()  # (P^2, C, O)
        self.bias = bias.float().contiguous().numpy()
        self._a, self._b = winograd_kernels.terms(self.how.a), winograd_kernels.terms(self.how.b)

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
        how = self.how
        channels, made_channels = self.weights.shape[1:]
        height, width = (-(-size // how.stride) for size in values.shape[:2])
        down, across = -(-height // how.outputs), -(-width // how.outputs)
        count = -(-down * across // TILES)  # equally many tiles each time
        tiles = -(-down * across // count)
        size, kind = how.points**2, self.weights.dtype
        points = scratch.take("points", size, tiles * channels + SPARE, dtype=kind)
        products = scratch.take("products", size, tiles * made_channels + SPARE, dtype=kind)
        source = values.contiguous().numpy()
        beside = source if joined else source[:0, :0, :0]
        made = scratch.take(name, height, width, made_channels)
        for first in range(0, down * across, tiles):
            used = min(tiles, down * across - first)
            some, some_made = _first(points, used, channels), _first(products, used, made_channels)
            step = how.outputs * how.stride
            self._kernels.to_points(source, channels, self._b, step, first, across, joined, *_bits(some))
            torch.bmm(some, self.weights, out=some_made)
            self._kernels.from_points(
                *_bits(some_made), how.points, self._a, self.bias, first, across, beside, channels, made.numpy()
            )
        return made


def _first(room: Tensor, tiles: int, channels: int) -> Tensor:
    """Shape: room [P * P, >= tiles * channels] -> a view of it, [P * P, tiles, channels]."""
    return room[:, : tiles * channels].view(-1, tiles, channels)


def _bits(numbers: Tensor) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    """The numbers as float32 or as bits of bfloat16, the other without tiles. Shape: [P * P, N, C] each."""
    if numbers.dtype == torch.float32:
        floats = numbers.numpy()
        return floats, np.empty((1, 0, 1), dtype=np.uint16)
    return np.empty((1, 0, 1), dtype=np.float32), numbers.view(torch.uint16).numpy()
