"""Whether a predicted score means what people mean by it, and how often a predicted interval holds."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from audioscore.evaluation.bootstrap import or_none
from audioscore.evaluation.estimates import HeldOut
from audioscore.evaluation.metrics import Array
from audioscore.evaluation.predictions import Prediction

BINS = 10  # at most; fewer clips get fewer
CLIPS_PER_BIN = 5


def calibration_curve(predicted: Array, test: HeldOut) -> list[dict[str, Any]]:
    """Mean predicted and mean human score of equally full bins of predicted score, lowest first.

    As many bins as leave 5 clips in each, 10 at most; the bins stay as they are in every resample. Well calibrated
    means that the interval of `human` holds `predicted`.
    """
    order = np.argsort(predicted, kind="stable")
    parts = np.array_split(order, max(1, min(BINS, len(order) // CLIPS_PER_BIN)))
    return [
        {
            "clips": len(part),
            "predicted": float(predicted[part].mean()),
            "human": test.mean(test.scores, part).as_dict(),
        }
        for part in parts
    ]


def interval_coverage(rows: Sequence[Prediction], test: HeldOut) -> dict[str, Any]:
    """Share of the clips with a predicted interval whose human score lies in it, and the mean width in points.

    `rows` are one run's test clips, in the order of `test`.
    """
    bounds = np.array([[_or_nan(row.lo), _or_nan(row.hi)] for row in rows])  # (N, 2)
    given = np.flatnonzero(np.isfinite(bounds).all(axis=1))
    inside = (bounds[:, 0] <= test.scores) & (test.scores <= bounds[:, 1])
    found = test.share(inside, given).as_dict("share")
    if not len(given):
        found["no_interval"] = "the model predicts no intervals"
    width = float((bounds[given, 1] - bounds[given, 0]).mean()) if len(given) else math.nan
    return {**found, "clips": len(given), "mean_width": or_none(width)}


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
