"""Confidence intervals by the cluster bootstrap, and the test split with its resamples.

Whole singers are resampled, because the clips of one singer are not independent.

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13 (percentile interval); Davison and
Hinkley, Bootstrap Methods and their Application (1997), section 3.8 (cluster resampling).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from audioscore.errors import DataError, UsageError
from audioscore.evaluation.metrics import Array, Metric
from audioscore.evaluation.predictions import ClipKey, Prediction

Counts = NDArray[np.int32]

FEW_CLUSTERS = 10  # with fewer, a 95 % interval of the cluster bootstrap is too narrow
MAX_UNDEFINED = 0.5  # with a larger share of undefined resamples there is no interval
# A percentile interval over k singers is at most as wide as the range of the singers, which excludes the median of all
# singers with probability 1 / 2^(k - 1): 1/2 for two singers, 1/16 for five.
SLICE_SINGERS = 5
NO_SOURCE = "unknown"  # the name that clips without a source are listed under
ALL = slice(None)
WILSON = "Wilson interval, n = singers"


@dataclass(frozen=True)
class Estimate:
    """A value and its confidence interval; NaN where undefined.

    `undefined` resamples had no value and were excluded. `no_interval` is the reason for a missing interval; `method`
    names the kind of interval unless it is the percentile interval.
    """

    value: float
    lo: float
    hi: float
    undefined: int = 0
    no_interval: str | None = None
    method: str | None = None

    def as_dict(self, name: str = "value") -> dict[str, Any]:
        """Return the JSON form, with None for NaN.

        >>> Estimate(0.5, math.nan, math.nan, no_interval="one singer").as_dict("delta")
        {'delta': 0.5, 'lo': None, 'hi': None, 'no_interval': 'one singer'}
        """
        notes = {"undefined_resamples": self.undefined, "no_interval": self.no_interval, "method": self.method}
        figures = {name: or_none(self.value), "lo": or_none(self.lo), "hi": or_none(self.hi)}
        return figures | {key: value for key, value in notes.items() if value}


def or_none(value: float) -> float | None:
    """Convert a float for JSON: NaN becomes None."""
    return None if math.isnan(value) else float(value)


def singer_clusters(singers: Sequence[str | None]) -> NDArray[np.int64]:
    """Number the clusters: one for each singer, and one for each clip without a singer. Shape: [N] -> [N].

    >>> singer_clusters(["b", None, "a", "b", None]).tolist()
    [0, 1, 2, 0, 3]
    """
    clusters: dict[str | int, int] = {}
    keys: list[str | int] = [position if singer is None else singer for position, singer in enumerate(singers)]
    return np.array([clusters.setdefault(key, len(clusters)) for key in keys], dtype=np.int64)


def cluster_counts(clusters: ArrayLike, resamples: int, seed: int) -> Counts:
    """Draw whole clusters with replacement, as many as there are; return how often each clip was drawn.

    The same clusters, resamples and seed give the same draws.

    Shape: clusters [N] -> [resamples, N].
    Raises: DataError for fewer than 2 clusters, whose resamples would all be equal.
    """
    if resamples < 1:
        raise UsageError(f"resamples: {resamples} is less than 1. Pass 1 or more.")
    distinct, member = np.unique(np.asarray(clusters), return_inverse=True)
    if len(distinct) < 2:
        raise DataError(f"Cluster bootstrap: 2 clusters (singers) are needed, got {len(distinct)}. Add singers.")
    size = len(distinct)
    drawn = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=resamples)
    return drawn.astype(np.int32)[:, member]


def interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Compute the percentile interval of resampled values [B], ignoring undefined (NaN) ones.

    >>> lo, hi = interval(range(1001), 0.9)
    >>> round(lo, 6), round(hi, 6)
    (50.0, 950.0)
    """
    if not 0 < confidence < 1:
        raise UsageError(f"confidence: expected a value between 0 and 1, such as 0.95; got {confidence}.")
    sample = np.asarray(values, dtype=np.float64)
    defined = sample[~np.isnan(sample)]
    if not len(defined):
        return math.nan, math.nan
    lo, hi = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(lo), float(hi)


def undefined_resamples(values: ArrayLike) -> int:
    """Count the undefined (NaN) resampled values."""
    return int(np.isnan(np.asarray(values, dtype=np.float64)).sum())


