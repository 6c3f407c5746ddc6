"""Agreement of predictions with human scores, on one sample or on many bootstrap resamples at once.

`metric(scores, predictions)` returns a float. `metric(scores, predictions, weights)` returns [B], the metric on each
of B resamples: the whole numbers `weights` [B, N] are how often each clip was drawn, and copies of a clip are tied.
Inputs are [N] and finite (DataError otherwise). An undefined metric is NaN.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from audioscore.errors import DataError

Array = NDArray[np.float64]

GAPS = ((0.0, 2.0), (2.0, 5.0), (5.0, 10.0), (10.0, float("inf")))  # score points between the two clips of a pair
GAP_DECIMALS = 9  # in binary, 64.4 - 62.4 is 2 + 7e-15
BLOCK_VALUES = 4_000_000  # weights in a block of resamples (32 MB)
PAIR_ROWS = 512  # rows of the N x N matrix in memory at once
EXACT_IN_FLOAT32 = 2.0**24  # float32 represents whole numbers up to here exactly
SMALL_SPREAD = 1e-4  # share of the mean square; below it, a difference of sums has lost 4 of 16 digits


class Metric(Protocol):
    """A function that returns a float for a sample, or [B] for B resamples of it."""

    @overload
    def __call__(self, scores: ArrayLike, predictions: ArrayLike) -> float: ...
    @overload
    def __call__(self, scores: ArrayLike, predictions: ArrayLike, weights: ArrayLike) -> Array: ...


def _metric(core: Callable[[Array, Array, Array], Array]) -> Metric:
    """Add input checks, default weights and blocks to a function of shape [N], [N], [B, N] -> [B]."""

    @functools.wraps(core)
    def metric(scores: ArrayLike, predictions: ArrayLike, weights: ArrayLike | None = None) -> Any:
        human, predicted = _checked(scores, predictions)
        counts = np.ones((1, len(human))) if weights is None else _checked_weights(weights, len(human))
        result = np.full(len(counts), np.nan)
        step = max(1, BLOCK_VALUES // max(1, len(human)))
        for start in range(0, len(counts) if len(human) else 0, step):
            part = slice(start, start + step)
            result[part] = core(human, predicted, counts[part].astype(np.float64))
        return float(result[0]) if weights is None else result

    return metric


def _checked(scores: ArrayLike, predictions: ArrayLike) -> tuple[Array, Array]:
    human, predicted = np.asarray(scores, dtype=np.float64), np.asarray(predictions, dtype=np.float64)
    if human.shape != predicted.shape or human.ndim != 1:
        raise DataError(
            f"Metric: scores have shape {list(human.shape)} and predictions {list(predicted.shape)}. Pass one "
            "prediction for each score, in the same order."
        )
    for name, values in (("scores", human), ("predictions", predicted)):
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise DataError(
                f"{name}: {len(bad)} of {len(values)} are not finite (first at index {bad[0]}). Remove those clips, or "
                "predict them again."
            )
    return human, predicted


def _checked_weights(weights: ArrayLike, clips: int) -> NDArray[Any]:
    counts = np.asarray(weights)
    if counts.ndim != 2 or counts.shape[1] != clips:
        raise DataError(
            f"Resample weights: expected shape [B, {clips}], got {list(counts.shape)}. Pass one column for each clip."
        )
    whole = np.issubdtype(counts.dtype, np.integer)
    if counts.size and (counts.min() < 0 or not (whole or np.array_equal(counts, np.floor(counts)))):
        raise DataError("Resample weights: not all are whole numbers of 0 or more. Pass how often each clip was drawn.")
    return counts


def _ratio(numerator: Array, denominator: Array) -> Array:
    """Divide; NaN where the denominator is not positive."""
    undefined = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    np.divide(numerator, denominator, out=undefined, where=denominator > 0)
    return undefined


def _tie_counts(values: Array, draws: Array) -> tuple[Array, NDArray[np.intp]]:
    """Count how often each resample draws each distinct value; also return each clip's index into the values.

    Shape: values [N], draws [N, B] -> [G, B], [N].
    """
    distinct, group = np.unique(values, return_inverse=True)
    order = np.argsort(values, kind="stable")
    starts = np.searchsorted(values[order], distinct)
    return np.add.reduceat(draws[order], starts, axis=0), group


def _centred_midranks(values: Array, draws: Array) -> Array:
    """Midrank of each clip in each resample, minus the mean rank.

    All resamples share one sort order, so a rank is the draws below a value plus half of the draws at it.
    Shape: values [N], draws [N, B] -> [N, B].
    """
    ties, group = _tie_counts(values, draws)
    ranks: Array = np.cumsum(ties, axis=0)
    ranks -= ties / 2 + ties.sum(axis=0) / 2
    return ranks[group]


@_metric
def spearman(human: Array, predicted: Array, weights: Array) -> Array:
    """Compute Spearman's rank correlation with midranks; NaN with fewer than 2 distinct values on either side.

    >>> spearman([60, 70, 80, 90], [1, 2, 4, 3])
    0.8
    >>> spearman([60, 70, 80], [2, 2, 2])
    nan
    """
    draws = np.ascontiguousarray(weights.T)  # (N, B): indexing whole rows is three times as fast
    x, y = _centred_midranks(human, draws), _centred_midranks(predicted, draws)
    spread = np.sqrt(np.einsum("nb,nb,nb->b", draws, x, x) * np.einsum("nb,nb,nb->b", draws, y, y))
    return np.clip(_ratio(np.einsum("nb,nb,nb->b", draws, x, y), spread), -1.0, 1.0)


@_metric
def pearson(human: Array, predicted: Array, weights: Array) -> Array:
    """Compute Pearson's correlation; NaN with fewer than 2 distinct values on either side."""
    x, y = human - human.mean(), predicted - predicted.mean()
    total = weights.sum(axis=1)
    sums = weights @ np.stack([x, y, x * x, y * y, x * y], axis=1)  # (B, 5)
    mean_x, mean_y = _ratio(sums[:, 0], total), _ratio(sums[:, 1], total)
    spread_x, spread_y = sums[:, 2] - total * mean_x**2, sums[:, 3] - total * mean_y**2
    # With few clips in a resample, rounding can dominate the spread: those resamples are centred one by one.
    exact = ~((spread_x > SMALL_SPREAD * sums[:, 2]) & (spread_y > SMALL_SPREAD * sums[:, 3]))
    spread = np.where(exact, 0.0, np.sqrt(np.maximum(spread_x, 0.0) * np.maximum(spread_y, 0.0)))
    found = np.clip(_ratio(sums[:, 4] - total * mean_x * mean_y, spread), -1.0, 1.0)
    found[exact] = _centred_pearson(human, predicted, weights[exact])
    return found


