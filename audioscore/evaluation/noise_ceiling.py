"""Noise ceiling: the correlation with the labels that a perfect model reaches, from the agreement of the raters.

The same quantities as in `data.agreement.rater_agreement`, computed for all bootstrap resamples at once.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from audioscore.data.agreement import MIN_COMMON_CLIPS, rater_agreement
from audioscore.data.clips import Clip
from audioscore.evaluation.bootstrap import Counts, ResampledClips, ResampledValue
from audioscore.evaluation.metrics import Array, pearson
from audioscore.evaluation.predictions import ClipKey

Ratings = Mapping[ClipKey, Sequence[float | None]]  # one score for each rater, None where missing

NO_RATERS = "no test clip has two raters"
DISAGREE = "the raters agree no better than chance"
TOO_FEW = f"no two raters have {MIN_COMMON_CLIPS} clips in common"


def ratings_of(clips: Iterable[Clip]) -> dict[ClipKey, tuple[float | None, ...]]:
    """Return the scores of the single raters for each clip that has any, from the index.

    >>> ratings_of([Clip("a.wav", 85.0, raters=(80.0, 90.0), sha256="00"), Clip("b.wav", 70.0, sha256="01")])
    {('00', 'a.wav'): (80.0, 90.0)}
    """
    return {(str(clip.sha256), clip.audio_file): clip.raters for clip in clips if clip.raters}


def noise_ceiling(ratings: Ratings, test: ResampledClips) -> dict[str, Any]:
    """Compute the correlation with the labels that no model can be expected to exceed, overall and for each source.

    It is the square root of the reliability of the mean of the raters, so labels should be that mean. It is lower
    within a source, where scores differ less. `within_source` is the mean over sources weighted by their rated clips,
    comparable with the within-source Spearman.
    """
    table = _table(ratings, test)
    rated = np.flatnonzero((~np.isnan(table)).sum(axis=1) >= 2)
    sources = np.array(test.sources)
    parts = {name: rated[sources[rated] == name] for name in np.unique(sources[rated])}
    inside = {str(name): _resampled(table[member], test.counts[:, member]) for name, member in parts.items()}
    weights = {str(name): test.counts[:, member].sum(axis=1) for name, member in parts.items()}
    agreement = rater_agreement(table[rated].tolist())
    return {
        "clips": len(rated),
        "raters": 0 if agreement is None else agreement.raters,
        "per_clip": None if agreement is None else agreement.per_clip,
        "pairwise_r": None if agreement is None else agreement.pairwise_r,
        "overall": _figure(_resampled(table[rated], test.counts[:, rated]), rated, test),
        "within_source": _figure(_weighted(inside, {n: len(m) for n, m in parts.items()}, weights), rated, test),
        "per_source": {
            str(name): {"clips": len(member), **_figure(inside[str(name)], member, test)}
            for name, member in parts.items()
        },
    }


def ceilings(table: Array, counts: Counts) -> Array:
    """Compute the ceiling of each resample: 0 where raters agree no better than chance, NaN with too few common clips.

    The mean Pearson correlation of two raters, weighted by common clips, is extrapolated to the mean of as many raters
    as a clip has (Spearman and Brown, 1910); the ceiling is its square root.

    Shape: table [N, R] with NaN for missing scores, counts [B, N] -> [B].
    """
    given = ~np.isnan(table)
    total = weight = np.zeros(len(counts))
    for first, second in itertools.combinations(range(table.shape[1]), 2):
        both = given[:, first] & given[:, second]
        drawn = counts[:, both]
        common = drawn.sum(axis=1).astype(np.float64)
        r = pearson(table[both, first], table[both, second], drawn)
        common = np.where((common >= MIN_COMMON_CLIPS) & ~np.isnan(r), common, 0.0)
        total, weight = total + common * np.nan_to_num(r), weight + common
    per_clip, mean = np.full(len(counts), np.nan), np.full(len(counts), np.nan)
    np.divide(counts @ given.sum(axis=1), counts.sum(axis=1), out=per_clip, where=counts.sum(axis=1) > 0)
    np.divide(total, weight, out=mean, where=weight > 0)
    mean = np.maximum(mean, 0.0)
    return np.asarray(np.sqrt(per_clip * mean / (1 + (per_clip - 1) * mean)), dtype=np.float64)


def _resampled(table: Array, counts: Counts) -> ResampledValue:
    whole = ceilings(table, np.ones((1, len(table)), dtype=np.int32))
    return ResampledValue(float(whole[0]), ceilings(table, counts))


def _weighted(
    inside: Mapping[str, ResampledValue], clips: Mapping[str, int], drawn: Mapping[str, Array]
) -> ResampledValue:
    """Average over sources weighted by their clips, on all clips and on each resample; undefined ones are excluded."""
    size = len(next(iter(drawn.values()), np.zeros(0)))
    total = weight = np.zeros(size)
    plain = plain_weight = 0.0
    for name, found in inside.items():
        share = np.where(np.isnan(found.values), 0.0, drawn[name])
        total, weight = total + share * np.nan_to_num(found.values), weight + share
        if not math.isnan(found.value):
            plain, plain_weight = plain + clips[name] * found.value, plain_weight + clips[name]
    means = np.full(size, np.nan)
    np.divide(total, weight, out=means, where=weight > 0)
    return ResampledValue(plain / plain_weight if plain_weight else math.nan, means)


def _figure(found: ResampledValue, member: Any, test: ResampledClips) -> dict[str, Any]:
    figure = test.with_interval(found, member, TOO_FEW if len(member) else NO_RATERS).as_dict()
    return figure | {"note": DISAGREE} if found.value == 0 else figure


def _table(ratings: Ratings, test: ResampledClips) -> Array:
    """Arrange the ratings of the test clips as a table. Shape: [N, R], NaN for missing scores."""
    rows = [tuple(ratings.get(key, ())) for key in test.keys]
    table = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
    for index, row in enumerate(rows):
        table[index, : len(row)] = np.array(row, dtype=np.float64)  # None becomes NaN
    return table