def estimate_from(value: float, values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Return a value with the percentile interval of its resamples [B].

    Without resamples, or where the value or most resamples are undefined, the estimate has a reason instead.
    """
    undefined, resamples = undefined_resamples(values), np.size(values)
    if not resamples:
        reason = "no resamples"
    elif math.isnan(value):
        reason = "undefined on these clips"
    elif undefined > MAX_UNDEFINED * resamples:
        reason = f"undefined in {undefined} of {resamples} resamples"
    else:
        return Estimate(value, *interval(values, confidence), undefined)
    return Estimate(value, math.nan, math.nan, undefined, reason)


def estimate(
    metric: Metric, scores: ArrayLike, predictions: ArrayLike, counts: ArrayLike, confidence: float = 0.95
) -> Estimate:
    """Compute a metric on all clips, with its interval over the resamples.

    Shape: scores [N], predictions [N], counts [B, N]; with B = 0 the estimate has no interval.
    """
    return estimate_from(metric(scores, predictions), metric(scores, predictions, counts), confidence)


def paired_difference(
    metric: Metric, scores: ArrayLike, first: ArrayLike, second: ArrayLike, counts: ArrayLike, confidence: float = 0.95
) -> Estimate:
    """Estimate metric(first) - metric(second) for two models on the same clips, with shared resamples.

    Shape: scores, first, second [N], counts [B, N].
    """
    value = metric(scores, first) - metric(scores, second)
    return estimate_from(value, metric(scores, first, counts) - metric(scores, second, counts), confidence)


def two_sided_p(differences: ArrayLike) -> float:
    """Compute the two-sided p value of no difference, from the resampled differences [B] of two models.

    Twice the smaller share of resamples at or beyond zero, with one resample added to each side so that p is never 0.
    It agrees with the percentile interval: p < alpha where the 1 - alpha interval excludes zero. Undefined (NaN)
    resamples are excluded; NaN where no resample is defined.

    Source: Davison and Hinkley, Bootstrap Methods and their Application (1997), section 4.2.

    >>> two_sided_p([0.1] * 19), two_sided_p([-0.1, 0.1, 0.0])
    (0.1, 1.0)
    """
    sample = np.asarray(differences, dtype=np.float64)
    sample = sample[~np.isnan(sample)]
    if not len(sample):
        return math.nan
    beyond = min((sample <= 0).sum(), (sample >= 0).sum())
    return min(1.0, 2.0 * float(beyond + 1) / (len(sample) + 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust the p values of one family so that the probability of any false positive stays below alpha.

    Undefined (NaN) values stay undefined and do not count in the family.

    Source: Holm, A simple sequentially rejective multiple test procedure (1979).

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    family = sorted((value, name) for name, value in p_values.items() if not math.isnan(value))
    adjusted, largest = dict.fromkeys(p_values, math.nan), 0.0
    for rank, (value, name) in enumerate(family):
        largest = max(largest, min(1.0, (len(family) - rank) * value))
        adjusted[name] = largest
    return adjusted


def wilson(share: float, draws: int, confidence: float = 0.95) -> tuple[float, float]:
    """Compute Wilson's score interval of a proportion in independent draws; it has a width even at 0 and 1.

    Source: Wilson, Probable inference, the law of succession, and statistical inference (1927).

    >>> lo, hi = wilson(1.0, 10)
    >>> round(lo, 3), hi
    (0.722, 1.0)
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = share + z * z / (2 * draws)
    half = z * math.sqrt(share * (1 - share) / draws + z * z / (4 * draws * draws))
    total = 1 + z * z / draws
    return max(0.0, (centre - half) / total), min(1.0, (centre + half) / total)


@dataclass(frozen=True)
class ResampledValue:
    """A metric on all clips, and on each resample [B]."""

    value: float
    values: Array


@dataclass(frozen=True)
class ResampledClips:
    """The test clips, in one order for every plan, with their cluster-bootstrap resamples.

    A cluster is a singer, or a clip whose singer is unknown. All plans share the resamples, so differences are paired.
    In the methods, `member` selects clips (default all) and `undefined` is the reason to report without a value.

    Shape: all [N], counts [B, N].
    """

    keys: list[ClipKey]
    scores: Array
    sources: list[str]
    singers: list[str | None]
    songs: list[str | None]
    clusters: NDArray[np.int64]
    counts: Counts
    confidence: float

    def resampled(self, metric: Metric, predicted: Array) -> ResampledValue:
        """Compute a metric on all clips and on each resample."""
        return ResampledValue(metric(self.scores, predicted), metric(self.scores, predicted, self.counts))

    def estimate(self, metric: Metric, predicted: Array, member: Any = ALL, undefined: str | None = None) -> Estimate:
        """Compute a metric on the clips of `member`, with its interval."""
        scores, part, counts = self.scores[member], predicted[member], self.counts[:, member]
        return self.with_interval(ResampledValue(metric(scores, part), metric(scores, part, counts)), member, undefined)

    def with_interval(self, found: ResampledValue, member: Any = ALL, undefined: str | None = None) -> Estimate:
        """Return a resampled value as an estimate: with its interval, or the reason why it has none."""
        too_few = self._too_few(member)
        estimated = estimate_from(found.value, found.values[:0] if too_few else found.values, self.confidence)
        if math.isnan(estimated.value):
            return replace(estimated, no_interval=undefined or estimated.no_interval)
        return replace(estimated, no_interval=too_few) if too_few else estimated

    def mean(self, values: Array, member: Any = ALL) -> Estimate:
        """Compute the mean of `values` [N] over the clips of `member`."""
        counts, part = self.counts[:, member], values[member].astype(np.float64)
        total = counts.sum(axis=1)
        means = np.full(len(counts), np.nan)
        np.divide(counts @ part, total, out=means, where=total > 0)
        mean = float(part.mean()) if len(part) else math.nan
        return self.with_interval(ResampledValue(mean, means), member, "no clips")

    def share(self, hits: NDArray[np.bool_], member: Any = ALL) -> Estimate:
        """Compute the share of the clips of `member` that are hits [N].

        A share of 0 or 1, or of few singers, has Wilson's interval: its resamples are all equal or too few.
        """
        found, singers = self.mean(hits.astype(np.float64), member), self.singer_count(member)
        if singers > 1 and (found.lo == found.hi or math.isnan(found.lo)):
            return with_wilson(found, singers, self.confidence)
        return found

    def singer_count(self, member: Any = ALL) -> int:
        """Count the clusters of these clips."""
        return len(np.unique(self.clusters[member]))

    def _too_few(self, member: Any) -> str | None:
        """Return why these clips are too few for an interval, or None. For all clips, two singers are enough."""
        clips, singers = len(self.scores[member]), self.singer_count(member)
        if singers > 1:
            return None if singers == self.singer_count() else few_singers(singers)
        return "only one clip" if clips == 1 else f"all {clips} clips are of one singer"


def few_singers(singers: int) -> str | None:
    """Return why this number of singers is too small for an interval, or None where it is not.

    >>> few_singers(4), few_singers(5)
    ('only 4 singers; an interval needs 5', None)
    """
    if singers >= SLICE_SINGERS:
        return None
    return f"only {singers} singer{'' if singers == 1 else 's'}; an interval needs {SLICE_SINGERS}"


def with_wilson(share: Estimate, singers: int, confidence: float) -> Estimate:
    """Give a share Wilson's interval with one draw for each singer; used where all resamples are equal."""
    lo, hi = wilson(share.value, singers, confidence)
    return replace(share, lo=lo, hi=hi, no_interval=None, method=WILSON)


def resample_test_split(
    rows: Sequence[Prediction], resamples: int, confidence: float, seed: int
) -> tuple[ResampledClips, list[str]]:
    """Draw the resamples of the test clips `rows`; return them with the warnings a reader needs."""
    clusters = singer_clusters([row.singer_id for row in rows])
    singers = len(np.unique(clusters))
    unknown = sum(row.singer_id is None for row in rows)
    warnings = []
    if unknown:
        warnings.append(f"{unknown} of {len(rows)} test clips have no singer; each counts as a separate singer.")
    if singers < 2:
        warnings.append("All test clips are of one singer: there are no intervals.")
        counts = np.zeros((0, len(rows)), dtype=np.int32)
    else:
        counts = cluster_counts(clusters, resamples, seed)
        if singers < FEW_CLUSTERS:
            warnings.append(f"Only {singers} test singers: the intervals are rough and probably too narrow.")
    clips = ResampledClips(
        keys=[row.clip for row in rows],
        scores=np.array([row.human for row in rows]),
        sources=[row.source or NO_SOURCE for row in rows],
        singers=[row.singer_id for row in rows],
        songs=[row.song_id for row in rows],
        clusters=clusters,
        counts=counts,
        confidence=confidence,
    )
    return clips, warnings
