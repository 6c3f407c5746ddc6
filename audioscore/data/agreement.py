"""How far human raters agree, and the correlation that no model can be expected to exceed because of it."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_TOGETHER = 3  # clips that two raters must both have scored before their correlation means anything


@dataclass(frozen=True)
class Agreement:
    """Agreement over `clips` recordings that at least two of `raters` raters scored, `per_clip` of them on average.

    `pairwise_r`: mean Pearson correlation of two raters, over pairs with enough clips in common, weighted by them.
    `reliability`: of the mean of `per_clip` raters, by the Spearman-Brown formula. `ceiling`: its square root, the
    correlation with these scores that a perfect judge would reach. `icc_single` and `icc_mean`: ICC(2,1) and ICC(2,k),
    absolute agreement, over the `complete` recordings that every rater scored. None where not defined.
    """

    clips: int
    raters: int
    per_clip: float
    pairwise_r: float | None
    reliability: float | None
    ceiling: float | None
    complete: int
    icc_single: float | None
    icc_mean: float | None

    def to_json(self) -> dict[str, Any]:
        """The figures by name."""
        return asdict(self)


def rater_agreement(ratings: Sequence[Sequence[float | None]]) -> Agreement | None:
    """Agreement of raters; None where no recording was scored by two of them.

    `ratings` has a row a recording and a place a rater, None where that rater gave no score; rows may be short.
    Source: Shrout and Fleiss, Intraclass correlations, 1979 (ICC); Spearman 1910 and Brown 1910 (reliability).

    >>> found = rater_agreement([(80, 70), (70, 75), (90, 80), (60, 65)])
    >>> round(found.pairwise_r, 3), round(found.reliability, 3), round(found.ceiling, 3)
    (0.8, 0.889, 0.943)
    """
    width = max((len(row) for row in ratings), default=0)
    table = np.full((len(ratings), width), np.nan)
    for place, row in enumerate(ratings):
        table[place, : len(row)] = [np.nan if score is None else score for score in row]
    table = table[(~np.isnan(table)).sum(axis=1) >= 2]
    table = table[:, (~np.isnan(table)).any(axis=0)]
    if not table.size:
        return None
    per_clip = float((~np.isnan(table)).sum(axis=1).mean())
    correlation = _mean_correlation(table)
    reliability = None
    if correlation is not None and correlation > 0:
        reliability = per_clip * correlation / (1 + (per_clip - 1) * correlation)
    complete = table[~np.isnan(table).any(axis=1)]
    single, mean = _icc(complete)
    return Agreement(
        clips=len(table),
        raters=table.shape[1],
        per_clip=per_clip,
        pairwise_r=correlation,
        reliability=reliability,
        ceiling=None if reliability is None else math.sqrt(reliability),
        complete=len(complete),
        icc_single=single,
        icc_mean=mean,
    )


def describe_agreement(agreement: Agreement) -> str:
    """One line for people.

    >>> describe_agreement(Agreement(90, 5, 5.0, 0.171, 0.508, 0.713, 90, None, None))
    '5 raters on 90 clips: two of them agree at r 0.17; no model can correlate with these scores above 0.71'
    """
    parts = [f"{agreement.raters} raters on {agreement.clips} clips"]
    if agreement.pairwise_r is None:
        return f"{parts[0]}: too few clips in common to tell how far they agree"
    told = [f"two of them agree at r {agreement.pairwise_r:.2f}"]
    if agreement.icc_single is not None:
        told.append(f"ICC {agreement.icc_single:.2f} for one, {agreement.icc_mean:.2f} for their mean")
    if agreement.ceiling is not None:
        told.append(f"no model can correlate with these scores above {agreement.ceiling:.2f}")
    else:
        told.append("these scores do not agree at all, and there is nothing to learn from them")
    return f"{parts[0]}: {'; '.join(told)}"


def _mean_correlation(table: NDArray[np.float64]) -> float | None:
    """Mean of the raters' pairwise Pearson correlations, weighted by the clips each pair has in common."""
    total = weight = 0.0
    for first, second in itertools.combinations(table.T, 2):
        both = ~np.isnan(first) & ~np.isnan(second)
        if both.sum() < MIN_TOGETHER or np.ptp(first[both]) == 0 or np.ptp(second[both]) == 0:
            continue
        common = float(both.sum())
        total += common * float(np.corrcoef(first[both], second[both])[0, 1])
        weight += common
    return total / weight if weight else None


def _icc(table: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """ICC(2,1) and ICC(2,k) from a two-way analysis of variance.

    Shape: table [n, k], without gaps.
    """
    n, k = table.shape
    if n < MIN_TOGETHER or k < 2:
        return None, None
    grand = table.mean()
    rows = k * ((table.mean(axis=1) - grand) ** 2).sum() / (n - 1)
    columns = n * ((table.mean(axis=0) - grand) ** 2).sum() / (k - 1)
    residual = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + grand
    error = (residual**2).sum() / ((n - 1) * (k - 1))
    single = rows + (k - 1) * error + k * (columns - error) / n
    mean = rows + (columns - error) / n
    if single <= 0 or mean <= 0:
        return None, None  # every score is the same
    return float((rows - error) / single), float((rows - error) / mean)
