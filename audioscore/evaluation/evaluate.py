"""Compute all metrics of an evaluation (evaluation.json) from the predictions table, and compare the plans."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from audioscore.errors import UsageError
from audioscore.evaluation.bootstrap import (
    Estimate,
    ResampledClips,
    ResampledValue,
    holm,
    or_none,
    resample_test_split,
    two_sided_p,
)
from audioscore.evaluation.controls import evaluate_controls
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
from audioscore.evaluation.slices import NO_ORDER, at_the_top, by_singer, by_song, per_band, per_source

BASELINE, HYBRID = "baseline", "hybrid"
METRICS: Mapping[str, Metric] = {
    "spearman": spearman,
    "pairwise_accuracy": pairwise_accuracy,
    "kendall": kendall,
    "pearson": pearson,
    "mae": mae,
    "rmse": rmse,
    "bias": bias,
}
UNDEFINED = {"pairwise_accuracy": "no two clips differ in human score"}  # reasons other than NO_ORDER
WITHIN = "spearman_within_source"
RANKS = ("spearman", WITHIN)  # the metrics that plans are compared by
BINS = 10  # at most; fewer clips get fewer
CLIPS_PER_BIN = 5

Ranks = Mapping[str, ResampledValue]  # metric of RANKS -> value and resamples


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
    """Compute the document of evaluation.json; docs/evaluation.md describes its keys. None is an undefined value.

    Args:
        controls: control -> sha256 -> value.
        representative: plan -> the seed that represents it.
        ratings: scores of the single raters for each test clip.
        reference: the plan that the others are compared with, chosen on held-out clips (default: baseline).

    Raises: DataError where a clip has no score or is listed twice, or the runs differ in test clips or scores.
    """
    runs = align_runs(predictions, representative)
    first = next(iter(representative.items()))
    rows = [row for _, row in sorted(runs[first]["test"].items())]
    test, warnings = resample_test_split(rows, resamples, confidence, seed)
    control_metrics, control_warnings = evaluate_controls(controls, predictions, test)
    scores = {plan: predicted_scores(runs, plan, chosen, test) for plan, chosen in representative.items()}
    ranks = {plan: resampled_ranks(predicted, test) for plan, predicted in scores.items()}
    return {
        "confidence": confidence,
        "resamples": resamples,
        "seed": seed,
        "clusters": "clip" if all(row.singer_id is None for row in rows) else "singer",
        "counts": _counts(rows),
        "plans": {plan: plan_metrics(runs, plan, chosen, ranks[plan], test) for plan, chosen in representative.items()},
        "controls": control_metrics,
        "comparison": compare_plans(ranks, test),
        "variants": compare_variants(ranks, reference or default_reference(ranks), test),
        "noise_ceiling": noise_ceiling(ratings or {}, test),
        "warnings": [*warnings, *control_warnings],
    }


def _counts(rows: Sequence[Prediction]) -> dict[str, int]:
    """Count clips, singers and songs of the test split, and the clips without a singer."""
    return {
        "clips": len(rows),
        "singers": len({row.singer_id for row in rows} - {None}),
        "songs": len({row.song_id for row in rows} - {None}),
        "without_singer": sum(row.singer_id is None for row in rows),
    }


def calibration_curve(predicted: Array, test: ResampledClips) -> list[dict[str, Any]]:
    """Compute the mean predicted and mean human score of bins of equal size, by predicted score, lowest first.

    At most 10 bins of at least 5 clips, the same in every resample. The model is calibrated where the interval of
    `human` contains `predicted`.
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


def interval_coverage(rows: Sequence[Prediction], test: ResampledClips) -> dict[str, Any]:
    """Compute the coverage (share of human scores inside the prediction interval) and the mean width in points.

    `rows` are the test clips of one run, in the order of `test`.
    """
    bounds = np.array([[row.lo, row.hi] for row in rows], dtype=np.float64)  # (N, 2), NaN for None
    given = np.flatnonzero(np.isfinite(bounds).all(axis=1))
    inside = (bounds[:, 0] <= test.scores) & (test.scores <= bounds[:, 1])
    found = test.share(inside, given).as_dict("share")
    if not len(given):
        found["no_interval"] = "the model predicts no intervals"
    width = float((bounds[given, 1] - bounds[given, 0]).mean()) if len(given) else math.nan
    return {**found, "clips": len(given), "mean_width": or_none(width)}


def predicted_scores(runs: Runs, plan: str, seed: int, test: ResampledClips) -> Array:
    """Return the calibrated predictions of one run, in the order of `test`. Shape: [N]."""
    clips = runs[plan, seed]["test"]
    return np.array([clips[key].predicted for key in test.keys])


