"""One plan's figures on the test split: metrics, slices, calibration, and the spread of its training seeds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from audioscore.evaluation.bootstrap import Estimate, or_none
from audioscore.evaluation.calibration_figures import calibration_curve, interval_coverage
from audioscore.evaluation.estimates import HeldOut, Resampled
from audioscore.evaluation.gate.slices_part import NO_ORDER, at_the_top, by_singer, by_song, per_band, per_source
from audioscore.evaluation.metrics import (
    GAPS,
    Array,
    Metric,
    bias,
    gap_name,
    kendall,
    mae,
    pairwise_accuracy,
    pairwise_accuracy_in_gap,
    pearson,
    rmse,
    spearman,
    within_sources,
)
from audioscore.evaluation.predictions import Prediction
from audioscore.evaluation.runs import ClipKey, Runs

METRICS: Mapping[str, Metric] = {
    "spearman": spearman,
    "pairwise_accuracy": pairwise_accuracy,
    "kendall": kendall,
    "pearson": pearson,
    "mae": mae,
    "rmse": rmse,
    "bias": bias,
}
UNDEFINED = {"pairwise_accuracy": "no two clips differ in human score"}  # when, where it is not for want of an order
WITHIN = "spearman_within_source"
RANKS = ("spearman", WITHIN)  # what plans are compared by

Ranks = Mapping[str, Resampled]


def predicted_scores(runs: Runs, plan: str, seed: int, test: HeldOut) -> Array:
    """Calibrated predictions of one run, in the order of `test`. Shape: [N]."""
    clips = runs[plan, seed]["test"]
    return np.array([clips[key].predicted for key in test.keys])


def resampled_ranks(predicted: Array, test: HeldOut) -> dict[str, Resampled]:
    """Spearman overall and within source, with every resample's value: plans share the resamples, and are compared."""
    metrics = (spearman, within_sources(test.sources))
    return {name: test.resampled(metric, predicted) for name, metric in zip(RANKS, metrics, strict=True)}


def plan_figures(runs: Runs, plan: str, chosen: int, ranks: Ranks, test: HeldOut) -> dict[str, Any]:
    """Estimates and slices of the run that stands for a plan, and the spread over its seeds; None is undefined."""
    rows = [runs[plan, chosen]["test"][key] for key in test.keys]
    predicted = np.array([row.predicted for row in rows])
    overall = {name: _overall(name, predicted, ranks, test) for name in METRICS}
    within = {name: _within(name, predicted, ranks, test) for name in METRICS}
    gaps = {
        gap_name(*gap): test.estimate(
            pairwise_accuracy_in_gap(*gap), predicted, undefined="no two human scores are so far apart"
        )
        for gap in GAPS
    }
    headline = {"spearman": overall["spearman"], WITHIN: within["spearman"], **overall}
    undefined = {name: value.undefined for name, value in {**headline, **gaps}.items() if value.undefined}
    seeds = _per_seed(runs, plan)
    return {
        "seed": chosen,
        **{name: value.as_dict() for name, value in headline.items()},
        "within_source": {name: value.as_dict() for name, value in within.items()},
        "per_source": per_source(predicted, test),
        "pairwise_accuracy_by_gap": {name: value.as_dict() for name, value in gaps.items()},
        "at_or_above": at_the_top(predicted, test),
        "per_seed": seeds,
        "seed_spread": {name: _spread([entry[name] for entry in seeds]) for name in ("test_spearman", "val_spearman")},
        "per_band": per_band(predicted, test),
        "by_singer": by_singer(predicted, test),
        "by_song": by_song(predicted, test),
        "calibration_curve": calibration_curve(predicted, test),
        "coverage": interval_coverage(rows, test),
        "undefined_resamples": undefined,
    }


def _overall(name: str, predicted: Array, ranks: Ranks, test: HeldOut) -> Estimate:
    undefined = UNDEFINED.get(name, NO_ORDER)
    if name == "spearman":
        return test.judge(ranks[name], undefined=undefined)
    return test.estimate(METRICS[name], predicted, undefined=undefined)


def _within(name: str, predicted: Array, ranks: Ranks, test: HeldOut) -> Estimate:
    undefined = f"in every source: {UNDEFINED.get(name, NO_ORDER)}"
    if name == "spearman":
        return test.judge(ranks[WITHIN], undefined=undefined)
    return test.estimate(within_sources(test.sources, METRICS[name]), predicted, undefined=undefined)


def _per_seed(runs: Runs, plan: str) -> list[dict[str, Any]]:
    """Test and validation Spearman of every seed of a plan, without intervals: the spread of training itself."""

    def value(clips: Mapping[ClipKey, Prediction]) -> float | None:
        rows = list(clips.values())
        return or_none(spearman([row.human for row in rows], [row.predicted for row in rows]))

    return [
        {"seed": seed, "test_spearman": value(splits["test"]), "val_spearman": value(splits["val"])}
        for (name, seed), splits in sorted(runs.items())
        if name == plan
    ]


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean, standard deviation (of a sample) and range of a figure over training seeds.

    It says how much luck in training moves a plan; how much luck in test singers does is the intervals' matter.

    >>> _spread([0.5, 0.7, None])["mean"], _spread([0.5])["sd"]
    (0.6, None)
    """
    known = [value for value in values if value is not None]
    few = f"{len(known)} of {len(values)} seeds have a value" if len(known) < len(values) else f"{len(known)} seed"
    return {
        "seeds": len(known),
        "mean": math.fsum(known) / len(known) if known else None,
        "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "min": min(known, default=None),
        "max": max(known, default=None),
        "no_interval": "a spread over training seeds, not over singers"
        + ("" if len(known) > 1 else f"; none from {few}"),
    }
