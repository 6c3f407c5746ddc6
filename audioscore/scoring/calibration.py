"""Calibration: map raw outputs to the 0-100 scale of the labels, with a conformal interval.

The map is monotone, so calibration never changes a ranking. It is fitted on clips that the model was not trained on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
GRID = 33  # scores at which the width of the interval is stored
RATED = (50.0, 99.0)  # the usual scale of human raters; labels outside it are on 0 to 100
ANY = ""  # of `widths`: for recordings whose source is not known
SOURCE_CLIPS = 100  # from as many on, a source has its own quantile
PRIOR_CLIPS = 5.0  # weight of the mean error in the local one
OTHER_SOURCE = 0.2  # weight of a clip of another source
SAMPLE, BLOCK = 4000, 1000  # of calibration clips for the kernel, and of scores at once, at most


@dataclass(frozen=True)
class Calibration:
    """Piecewise-linear, strictly increasing map through (raw, score) knots, with the half-width of its interval.

    It is stored in `scorer.json`, so that a scorer's scores stay on the scale of the labels it was calibrated on.
    `half_width` is the mean one. `widths` has the half-widths at the scores `grid`, by source, and for any source;
    without them, the width is the same everywhere. Intervals end at the ends of `scale`.
    """

    raw: tuple[float, ...]
    score: tuple[float, ...]
    half_width: float
    coverage: float = COVERAGE
    grid: tuple[float, ...] = ()
    widths: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    scale: tuple[float, float] = (SCORE_MIN, SCORE_MAX)

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

    def interval(self, scores: ArrayLike, sources: Sequence[str | None] | None = None) -> tuple[Array, Array]:
        """Return the lower and upper end of the conformal interval around scores.

        A score outside the scale is an end of its own interval.

        Args:
            sources: The source of each clip, if it is known.
        Shape: [N] -> [N], [N].
        """
        centre = np.asarray(scores, dtype=np.float64)
        half = np.full(centre.shape, self.half_width)
        if self.grid:
            names = [ANY] * centre.size if sources is None else [one if one in self.widths else ANY for one in sources]
            for name in set(names):
                own = np.array([one == name for one in names])
                half[own] = np.interp(centre[own], self.grid, self.widths[name or ANY])
        low, high = self.scale
        return (
            np.minimum(np.clip(centre - half, low, high), centre),
            np.maximum(np.clip(centre + half, low, high), centre),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "raw": list(self.raw),
            "score": list(self.score),
            "half_width": self.half_width,
            "coverage": self.coverage,
            "grid": list(self.grid),
            "widths": {name: list(values) for name, values in self.widths.items()},
            "scale": list(self.scale),
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Calibration":
        """Restore what `to_json` wrote, also an earlier version without local widths."""
        widths = {name: tuple(values) for name, values in value.get("widths", {}).items()}
        low, high = value.get("scale", (SCORE_MIN, SCORE_MAX))
        return Calibration(
            tuple(value["raw"]), tuple(value["score"]), value["half_width"], value["coverage"],
            tuple(value.get("grid", ())), widths, (low, high),
        )  # fmt: skip


def fit_calibration(
    raw: ArrayLike,
    scores: ArrayLike,
    clusters: Sequence[str],
    sources: Sequence[str | None] | None = None,
    coverage: float = COVERAGE,
) -> Calibration:
    """Fit the map and its interval on clips that the model was not trained on.

    The half-width is a conformal quantile of cross-validated residuals: each clip is predicted by a map that was fitted
    without the clip's cluster (singer), since in-sample residuals would be too small. The residuals are normalised by
    the mean residual of clips with a similar predicted score and the same source, of other clusters, so that the
    interval is wide where errors are large. A source with SOURCE_CLIPS clips or more has its own quantile.

    Shape: raw [N], scores [N], clusters N names, sources N names.
    Raises: DataError for fewer than MIN_CLIPS clips or for equal scores.
    Source: Lei et al. 2018, Distribution-Free Predictive Inference for Regression, section 5.2 (locally weighted).
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
    predicted = Calibration(tuple(knots), tuple(values), 0.0).apply(x)
    for number in range(n_folds) if n_folds > 1 else ():
        held_out = fold_of % n_folds == number
        if len(np.unique(y[~held_out])) > 1 and (~held_out).sum() >= MIN_CLIPS // 2:
            own_knots, own_values = _fit_map(x[~held_out], y[~held_out])
            predicted[held_out] = Calibration(tuple(own_knots), tuple(own_values), 0.0).apply(x[held_out])
    errors = _LocalErrors(
        predicted, np.abs(y - predicted), fold_of, np.array([one or ANY for one in sources or [ANY] * len(x)])
    )
    grid = np.linspace(float(predicted.min()), float(predicted.max()), GRID)
    widths = {
        name: _quantile(errors, name, coverage) * errors.at(grid, name)
        for name in (ANY, *sorted(set(errors.sources) - {ANY}))
    }
    mean = float(np.mean(np.interp(predicted, grid, widths[ANY])))
    scale = RATED if RATED[0] <= y.min() and y.max() <= RATED[1] else (SCORE_MIN, SCORE_MAX)
    return Calibration(
        tuple(map(float, knots)), tuple(map(float, values)), mean, coverage, tuple(grid.tolist()),
        {name: tuple(found.tolist()) for name, found in widths.items()}, scale,
    )  # fmt: skip


