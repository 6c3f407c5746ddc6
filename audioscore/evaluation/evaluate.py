"""Every figure of an evaluation, computed from the predictions table: what each plan reaches, and which is better."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from audioscore.errors import UsageError
from audioscore.evaluation.bootstrap import Estimate, holm, or_none, two_sided_p
from audioscore.evaluation.controls import control_figures
from audioscore.evaluation.estimates import NO_SOURCE, HeldOut, Resampled, hold_out
from audioscore.evaluation.gate.slices import NO_ORDER, at_the_top, by_singer, by_song, per_band, per_source
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
from audioscore.evaluation.noise_ceiling import Ratings, noise_ceiling
from audioscore.evaluation.predictions import ClipKey, Prediction, Runs, align_runs

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


BASELINE, HYBRID = "baseline", "hybrid"


def compare_plans(ranks: Mapping[str, Ranks], test: HeldOut) -> dict[str, Any] | None:
    """Spearman(hybrid) - Spearman(baseline) on the same clips, overall and, nested, `within_source`.

    Overall, the recording domain hides what the voice adds. None unless both plans were evaluated.
    """
    if BASELINE not in ranks or HYBRID not in ranks:
        return None
    overall, within = (_estimate(_difference(ranks[HYBRID][name], ranks[BASELINE][name]), test) for name in RANKS)
    return {**overall.as_dict("delta"), "within_source": within.as_dict("delta")}


def compare_variants(ranks: Mapping[str, Ranks], reference: str, test: HeldOut) -> dict[str, Any]:
    """Every other plan minus the reference, with a p value of its own and one for all of them together.

    The p values of the overall and the within-source Spearman are two families: Holm's correction is made in each, over
    all the plans compared, controls included. `reference` must not have been chosen by the test clips. Raises
    UsageError where it was not evaluated.
    """
    if reference not in ranks:
        raise UsageError(f"The reference plan {reference} was not evaluated; got {', '.join(ranks)}.")
    others = [plan for plan in ranks if plan != reference]
    compared: dict[str, dict[str, Any]] = {plan: {} for plan in others}
    for name in RANKS:
        differences = {plan: _difference(ranks[plan][name], ranks[reference][name]) for plan in others}
        p_values = {plan: two_sided_p(found.values) for plan, found in differences.items()}
        adjusted = holm(p_values)
        for plan, found in differences.items():
            compared[plan][name] = {
                **_estimate(found, test).as_dict("delta"),
                "p": or_none(p_values[plan]),
                "p_holm": or_none(adjusted[plan]),
            }
    return {"reference": reference, "family": len(others), "compared": compared}


def default_reference(ranks: Mapping[str, Ranks]) -> str:
    """What plans are compared with where no winner on validation is named: plan A, or the first plan."""
    return BASELINE if BASELINE in ranks else next(iter(ranks))


def _difference(first: Resampled, second: Resampled) -> Resampled:
    return Resampled(first.value - second.value, first.values - second.values)


def _estimate(difference: Resampled, test: HeldOut) -> Estimate:
    return test.judge(difference, undefined="the Spearman of one of the two plans is undefined")


__all__ = ["BASELINE", "HYBRID", "NO_SOURCE", "evaluate"]


def evaluate(
    predictions: Sequence[Prediction],
    controls: Mapping[str, Mapping[str, float]],
    representative: Mapping[str, int],
    *,
    ratings: Ratings | None = None,
    reference: str | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """All figures of an evaluation, as JSON-able values; None is a figure that is undefined. docs/evaluation.md lists
    them.

    `controls` holds, for each name, a value by sha256; `representative` the seed that stands for each plan; `ratings`
    what single raters said of the test clips; `reference` the plan that the others are compared with, which validation
    has chosen (default: baseline). Intervals resample singers whole; a clip without a singer is a cluster of its own.
    Raises DataError where a clip has no score, is listed twice, or the plans and seeds do not share the same test clips
    and scores.
    """
    runs = align_runs(predictions, representative)
    first = next(iter(representative.items()))
    rows = [row for _, row in sorted(runs[first]["test"].items())]
    test, warnings = hold_out(rows, resamples, confidence, seed)
    beside, said = control_figures(controls, predictions, test)
    scores = {plan: predicted_scores(runs, plan, chosen, test) for plan, chosen in representative.items()}
    ranks = {plan: resampled_ranks(predicted, test) for plan, predicted in scores.items()}
    return {
        "confidence": confidence,
        "resamples": resamples,
        "seed": seed,
        "clusters": "clip" if all(row.singer_id is None for row in rows) else "singer",
        "counts": _counts(rows),
        "plans": {plan: plan_figures(runs, plan, chosen, ranks[plan], test) for plan, chosen in representative.items()},
        "controls": beside,
        "comparison": compare_plans(ranks, test),
        "variants": compare_variants(ranks, reference or default_reference(ranks), test),
        "noise_ceiling": noise_ceiling(ratings or {}, test),
        "warnings": [*warnings, *said],
    }


def _counts(rows: Sequence[Prediction]) -> dict[str, int]:
    """Clips, singers and songs of the test split, and how many clips have no known singer."""
    return {
        "clips": len(rows),
        "singers": len({row.singer_id for row in rows} - {None}),
        "songs": len({row.song_id for row in rows} - {None}),
        "without_singer": sum(row.singer_id is None for row in rows),
    }
