"""Calibration: map raw outputs to the 0-100 scale of the labels, with a conformal interval.

The map is monotone, so calibration never changes a ranking. It is fitted on validation clips only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from audioscore.errors import DataError
from audioscore.units import SCORE_MAX, SCORE_MIN

Array = NDArray[np.float64]

KNOTS = 12  # at most; fewer for few clips, so that each knot is the mean of several clips
CLIPS_PER_KNOT = 5
MIN_CLIPS = 8
FOLDS = 5
COVERAGE = 0.9


@dataclass(frozen=True)
class Calibration:
    """Piecewise-linear, strictly increasing map through (raw, score) knots, with the half-width of its interval.

    It is stored in `scorer.json`, so that a scorer's scores stay on the scale of the labels it was calibrated on.
    """

    raw: tuple[float, ...]
    score: tuple[float, ...]
    half_width: float
    coverage: float = COVERAGE

    def apply(self, raw: ArrayLike) -> Array:
        """Map raw outputs to scores. Beyond the outer knots the map continues with the mean slope, within 0-100.

        Shape: [N] -> [N], float64.
        """
        x, knots, values = np.asarray(raw, dtype=np.float64), np.array(self.raw), np.array(self.score)
        slope = (values[-1] - values[0]) / (knots[-1] - knots[0])
        inside = np.interp(x, knots, values)
        outside = np.minimum(x - knots[0], 0.0) * slope + np.maximum(x - knots[-1], 0.0) * slope
        scores: Array = np.clip(inside + outside, SCORE_MIN, SCORE_MAX)
        return scores

    def interval(self, scores: ArrayLike) -> tuple[Array, Array]:
        """Return the lower and upper end of the split-conformal interval around scores.

        Shape: [N] -> [N], [N].
        """
        centre = np.asarray(scores, dtype=np.float64)
        return (
            np.clip(centre - self.half_width, SCORE_MIN, SCORE_MAX),
            np.clip(centre + self.half_width, SCORE_MIN, SCORE_MAX),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "raw": list(self.raw),
            "score": list(self.score),
            "half_width": self.half_width,
            "coverage": self.coverage,
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Calibration":
        return Calibration(tuple(value["raw"]), tuple(value["score"]), value["half_width"], value["coverage"])


def fit_calibration(
    raw: ArrayLike, scores: ArrayLike, clusters: Sequence[str], coverage: float = COVERAGE
) -> Calibration:
    """Fit the map and its interval on validation clips.

    The half-width of the interval is the conformal quantile of cross-validated residuals: each clip is predicted by a
    map that was fitted without the clip's cluster (singer). In-sample residuals would be too small.

    Shape: raw [N], scores [N], clusters N names.
    Raises: DataError for fewer than MIN_CLIPS clips or for equal scores.
    """
    x, y = np.asarray(raw, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if len(x) < MIN_CLIPS or np.ptp(y) == 0:
        raise DataError(
            f"calibration: needs at least {MIN_CLIPS} validation clips with different scores; got {len(x)} clips, "
            f"{len(np.unique(y))} different scores. Add clips or increase split.val."
        )
    knots, values = _fit_map(x, y)
    names, fold_of = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    n_folds = min(FOLDS, len(names))
    residuals = np.abs(y - Calibration(tuple(knots), tuple(values), 0.0).apply(x))
    for number in range(n_folds) if n_folds > 1 else ():
        held_out = fold_of % n_folds == number
        if len(np.unique(y[~held_out])) > 1 and (~held_out).sum() >= MIN_CLIPS // 2:
            own_knots, own_values = _fit_map(x[~held_out], y[~held_out])
            fitted = Calibration(tuple(own_knots), tuple(own_values), 0.0)
            residuals[held_out] = np.abs(y[held_out] - fitted.apply(x[held_out]))
    rank = min(int(np.ceil((len(x) + 1) * coverage)), len(x))
    return Calibration(
        tuple(map(float, knots)), tuple(map(float, values)), float(np.sort(residuals)[rank - 1]), coverage
    )


def _fit_map(x: Array, y: Array) -> tuple[Array, Array]:
    """Knots at quantiles of the raw outputs, with isotonic values and a small slope that prevents ties."""
    order = np.argsort(x, kind="stable")
    count = int(np.clip(len(x) // CLIPS_PER_KNOT, 2, KNOTS))
    groups = [part for part in np.array_split(order, count) if len(part)]
    knots = np.array([x[part].mean() for part in groups])
    values = isotonic(np.array([y[part].mean() for part in groups]), np.array([len(part) for part in groups]))
    keep = np.concatenate([[True], np.diff(knots) > 1e-9])
    knots, values = knots[keep], values[keep]
    if len(knots) < 2:  # the outputs are constant: every score is the mean
        return np.array([x.mean() - 0.5, x.mean() + 0.5]), np.array([y.mean() - 1e-6, y.mean() + 1e-6])
    ramp = (knots - knots[0]) / (knots[-1] - knots[0])
    spread = max(float(values[-1] - values[0]), 1e-3)
    return knots, values + (ramp - 0.5) * 0.02 * spread


def isotonic(values: ArrayLike, weights: ArrayLike) -> Array:
    """Compute the closest non-decreasing sequence in weighted least squares (pool-adjacent-violators).

    Shape: values [N], weights [N] -> [N].

    >>> isotonic([1.0, 3.0, 2.0], [1, 1, 1]).tolist()
    [1.0, 2.5, 2.5]
    """
    from scipy.optimize import isotonic_regression

    return np.asarray(isotonic_regression(np.asarray(values, float), weights=np.asarray(weights, float)).x)