def _centred_pearson(human: Array, predicted: Array, weights: Array) -> Array:
    """`pearson` with each resample centred before the products are formed."""
    total = weights.sum(axis=1, keepdims=True)
    x = human - _ratio((weights @ human)[:, None], total)
    y = predicted - _ratio((weights @ predicted)[:, None], total)
    spread = np.sqrt((weights * x * x).sum(axis=1) * (weights * y * y).sum(axis=1))
    # Rounding gives a constant a tiny spread, so variation is determined from the values themselves.
    varies = [(_tie_counts(values, weights.T)[0] > 0).sum(axis=0) > 1 for values in (human, predicted)]
    return np.clip(_ratio((weights * x * y).sum(axis=1), np.where(varies[0] & varies[1], spread, 0.0)), -1.0, 1.0)


def pair_sum(weights: Array, rows: Callable[[slice], NDArray[Any]]) -> Array:
    """Sum a symmetric N x N matrix over the unordered pairs of clips of each resample.

    `rows(part)` returns rows of the matrix: whole numbers in [-1, 1] with a zero diagonal. Clips that are always drawn
    together, such as those of one singer, are added up into one row and column first, so that the cost grows with the
    number of singers and not of clips.

    Shape: weights [B, N] -> [B].

    >>> one_for_every_pair = 1.0 - np.eye(3)
    >>> pair_sum(np.array([[1.0, 1, 1], [2, 2, 0]]), lambda part: one_for_every_pair[part])
    array([3., 4.])
    """
    first, group = drawn_together(weights)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(first)))
    largest = np.diff(starts, append=len(group)).max() * weights.sum(axis=1).max()
    kind = np.float32 if largest < EXACT_IN_FLOAT32 else np.float64  # float32 takes half the time
    sums = np.zeros((len(first), len(first)), dtype=kind)
    for start in range(0, weights.shape[1], PAIR_ROWS):
        part = slice(start, start + PAIR_ROWS)
        np.add.at(sums, group[part], np.add.reduceat(rows(part)[:, order].astype(kind), starts, axis=1))
    drawn = weights[:, first]
    below: NDArray[Any] = drawn.astype(kind) @ sums
    return np.asarray((drawn * below).sum(axis=1) / 2, dtype=np.float64)


