"""From a raw ranking output to the 0-100 scale of the labels, and how far off it may be.

Monotone: calibration never changes an order. Fitted on validation clips only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from audioscore.errors import DataError
from audioscore.units import SCORE_MAX, SCORE_MIN

Array = NDArray[np.float64]

KNOTS = 12  # at most; fewer clips get fewer, so that a knot always rests on several clips
CLIPS_PER_KNOT = 5
MIN_CLIPS = 8
FOLDS = 5
COVERAGE = 0.9


@dataclass(frozen=True)
class Calibration:
    """Piecewise-linear, strictly increasing map through (raw, score) knots, with the half-width of its interval."""

    raw: tuple[float, ...]
    score: tuple[float, ...]
    half_width: float
    coverage: float = COVERAGE

    def apply(self, raw: ArrayLike) -> Array:
        """Scores for raw outputs; beyond the outer knots the map goes on at the mean slope, within 0-100.

        Shape: [N] -> [N], float64.
        """
        x, knots, values = np.asarray(raw, dtype=np.float64), np.array(self.raw), np.array(self.score)
        slope = (values[-1] - values[0]) / (knots[-1] - knots[0])
        inside = np.interp(x, knots, values)
        outside = np.minimum(x - knots[0], 0.0) * slope + np.maximum(x - knots[-1], 0.0) * slope
        scores: Array = np.clip(inside + outside, SCORE_MIN, SCORE_MAX)
        return scores

    def interval(self, scores: ArrayLike) -> tuple[Array, Array]:
        """Lower and upper end of the split-conformal interval around scores. Shape: [N] -> [N], [N]."""
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

    The interval's half-width is the conformal quantile of residuals of clips whose whole cluster (singer) was left
    out of the map that predicted them: residuals of the map's own clips would be too small.

    Shape: raw [N], scores [N], clusters N names.
    """
    x, y = np.asarray(raw, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if len(x) < MIN_CLIPS or np.ptp(y) == 0:
        raise DataError(
            f"calibration needs at least {MIN_CLIPS} validation clips with different scores; got {len(x)} clips, "
            f"{len(np.unique(y))} different scores. Add clips or enlarge split.val."
        )
    knots, values = _fit_map(x, y)
    names, fold_of = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    folds = min(FOLDS, len(names))
    residuals = np.abs(y - Calibration(tuple(knots), tuple(values), 0.0).apply(x))
    for fold in range(folds) if folds > 1 else ():
        held = fold_of % folds == fold
        if len(np.unique(y[~held])) > 1 and (~held).sum() >= MIN_CLIPS // 2:
            out_knots, out_values = _fit_map(x[~held], y[~held])
            out = Calibration(tuple(out_knots), tuple(out_values), 0.0)
            residuals[held] = np.abs(y[held] - out.apply(x[held]))
    rank = min(int(np.ceil((len(x) + 1) * coverage)), len(x))
    return Calibration(
        tuple(map(float, knots)), tuple(map(float, values)), float(np.sort(residuals)[rank - 1]), coverage
    )


def _fit_map(x: Array, y: Array) -> tuple[Array, Array]:
    """Knots at quantiles of the raw outputs, isotonic values there, and a small slope so that no two tie."""
    order = np.argsort(x, kind="stable")
    count = int(np.clip(len(x) // CLIPS_PER_KNOT, 2, KNOTS))
    groups = [part for part in np.array_split(order, count) if len(part)]
    knots = np.array([x[part].mean() for part in groups])
    values = isotonic(np.array([y[part].mean() for part in groups]), np.array([len(part) for part in groups]))
    keep = np.concatenate([[True], np.diff(knots) > 1e-9])
    knots, values = knots[keep], values[keep]
    if len(knots) < 2:  # a constant model: nothing to map, every score is the mean
        return np.array([x.mean() - 0.5, x.mean() + 0.5]), np.array([y.mean() - 1e-6, y.mean() + 1e-6])
    ramp = (knots - knots[0]) / (knots[-1] - knots[0])
    spread = max(float(values[-1] - values[0]), 1e-3)
    return knots, values + (ramp - 0.5) * 0.02 * spread


def isotonic(values: ArrayLike, weights: ArrayLike) -> Array:
    """Closest non-decreasing sequence in weighted least squares (pool adjacent violators).

    Shape: values [N], weights [N] -> [N].

    >>> isotonic([1.0, 3.0, 2.0], [1, 1, 1]).tolist()
    [1.0, 2.5, 2.5]
    """
    from scipy.optimize import isotonic_regression

    return np.asarray(isotonic_regression(np.asarray(values, float), weights=np.asarray(weights, float)).x)