@dataclass(frozen=True)
class _LocalErrors:
    """Absolute residuals of N clips by predicted score, cluster and source. Shape: all [N]."""

    predicted: Array
    residuals: Array
    clusters: NDArray[np.intp]
    sources: NDArray[np.str_]

    @property
    def bandwidth(self) -> float:
        """Standard deviation of the kernel, in points. Source: Silverman 1986, Density Estimation, section 3.4.2."""
        return max(1.5, 1.06 * float(self.predicted.std() * np.power(len(self.predicted), -0.2)))

    def at(self, scores: Array, source: str, clusters: NDArray[np.intp] | None = None) -> Array:
        """Return the local mean residual at predicted scores of a source, without the clips of the same clusters.

        Shape: scores [M], clusters [M] -> [M].
        """
        kept = (
            slice(None)
            if len(self.predicted) <= SAMPLE
            else np.linspace(0, len(self.predicted) - 1, SAMPLE).astype(int)
        )
        if len(scores) > BLOCK:
            parts = [slice(start, start + BLOCK) for start in range(0, len(scores), BLOCK)]
            own = [None if clusters is None else clusters[part] for part in parts]
            return np.concatenate([self.at(scores[part], source, one) for part, one in zip(parts, own, strict=True)])
        distance = (scores[:, None] - self.predicted[kept][None]) / self.bandwidth
        weights = np.exp(-0.5 * distance**2)
        if source != ANY:
            weights *= np.where(self.sources[kept] == source, 1.0, OTHER_SOURCE)[None]
        if clusters is not None:
            weights *= clusters[:, None] != self.clusters[kept][None]
        mean = max(float(self.residuals.mean()), 1e-9)
        found: Array = (weights @ self.residuals[kept] + PRIOR_CLIPS * mean) / (weights.sum(axis=1) + PRIOR_CLIPS)
        return found


def _quantile(errors: _LocalErrors, source: str, coverage: float) -> float:
    """Return the conformal quantile of normalised residuals, those of the source's own clips if there are enough."""
    own = errors.sources == source
    if source == ANY or own.sum() < SOURCE_CLIPS:
        own = np.ones(len(own), dtype=bool)
    local = np.empty(int(own.sum()))
    names = errors.sources[own]
    for name in np.unique(names) if source != ANY else [ANY]:
        member = names == name if source != ANY else slice(None)
        local[member] = errors.at(errors.predicted[own][member], name, errors.clusters[own][member])
    normalised = np.sort(errors.residuals[own] / local)
    rank = min(int(np.ceil((len(normalised) + 1) * coverage)), len(normalised))
    return float(normalised[rank - 1])


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