def resampled_ranks(predicted: Array, test: ResampledClips) -> dict[str, ResampledValue]:
    """Compute Spearman overall and within source, on all clips and on each resample."""
    metrics = (spearman, within_sources(test.sources))
    return {name: test.resampled(metric, predicted) for name, metric in zip(RANKS, metrics, strict=True)}


def plan_metrics(runs: Runs, plan: str, chosen: int, ranks: Ranks, test: ResampledClips) -> dict[str, Any]:
    """Compute the metrics and slices of a plan's representative run, and the spread over its seeds."""
    rows = [runs[plan, chosen]["test"][key] for key in test.keys]
    predicted = np.array([row.predicted for row in rows])
    overall = {name: _estimated(name, predicted, ranks, test, within=False) for name in METRICS}
    within = {name: _estimated(name, predicted, ranks, test, within=True) for name in METRICS}
    gaps = {
        gap_name(*gap): test.estimate(
            pairwise_accuracy_in_gap(*gap), predicted, undefined="no pairs with this score difference"
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


def _estimated(name: str, predicted: Array, ranks: Ranks, test: ResampledClips, *, within: bool) -> Estimate:
    """Estimate a metric of METRICS, overall or within sources; Spearman was resampled before."""
    reason = UNDEFINED.get(name, NO_ORDER)
    undefined = f"in every source: {reason}" if within else reason
    if name == "spearman":
        return test.with_interval(ranks[WITHIN if within else name], undefined=undefined)
    metric = within_sources(test.sources, METRICS[name]) if within else METRICS[name]
    return test.estimate(metric, predicted, undefined=undefined)


def _per_seed(runs: Runs, plan: str) -> list[dict[str, Any]]:
    """Compute test and validation Spearman of every seed of a plan, without intervals."""

    def value(clips: Mapping[ClipKey, Prediction]) -> float | None:
        rows = list(clips.values())
        return or_none(spearman([row.human for row in rows], [row.predicted for row in rows]))

    return [
        {"seed": seed, "test_spearman": value(splits["test"]), "val_spearman": value(splits["val"])}
        for (name, seed), splits in sorted(runs.items())
        if name == plan
    ]


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Compute mean, sample standard deviation and range over training seeds.

    It measures the variation from training; the intervals measure the variation from the choice of test singers.

    >>> _spread([0.5, 0.7, None])["mean"], _spread([0.5])["sd"]
    (0.6, None)
    """
    defined = [value for value in values if value is not None]
    return {
        "seeds": len(defined),
        "mean": math.fsum(defined) / len(defined) if defined else None,
        "sd": float(np.std(defined, ddof=1)) if len(defined) > 1 else None,
        "min": min(defined, default=None),
        "max": max(defined, default=None),
        "no_interval": "spread over training seeds"
        + ("" if len(defined) > 1 else f": {len(defined)} of {len(values)} seeds have a value"),
    }


def compare_plans(ranks: Mapping[str, Ranks], test: ResampledClips) -> dict[str, Any] | None:
    """Compare hybrid with baseline: difference in Spearman overall and, nested, `within_source`.

    None unless both plans were evaluated.
    """
    if BASELINE not in ranks or HYBRID not in ranks:
        return None
    overall, within = (_estimate(_difference(ranks[HYBRID][name], ranks[BASELINE][name]), test) for name in RANKS)
    return {**overall.as_dict("delta"), "within_source": within.as_dict("delta")}


def compare_variants(ranks: Mapping[str, Ranks], reference: str, test: ResampledClips) -> dict[str, Any]:
    """Compare every other plan with the reference: difference, p value and Holm-corrected p value.

    Overall and within-source Spearman are separate families; each family is all compared plans, controls included.
    `reference` must not have been chosen on the test clips.

    Raises: UsageError where the reference was not evaluated.
    """
    if reference not in ranks:
        raise UsageError(f"Reference plan {reference}: not evaluated. Choose one of {', '.join(ranks)}.")
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
    """Return the reference without a winner on validation: the baseline, or the first plan."""
    return BASELINE if BASELINE in ranks else next(iter(ranks))


def _difference(first: ResampledValue, second: ResampledValue) -> ResampledValue:
    return ResampledValue(first.value - second.value, first.values - second.values)


def _estimate(difference: ResampledValue, test: ResampledClips) -> Estimate:
    return test.with_interval(difference, undefined="the Spearman of one of the two plans is undefined")
