"""Sums over all pairs of clips, for many bootstrap resamples at once."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PAIR_ROWS = 512  # rows of the N x N matrix that are held at once
EXACT_IN_FLOAT32 = 2.0**24  # whole numbers up to here


def pair_sum(weights: Array, rows: Callable[[slice], NDArray[Any]]) -> Array:
    """Sum of a symmetric N x N matrix over the unordered pairs of each expanded sample.

    `weights` say how often each clip was drawn; `rows(part)` gives rows of the matrix, whole numbers in [-1, 1] with a
    zero diagonal. Clips that are always drawn together, as those of one singer are, first become one row and column,
    the sum of theirs: the work then grows with the singers, not with the clips.

    Shape: weights [B, N] -> [B].

    >>> one_for_every_pair = 1.0 - np.eye(3)
    >>> pair_sum(np.array([[1.0, 1, 1], [2, 2, 0]]), lambda part: one_for_every_pair[part])
    array([3., 4.])
    """
    first, group = drawn_together(weights)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(first)))
    largest = np.diff(starts, append=len(group)).max() * weights.sum(axis=1).max()
    kind = np.float32 if largest < EXACT_IN_FLOAT32 else np.float64  # half the time, where nothing is rounded
    sums = np.zeros((len(first), len(first)), dtype=kind)
    for start in range(0, weights.shape[1], PAIR_ROWS):
        part = slice(start, start + PAIR_ROWS)
        np.add.at(sums, group[part], np.add.reduceat(rows(part)[:, order].astype(kind), starts, axis=1))
    drawn = weights[:, first]
    below: NDArray[Any] = drawn.astype(kind) @ sums
    return np.asarray((drawn * below).sum(axis=1) / 2, dtype=np.float64)


def drawn_together(weights: Array) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """A clip of each set of clips with equal weights, and the set of each clip. Shape: weights [B, N] -> [S], [N].

    >>> first, group = drawn_together(np.array([[1.0, 2, 1], [0, 3, 0]]))
    >>> first[group].tolist()
    [0, 1, 0]
    """
    columns = np.ascontiguousarray(weights.T, dtype=np.int32)  # counts are small whole numbers
    marks = columns.view(np.dtype((np.void, columns.itemsize * columns.shape[1])))[:, 0]
    _, first, group = np.unique(marks, return_index=True, return_inverse=True)
    return first, group