def drawn_together(weights: Array) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Group clips with equal weights: one clip of each group, and the group of each clip.

    Shape: weights [B, N] -> [S], [N].


    >>> first, group = drawn_together(np.array([[1.0, 2, 1], [0, 3, 0]]))
    >>> first[group].tolist()
    [0, 1, 0]
    """
    columns = np.ascontiguousarray(weights.T, dtype=np.int32)  # counts are small whole numbers
    marks = columns.view(np.dtype((np.void, columns.itemsize * columns.shape[1])))[:, 0]
    _, first, group = np.unique(marks, return_index=True, return_inverse=True)
    return first, group


def _signs(values: Array, part: slice) -> Array:
    """Sign of the difference of every two clips. Shape: [N] -> [part, N]."""
    return np.sign(values[part, None] - values[None, :])


def _concordance(human: Array, predicted: Array, weights: Array) -> Array:
    """Concordant minus discordant pairs; a pair tied on either side counts 0."""
    return pair_sum(weights, lambda part: _signs(human, part) * _signs(predicted, part))


def _untied_pairs(values: Array, weights: Array) -> Array:
    """Number of pairs of each resample with two different values."""
    total, ties = weights.sum(axis=1), _tie_counts(values, weights.T)[0]
    pairs: Array = (total * (total - 1) - (ties * (ties - 1)).sum(axis=0)) / 2
    return pairs


@_metric
def kendall(human: Array, predicted: Array, weights: Array) -> Array:
    """Compute Kendall's tau-b; NaN with fewer than 2 distinct values on either side.

    >>> round(kendall([60, 70, 80, 90], [1, 2, 4, 3]), 3)
    0.667
    """
    untied = np.sqrt(_untied_pairs(human, weights) * _untied_pairs(predicted, weights))
    return np.clip(_ratio(_concordance(human, predicted, weights), untied), -1.0, 1.0)


@_metric
def pairwise_accuracy(human: Array, predicted: Array, weights: Array) -> Array:
    """Compute the share of pairs in the right order; NaN where no two clips differ in score.

    Pairs tied in score are excluded; pairs tied in prediction count half.

    >>> pairwise_accuracy([60, 70, 70], [1, 2, 3]), pairwise_accuracy([60, 70], [5, 5])
    (1.0, 0.5)
    """
    pairs = _untied_pairs(human, weights)
    return _ratio((pairs + _concordance(human, predicted, weights)) / 2, pairs)


def pairwise_accuracy_in_gap(low: float, high: float) -> Metric:
    """Return `pairwise_accuracy` restricted to pairs whose scores differ by more than `low` and at most `high` points.

    >>> pairwise_accuracy_in_gap(2, 5)([60, 61, 64], [1, 3, 2])
    0.5
    """

    def inside(human: Array, part: slice) -> NDArray[np.bool_]:
        gap = np.round(np.abs(human[part, None] - human[None, :]), GAP_DECIMALS)
        return (gap > low) & (gap <= high)

    def core(human: Array, predicted: Array, weights: Array) -> Array:
        pairs = pair_sum(weights, lambda part: inside(human, part))
        ordered = pair_sum(weights, lambda part: inside(human, part) * _signs(human, part) * _signs(predicted, part))
        return _ratio((pairs + ordered) / 2, pairs)

    return _metric(core)


def gap_name(low: float, high: float) -> str:
    """Name a range of score differences, as reports and evaluation.json do.

    >>> [gap_name(*gap) for gap in GAPS]
    ['0-2', '2-5', '5-10', 'over 10']
    """
    return f"over {low:g}" if np.isinf(high) else f"{low:g}-{high:g}"


@_metric
def mae(human: Array, predicted: Array, weights: Array) -> Array:
    """Compute the mean absolute error in score points; NaN without clips."""
    return _ratio(weights @ np.abs(predicted - human), weights.sum(axis=1))


@_metric
def rmse(human: Array, predicted: Array, weights: Array) -> Array:
    """Compute the root mean squared error in score points; NaN without clips."""
    return np.sqrt(_ratio(weights @ (predicted - human) ** 2, weights.sum(axis=1)))


@_metric
def bias(human: Array, predicted: Array, weights: Array) -> Array:
    """Compute the mean of predicted minus human score in points: above 0 is too high. NaN without clips."""
    return _ratio(weights @ (predicted - human), weights.sum(axis=1))


def within_sources(sources: Sequence[str | None], inside: Metric = spearman) -> Metric:
    """Return a metric computed within each source and averaged over the sources, weighted by their clips.

    Sources where the metric is undefined are excluded. Any grouping of clips works, for example songs.
    """
    names = np.array(["" if source is None else source for source in sources], dtype=str)

    def core(human: Array, predicted: Array, weights: Array) -> Array:
        if len(names) != len(human):
            raise DataError(
                f"Within-source metric: {len(names)} sources for {len(human)} clips. Pass one source for each clip."
            )
        total, clips = np.zeros(len(weights)), np.zeros(len(weights))
        for name in np.unique(names):
            member = names == name
            value = inside(human[member], predicted[member], weights[:, member])
            drawn = np.where(np.isnan(value), 0.0, weights[:, member].sum(axis=1))
            total += drawn * np.nan_to_num(value)
            clips += drawn
        return _ratio(total, clips)

    return _metric(core)


def within_source_spearman(scores: ArrayLike, predictions: ArrayLike, sources: Sequence[str | None]) -> float:
    """Compute Spearman within each source, averaged over the sources weighted by their clips.

    Sources where it is undefined are excluded, and clips without a source form one of their own: with one source, or
    without sources, this is the overall Spearman. NaN where no source has a value.
    """
    return within_sources(sources)(scores, predictions)
