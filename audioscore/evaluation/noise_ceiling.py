"""How well a perfect judge could do, given how far human raters agree on these clips.

The figures are those of `data.agreement.rater_agreement`, on every resample of the clips at once.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from audioscore.data.agreement import MIN_TOGETHER, rater_agreement
from audioscore.data.clips import Clip
from audioscore.evaluation.bootstrap import Counts
from audioscore.evaluation.estimates import HeldOut, Resampled
from audioscore.evaluation.metrics import Array, pearson
from audioscore.evaluation.predictions import ClipKey

Ratings = Mapping[ClipKey, Sequence[float | None]]  # a score a rater, None where that rater gave none

NO_RATERS = "no test clip was scored by two raters or more"
DISAGREE = "the raters do not agree at all"
TOO_FEW = f"no two raters have {MIN_TOGETHER} clips in common"


def ratings_of(clips: Iterable[Clip]) -> dict[ClipKey, tuple[float | None, ...]]:
    """What single raters said of each clip that any rated, as the index carries it.

    >>> ratings_of([Clip("a.wav", 85.0, raters=(80.0, 90.0), sha256="00"), Clip("b.wav", 70.0, sha256="01")])
    {('00', 'a.wav'): (80.0, 90.0)}
    """
    return {(str(clip.sha256), clip.audio_file): clip.raters for clip in clips if clip.raters}


def noise_ceiling(ratings: Ratings, test: HeldOut) -> dict[str, Any]:
    """The correlation with the labels that no model can be expected to exceed, overall and in each source.

    Meant for labels that are the mean of their raters: the square root of that mean's reliability. A ceiling is not
    that of another set of clips: inside a source scores differ less, and it is lower there. Within source it is the
    mean over sources by their rated clips, as the Spearman within source is.
    """
    table = _table(ratings, test)
    rated = np.flatnonzero((~np.isnan(table)).sum(axis=1) >= 2)
    sources = np.array(test.sources)
    parts = {name: rated[sources[rated] == name] for name in np.unique(sources[rated])}
    inside = {str(name): _resampled(table[member], test.counts[:, member]) for name, member in parts.items()}
    weights = {str(name): test.counts[:, member].sum(axis=1) for name, member in parts.items()}
    agreement = rater_agreement(list(map(_row, table[rated])))
    return {
        "clips": len(rated),
        "raters": 0 if agreement is None else agreement.raters,
        "per_clip": None if agreement is None else agreement.per_clip,
        "pairwise_r": None if agreement is None else agreement.pairwise_r,
        "overall": _told(_resampled(table[rated], test.counts[:, rated]), rated, test),
        "within_source": _told(_weighted(inside, {n: len(m) for n, m in parts.items()}, weights), rated, test),
        "per_source": {
            str(name): {"clips": len(member), **_told(inside[str(name)], member, test)}
            for name, member in parts.items()
        },
    }


def ceilings(table: Array, counts: Counts) -> Array:
    """Ceiling of each resample: 0 where raters agree no better than chance, NaN where too few clips are in common.

    The mean Pearson correlation of two raters, weighted by the clips both scored, raised to that of the mean of as many
    raters as a clip has (Spearman and Brown, 1910), and its square root. Shape: table [N, R] with NaN for no score,
    counts [B, N] -> [B].
    """
    given = ~np.isnan(table)
    total = weight = np.zeros(len(counts))
    for first, second in itertools.combinations(range(table.shape[1]), 2):
        both = given[:, first] & given[:, second]
        drawn = counts[:, both]
        common = drawn.sum(axis=1).astype(np.float64)
        r = pearson(table[both, first], table[both, second], drawn)
        common = np.where((common >= MIN_TOGETHER) & ~np.isnan(r), common, 0.0)
        total, weight = total + common * np.nan_to_num(r), weight + common
    per_clip, mean = np.full(len(counts), np.nan), np.full(len(counts), np.nan)
    np.divide(counts @ given.sum(axis=1), counts.sum(axis=1), out=per_clip, where=counts.sum(axis=1) > 0)
    np.divide(total, weight, out=mean, where=weight > 0)
    mean = np.maximum(mean, 0.0)
    return np.asarray(np.sqrt(per_clip * mean / (1 + (per_clip - 1) * mean)), dtype=np.float64)


def _resampled(table: Array, counts: Counts) -> Resampled:
    whole = ceilings(table, np.ones((1, len(table)), dtype=np.int32))
    return Resampled(float(whole[0]), ceilings(table, counts))


def _weighted(inside: Mapping[str, Resampled], clips: Mapping[str, int], drawn: Mapping[str, Array]) -> Resampled:
    """Mean over sources by their clips, on the clips as they are and on each resample; undefined ones are left out."""
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
    return Resampled(plain / plain_weight if plain_weight else math.nan, means)


def _told(found: Resampled, member: Any, test: HeldOut) -> dict[str, Any]:
    figure = test.judge(found, member, TOO_FEW if len(member) else NO_RATERS).as_dict()
    return figure | {"note": DISAGREE} if found.value == 0 else figure


def _table(ratings: Ratings, test: HeldOut) -> Array:
    """Scores of every test clip by every rater. Shape: [N, R], NaN where a rater gave none."""
    rows = [tuple(ratings.get(key, ())) for key in test.keys]
    table = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
    for place, row in enumerate(rows):
        table[place, : len(row)] = [math.nan if score is None else score for score in row]
    return table


def _row(scores: Array) -> list[float | None]:
    return [None if math.isnan(score) else float(score) for score in scores]
