"""How surprising a difference would be by chance alone, when several are looked at together."""

import math
from collections.abc import Mapping
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike


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
