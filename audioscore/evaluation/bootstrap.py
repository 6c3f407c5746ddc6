"""Intervals by the cluster bootstrap: whole singers are resampled, because clips of one singer are not independent.

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13 (percentile interval); Davison and
Hinkley, Bootstrap Methods and their Application (1997), section 3.8 (resampling clusters whole).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from audioscore.errors import DataError, UsageError
from audioscore.evaluation.metrics import Metric

Counts = NDArray[np.int32]

FEW_CLUSTERS = 10  # below this a cluster bootstrap's 5 % is not 5 %
MOST_UNDEFINED = 0.5  # an interval from fewer than half of the resamples would be one of the lucky ones


@dataclass(frozen=True)
class Estimate:
    """A value and its interval. NaN where undefined; `undefined` resamples had no value and were left out.

    `no_interval` says why there is none, `method` how the interval was found where it is no percentile interval.
    """

    value: float
    lo: float
    hi: float
    undefined: int = 0
    no_interval: str | None = None
    method: str | None = None

    def as_dict(self, name: str = "value") -> dict[str, Any]:
        """For JSON, which has no NaN.

        >>> Estimate(0.5, math.nan, math.nan, no_interval="one singer").as_dict("delta")
        {'delta': 0.5, 'lo': None, 'hi': None, 'no_interval': 'one singer'}
        """
        told = {"undefined_resamples": self.undefined, "no_interval": self.no_interval, "method": self.method}
        figures = {name: or_none(self.value), "lo": or_none(self.lo), "hi": or_none(self.hi)}
        return figures | {key: value for key, value in told.items() if value}


def or_none(value: float) -> float | None:
    """A float for JSON: None where it is undefined."""
    return None if math.isnan(value) else float(value)


def singer_clusters(singers: Sequence[str | None]) -> NDArray[np.int64]:
    """Cluster number of each clip: one a singer, and one for each clip whose singer is unknown. Shape: [N] -> [N].

    >>> singer_clusters(["b", None, "a", "b", None]).tolist()
    [0, 1, 2, 0, 3]
    """
    numbers: dict[str | int, int] = {}
    keys: list[str | int] = [position if singer is None else singer for position, singer in enumerate(singers)]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def cluster_counts(clusters: ArrayLike, resamples: int, seed: int) -> Counts:
    """How often each clip is drawn when whole clusters are drawn with replacement, as many as there are.

    Shape: clusters [N] -> [resamples, N]. The same clusters, resamples and seed give the same draws.
    Raises DataError for fewer than 2 clusters, whose resamples would all be alike and the interval falsely empty.
    """
    if resamples < 1:
        raise UsageError(f"resamples must be 1 or more; got {resamples}.")
    distinct, member = np.unique(np.asarray(clusters), return_inverse=True)
    if len(distinct) < 2:
        raise DataError(f"A cluster bootstrap needs at least 2 clusters (singers); got {len(distinct)}.")
    size = len(distinct)
    drawn = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=resamples)
    return drawn.astype(np.int32)[:, member]


def interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval of resampled values [B]; undefined (NaN) resamples are ignored, see `undefined_resamples`.

    >>> lo, hi = interval(range(1001), 0.9)
    >>> round(lo, 6), round(hi, 6)
    (50.0, 950.0)
    """
    if not 0 < confidence < 1:
        raise UsageError(f"confidence must lie between 0 and 1, such as 0.95; got {confidence}.")
    sample = np.asarray(values, dtype=np.float64)
    defined = sample[~np.isnan(sample)]
    if not len(defined):
        return math.nan, math.nan
    lo, hi = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(lo), float(hi)


def undefined_resamples(values: ArrayLike) -> int:
    """How many resampled values are undefined (NaN)."""
    return int(np.isnan(np.asarray(values, dtype=np.float64)).sum())


def estimate_from(value: float, values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """A value with the percentile interval of its resamples [B]; without one, and with the reason, where there are
    none, the value is undefined, or most of its resamples are.
    """
    undefined, resamples = undefined_resamples(values), np.size(values)
    if not resamples:
        reason = "nothing was resampled"
    elif math.isnan(value):
        reason = "the figure is undefined on these clips"
    elif undefined > MOST_UNDEFINED * resamples:
        reason = f"the figure is undefined in {undefined} of {resamples} resamples"
    else:
        return Estimate(value, *interval(values, confidence), undefined)
    return Estimate(value, math.nan, math.nan, undefined, reason)


def estimate(
    metric: Metric, scores: ArrayLike, predictions: ArrayLike, counts: ArrayLike, confidence: float = 0.95
) -> Estimate:
    """A metric on the clips as they are, with its interval over the resamples.

    Shape: scores [N], predictions [N], counts [B, N]; with B = 0 the value stands without an interval.
    """
    return estimate_from(metric(scores, predictions), metric(scores, predictions, counts), confidence)


def paired_difference(
    metric: Metric,
    scores: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    counts: ArrayLike,
    confidence: float = 0.95,
) -> Estimate:
    """metric(first) - metric(second) for two models on the same clips, with both redrawn in the same resamples.

    Shape: scores, first, second [N], counts [B, N].
    """
    value = metric(scores, first) - metric(scores, second)
    return estimate_from(value, metric(scores, first, counts) - metric(scores, second, counts), confidence)


def two_sided_p(differences: ArrayLike) -> float:
    """Two-sided p value of no difference, from the resampled differences [B] of two models.

    Twice the smaller share of resamples at or beyond zero, with one resample added to each side, so that it is never 0
    and at most 1; it is below alpha about when the 1 - alpha percentile interval leaves zero out. Undefined (NaN)
    resamples are left out; NaN where none is defined.
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
    """p values of one family, adjusted so that the chance of any false finding among them stays below alpha.

    An undefined (NaN) value stays undefined and is no member of the family.
    Source: Holm, A simple sequentially rejective multiple test procedure (1979).

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    family = sorted((value, name) for name, value in p_values.items() if not math.isnan(value))
    adjusted, largest = dict.fromkeys(p_values, math.nan), 0.0
    for place, (value, name) in enumerate(family):
        largest = max(largest, min(1.0, (len(family) - place) * value))
        adjusted[name] = largest
    return adjusted


def wilson(share: float, draws: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share seen in independent draws: it is never empty, not even at 0 or 1.

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
