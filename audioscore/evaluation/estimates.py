"""The test split with its resamples: what every figure of an evaluation is estimated on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audioscore.evaluation.bootstrap import (
    FEW_CLUSTERS,
    Counts,
    Estimate,
    cluster_counts,
    estimate_from,
    singer_clusters,
    wilson,
)
from audioscore.evaluation.metrics import Array, Metric
from audioscore.evaluation.predictions import ClipKey, Prediction

NO_SOURCE = "unknown"  # what a clip without a source is listed under
ALL = slice(None)
# A percentile interval over k singers is at most as wide as from the lowest to the highest of them, which leaves the
# middle of all singers out in 1 case of 2^(k - 1): 1 of 2 for two singers, 1 of 16 for five.
SLICE_SINGERS = 5
WILSON = "Wilson interval, one draw a singer"


@dataclass(frozen=True)
class Resampled:
    """A figure on the clips as they are, and on each resample [B]."""

    value: float
    values: Array


@dataclass(frozen=True)
class HeldOut:
    """The test split, in one order for every plan, and its resamples, which draw whole clusters.

    Shapes: [N], counts [B, N]. A cluster is a singer, or a clip whose singer is unknown.
    """

    keys: list[ClipKey]
    scores: Array
    sources: list[str]
    singers: list[str | None]
    songs: list[str | None]
    clusters: NDArray[np.int64]
    counts: Counts
    confidence: float

    def resampled(self, metric: Metric, predicted: Array) -> Resampled:
        """A metric over all clips, with every resample's value."""
        return Resampled(metric(self.scores, predicted), metric(self.scores, predicted, self.counts))

    def estimate(self, metric: Metric, predicted: Array, member: Any = ALL, undefined: str | None = None) -> Estimate:
        """A metric over the clips of `member` (default all), with its interval; `undefined` says when it has none."""
        scores, part, counts = self.scores[member], predicted[member], self.counts[:, member]
        return self.judge(Resampled(metric(scores, part), metric(scores, part, counts)), member, undefined)

    def judge(self, found: Resampled, member: Any = ALL, undefined: str | None = None) -> Estimate:
        """The estimate of a resampled figure of these clips, and in words why it has no interval, where it has none."""
        unsure = self._too_few(member)
        made = estimate_from(found.value, found.values[:0] if unsure else found.values, self.confidence)
        if math.isnan(made.value):
            return replace(made, no_interval=undefined or made.no_interval)
        return replace(made, no_interval=unsure) if unsure else made

    def mean(self, values: Array, member: Any = ALL) -> Estimate:
        """Mean of a value of each clip [N] over the clips of `member`."""
        counts, part = self.counts[:, member], values[member].astype(np.float64)
        total = counts.sum(axis=1)
        means = np.full(len(counts), np.nan)
        np.divide(counts @ part, total, out=means, where=total > 0)
        return self.judge(Resampled(float(part.mean()) if len(part) else math.nan, means), member, "there is no clip")

    def share(self, hits: NDArray[np.bool_], member: Any = ALL) -> Estimate:
        """Share of the clips of `member` that are hits [N].

        Where it is 0 or 1, or of few singers, resamples cannot say how sure that is: Wilson's interval does.
        """
        found, singers = self.mean(hits.astype(np.float64), member), self.singer_count(member)
        if singers > 1 and (found.lo == found.hi or math.isnan(found.lo)):
            return with_wilson(found, singers, self.confidence)
        return found

    def singer_count(self, member: Any = ALL) -> int:
        """How many clusters these clips are of."""
        return len(np.unique(self.clusters[member]))

    def _too_few(self, member: Any) -> str | None:
        """Why these clips are too few for an interval; None where they are not. All clips need two singers."""
        clips, singers = len(self.scores[member]), self.singer_count(member)
        if singers > 1:
            return None if singers == self.singer_count() else few_singers(singers)
        return "it rests on one clip" if clips == 1 else f"all {clips} clips are by one singer"


def few_singers(singers: int) -> str | None:
    """Why so many singers are too few for an interval; None where they are not.

    >>> few_singers(4), few_singers(5)
    ('it rests on 4 singers, and an interval on 5 or more', None)
    """
    if singers >= SLICE_SINGERS:
        return None
    return f"it rests on {singers} singer{'' if singers == 1 else 's'}, and an interval on {SLICE_SINGERS} or more"


def with_wilson(share: Estimate, singers: int, confidence: float) -> Estimate:
    """A share with Wilson's interval, one draw a singer, where every resample is alike and says nothing."""
    lo, hi = wilson(share.value, singers, confidence)
    return replace(share, lo=lo, hi=hi, no_interval=None, method=WILSON)


def hold_out(rows: Sequence[Prediction], resamples: int, confidence: float, seed: int) -> tuple[HeldOut, list[str]]:
    """The test split with its resamples, and what a reader must know of them."""
    clusters = singer_clusters([row.singer_id for row in rows])
    number = len(np.unique(clusters))
    unknown = sum(row.singer_id is None for row in rows)
    warnings = []
    if unknown:
        warnings.append(f"{unknown} of {len(rows)} test clips have no singer; each counts as a singer of its own.")
    if number < 2:
        warnings.append("All test clips are by one singer: there are no intervals.")
        counts = np.zeros((0, len(rows)), dtype=np.int32)
    else:
        counts = cluster_counts(clusters, resamples, seed)
        if number < FEW_CLUSTERS:
            warnings.append(f"Only {number} test singers: the intervals are rough, and likely too narrow.")
    test = HeldOut(
        keys=[row.clip for row in rows],
        scores=np.array([row.human for row in rows]),
        sources=[row.source or NO_SOURCE for row in rows],
        singers=[row.singer_id for row in rows],
        songs=[row.song_id for row in rows],
        clusters=clusters,
        counts=counts,
        confidence=confidence,
    )
    return test, warnings
