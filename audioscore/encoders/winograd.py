"""3 x 3 convolutions over many channels with fewer multiplications: Winograd's algorithm on tiles of the output.

Of a tile of 4 x 4 outputs, each pair of channels costs 36 products in place of 144; at stride 2, where a convolution is
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

TAPS = 3
TILES = 512  # transformed before each matrix product: enough rows for it, few enough to bound memory (75 MB at 512)

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Algorithm:
    """A ((G g) * (B d)) is the correlation of inputs d with three taps g, `stride` apart.

    `pairs`: points a and -a, whose rows of B, and columns of A, differ in the sign of odd powers only.
    Shape: A [outputs, points], G [points, 3], B [points, inputs]; as many inputs as points.
    """

    a: Matrix
    g: Matrix
    b: Matrix
    pairs: tuple[int, ...]  # the first of each two
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
    """For stride 1 or 2."""
    if stride == 1:
        # These points round less than 0, 1, -1, 2, -2: the error of a sum over 512 channels is 1.3e-6 of its deviation,
        # of the plain convolution 0.9e-6.
        return Algorithm(*toom_cook((0.0, 0.5, -0.5, 1.5, -1.5), 4, TAPS), (1, 3), 1)
    a, g, b = toom_cook((0.0, 1.0, -1.0), 3, 2)
    # Of inputs 0 to 6, the even ones meet the outer taps, the odd ones the middle tap alone.
    whole_b, whole_g = np.zeros((7, 7)), np.zeros((7, TAPS))
    whole_b[:4, ::2], whole_b[4:, 1::2] = b, np.eye(3)
    whole_g[:4, ::2], whole_g[4:, 1] = g, 1.0
    return Algorithm(np.concatenate([a, np.eye(3)], axis=1), whole_g, whole_b, (1,), 2)


class WinogradConv:
    """A 3 x 3 convolution, padded by 1 with zeros, for inference.

    Shape: weight [O, C, 3, 3], bias [O].
    """

    def __init__(self, weight: Tensor, bias: Tensor, stride: int = 1) -> None:
        self.how = algorithm(stride)
        rows = torch.from_numpy(self.how.g).to(weight.device)
        points = torch.einsum("xi,yj,ocij->xyco", rows, rows, weight.double())
        self.weights = points.flatten(0, 1).to(weight.dtype).contiguous()  # (points^2, C, O)
        self.bias = bias

    def __call__(self, values: Tensor, add: Tensor | None = None) -> Tensor:
        """The convolution, or relu(convolution + add).

        Shape: values [H, W, C], add [H / stride, W / stride, O] -> [ceil(H / stride), ceil(W / stride), O].
        """
        how = self.how
        height, width = (-(-size // how.stride) for size in values.shape[:2])
        down, across, channels = -(-height // how.outputs), -(-width // how.outputs), self.weights.shape[2]
        made = values.new_empty(down * how.outputs, across * how.outputs, channels)
        step = min(max(1, TILES // across), down)
        points = values.new_empty(how.points, how.points, step * across, values.shape[2])
        products = values.new_empty(how.points**2, step * across, channels)
        for first in range(0, down, step):
            rows = range(first, min(first + step, down))
            for place, row in enumerate(rows):
                _to_points(how, _window(how, values, row, across), points[:, :, place * across :][:, :, :across])
            used = len(rows) * across
            torch.bmm(points[:, :, :used].flatten(0, 1), self.weights, out=products[:, :used])
            square = products.unflatten(0, (how.points, how.points))
            for place, row in enumerate(rows):
                tile = slice(row * how.outputs, (row + 1) * how.outputs)
                _from_points(how, square[:, :, place * across :][:, :, :across], made[tile])
                made[tile].add_(self.bias)
                if add is not None:
                    made[tile][: height - tile.start, :width].add_(add[tile]).relu_()
        return made[:height, :width]


def _window(how: Algorithm, values: Tensor, row: int, across: int) -> Tensor:
    """What one row of tiles is computed from, zeros beyond the edges. Shape: -> [points, L, C]."""
    height, width, channels = values.shape
    step = how.outputs * how.stride
    length = (across - 1) * step + how.points
    window = values.new_zeros(how.points, length, channels)
    top = row * step - 1
    start, end, right = max(0, top), min(height, top + how.points), min(width, length - 1)
    window[start - top : end - top, 1 : right + 1] = values[start:end, :right]
    return window


def _to_points(how: Algorithm, window: Tensor, points: Tensor) -> None:
    """Shape: window [P, L, C] -> points [P, P, across, C], written in place."""
    half = torch.empty_like(window)
    _evaluate(how, list(window), list(half))
    step = how.outputs * how.stride
    last = (points.shape[2] - 1) * step + 1
    columns = [half[:, place : place + last : step] for place in range(how.points)]
    _evaluate(how, columns, [points[:, place] for place in range(how.points)])


def _from_points(how: Algorithm, products: Tensor, out: Tensor) -> None:
    """Shape: products [P, P, across, O] -> out [outputs, across * outputs, O], written in place."""
    half = products.new_empty(how.outputs, *products.shape[1:])
    _interpolate(how, list(products), list(half))
    tiles = out.unflatten(1, (-1, how.outputs))  # (outputs, across, outputs, O)
    columns = [half[:, place] for place in range(how.points)]
    _interpolate(how, columns, [tiles[:, :, place] for place in range(how.outputs)])


def _evaluate(how: Algorithm, inputs: Sequence[Tensor], outs: Sequence[Tensor]) -> None:
    """outs = B inputs, slice by slice; what a and -a share is added up once."""
    for place in how.pairs:
        even, odd = (how.b[place] + how.b[place + 1]) / 2, (how.b[place] - how.b[place + 1]) / 2
        other = torch.empty_like(outs[place + 1])
        _add_up(even, inputs, outs[place])
        _add_up(odd, inputs, other)
        torch.sub(outs[place], other, out=outs[place + 1])
        outs[place].add_(other)
    for place in _alone(how):
        _add_up(how.b[place], inputs, outs[place])


def _interpolate(how: Algorithm, inputs: Sequence[Tensor], outs: Sequence[Tensor]) -> None:
    """outs = A inputs, slice by slice; what a and -a share is added up once."""
    even = [inputs[place] + inputs[place + 1] for place in how.pairs]
    odd = [inputs[place] - inputs[place + 1] for place in how.pairs]
    places = [*how.pairs, *_alone(how)]
    rest = [inputs[place] for place in _alone(how)]
    for power, out in enumerate(outs):
        _add_up(how.a[power][places], [*(odd if power % 2 else even), *rest], out)


def _alone(how: Algorithm) -> list[int]:
    paired = {place + side for place in how.pairs for side in (0, 1)}
    return [place for place in range(how.points) if place not in paired]


def _add_up(factors: Matrix, terms: Sequence[Tensor], out: Tensor) -> None:
    """out = the sum of terms times factors, those that are 0 left out."""
    used = [(float(factor), term) for factor, term in zip(factors, terms, strict=True) if factor]
    used.sort(key=lambda one: one[0] != 1.0)  # what is not scaled first: one pass less
    (factor, first), *others = used
    if factor != 1.0 or not others:
        torch.mul(first, factor, out=out)
    else:
        factor, second = others.pop(0)
        torch.add(first, second, alpha=factor, out=out)
    for factor, term in others:
        out.add_(term, alpha=factor)
