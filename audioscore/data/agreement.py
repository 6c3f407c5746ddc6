"""Agreement of human raters, and the noise ceiling: the highest correlation that a model can be expected to reach."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_COMMON_CLIPS = 3  # clips that two raters must both have scored for a correlation


@dataclass(frozen=True)
class Agreement:
    """Agreement over `clips` recordings with at least two scores by `raters` raters, `per_clip` scores on average.

    `pairwise_r`: mean Pearson correlation of two raters, weighted by the clips that they share. `reliability`: that of
    the mean of `per_clip` raters, by the Spearman-Brown formula. `ceiling`: its square root, the correlation of the
    true scores with the mean scores. `icc_single` and `icc_mean`: ICC(2,1) and ICC(2,k), absolute agreement, over the
    `complete` recordings that every rater scored. Undefined figures are None.
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
        """Return the figures by name."""
        return asdict(self)


def rater_agreement(ratings: Sequence[Sequence[float | None]]) -> Agreement | None:
    """Compute the agreement of raters; None if no recording was scored by two of them.

    The result limits what a model can reach on these labels, independent of its architecture.

    Args:
        ratings: One row per recording and one column per rater, None for a missing score; rows may be shorter.

    Source: Shrout and Fleiss, Intraclass correlations, 1979 (ICC); Spearman 1910 and Brown 1910 (reliability).

    >>> found = rater_agreement([(80, 70), (70, 75), (90, 80), (60, 65)])
    >>> round(found.pairwise_r, 3), round(found.reliability, 3), round(found.ceiling, 3)
    (0.8, 0.889, 0.943)
    """
    width = max((len(row) for row in ratings), default=0)
    table = np.full((len(ratings), width), np.nan)
    for index, row in enumerate(ratings):
        table[index, : len(row)] = [np.nan if score is None else score for score in row]
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
    """Describe the agreement in one line for a report.

    >>> describe_agreement(Agreement(90, 5, 5.0, 0.171, 0.508, 0.713, 90, None, None))
    '5 raters on 90 clips: pairwise r 0.17; a model can reach a correlation of at most 0.71 with these scores'
    """
    counts = f"{agreement.raters} raters on {agreement.clips} clips"
    if agreement.pairwise_r is None:
        return f"{counts}: too few clips in common to measure their agreement"
    parts = [f"pairwise r {agreement.pairwise_r:.2f}"]
    if agreement.icc_single is not None:
        parts.append(f"ICC {agreement.icc_single:.2f} for one, {agreement.icc_mean:.2f} for their mean")
    if agreement.ceiling is not None:
        parts.append(f"a model can reach a correlation of at most {agreement.ceiling:.2f} with these scores")
    else:
        parts.append("the raters do not agree, so a model cannot learn from these scores")
    return f"{counts}: {'; '.join(parts)}"


def _mean_correlation(table: NDArray[np.float64]) -> float | None:
    """Mean of the pairwise Pearson correlations, weighted by the clips that each pair shares."""
    total = weight = 0.0
    for first, second in itertools.combinations(table.T, 2):
        both = ~np.isnan(first) & ~np.isnan(second)
        if both.sum() < MIN_COMMON_CLIPS or np.ptp(first[both]) == 0 or np.ptp(second[both]) == 0:
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
    if n < MIN_COMMON_CLIPS or k < 2:
        return None, None
    grand = table.mean()
    rows = k * ((table.mean(axis=1) - grand) ** 2).sum() / (n - 1)
    columns = n * ((table.mean(axis=0) - grand) ** 2).sum() / (k - 1)
    residual = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + grand
    error = (residual**2).sum() / ((n - 1) * (k - 1))
    single = rows + (k - 1) * error + k * (columns - error) / n
    mean = rows + (columns - error) / n
    if single <= 0 or mean <= 0:
        return None, None  # all scores are equal
    return float((rows - error) / single), float((rows - error) / mean)
