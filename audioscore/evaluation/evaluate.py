"""Every figure of a report, computed from the predictions table: estimates with intervals, slices and controls."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from audioscore.errors import DataError, UsageError, shorten
from audioscore.evaluation.bootstrap import (
    FEW_CLUSTERS,
    Counts,
    Estimate,
    cluster_counts,
    estimate,
    or_none,
    paired_difference,
    singer_clusters,
)
from audioscore.evaluation.controls import source_means
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
from audioscore.evaluation.predictions import SPLITS, Prediction
from audioscore.units import band_of

BASELINE, HYBRID = "baseline", "hybrid"
NO_SOURCE = "unknown"  # what a clip without a source is listed under

ClipKey = tuple[str, str]  # sha256 and audio_file: one recording may be listed under two names
Runs = dict[tuple[str, int], dict[str, dict[ClipKey, Prediction]]]  # (plan, seed) -> split -> clip -> its row


@dataclass(frozen=True)
class HeldOut:
    """The test split, in one order for every plan, and its resamples. Shapes: [N], counts [B, N]."""

    keys: list[ClipKey]
    scores: Array
    sources: list[str]
    counts: Counts
    confidence: float

    def estimate(self, metric: Metric, predicted: Array, member: Any = slice(None)) -> Estimate:
        """A metric over the clips of `member` (default all), with its interval."""
        return estimate(metric, self.scores[member], predicted[member], self.counts[:, member], self.confidence)


def evaluate(
    predictions: Sequence[Prediction],
    controls: Mapping[str, Mapping[str, float]],
    representative: Mapping[str, int],
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """All figures of an evaluation, as JSON-able values; None is a figure that is undefined.

    `controls` holds, for each name, a value by sha256; `representative` the seed that stands for each plan. Intervals
    resample singers whole; a clip without a singer is a cluster of its own. Raises DataError where a clip has no
    score, is listed twice, or the plans and seeds do not share the same test clips and scores.
    """
    runs = _runs(predictions, representative)
    first = next(iter(representative.items()))
    rows = [row for _, row in sorted(runs[first]["test"].items())]
    test, clusters, warnings = _test_clips(rows, resamples, confidence, seed)
    means = source_means(predictions)
    if not means:
        warnings.append("No train or val predictions were given, so the source-only control is left out.")
    if "source" in controls:
        raise UsageError("A control may not be named source: that one is computed here. Rename it.")
    named = {**controls, "source": means} if means else {**controls}
    return {
        "confidence": confidence,
        "resamples": resamples,
        "seed": seed,
        "clusters": clusters,
        "counts": _counts(rows),
        "plans": {plan: _plan(runs, plan, chosen, test) for plan, chosen in representative.items()},
        "controls": {name: _control(name, values, test, warnings) for name, values in named.items()},
        "comparison": _comparison(runs, representative, test),
        "warnings": warnings,
    }


def _runs(predictions: Sequence[Prediction], representative: Mapping[str, int]) -> Runs:
    """Predictions by run, split and clip, after checking that they can be compared."""
    unscored = sorted({row.audio_file for row in predictions if row.score is None})
    if unscored:
        raise DataError(
            f"{len(unscored)} evaluated clips have no score ({shorten(unscored)}). Leave them out of the evaluation."
        )
    runs: Runs = {}
    for row in predictions:
        splits = runs.setdefault((row.plan, row.seed), {name: {} for name in SPLITS})
        if row.split not in splits:
            raise DataError(f"{row.audio_file}: split is {row.split!r}; expected one of {', '.join(SPLITS)}.")
        key = row.clip
        if any(key in clips for clips in splits.values()):
            raise DataError(f"{row.audio_file} is listed twice for plan {row.plan}, seed {row.seed}. Keep one row.")
        splits[row.split][key] = row
    strangers = sorted({plan for plan, _ in runs} - set(representative))
    if strangers:
        raise DataError(f"No representative seed is named for {len(strangers)} plans ({shorten(strangers)}). Name one.")
    missing = [f"{plan} seed {chosen}" for plan, chosen in representative.items() if (plan, chosen) not in runs]
    if missing or not representative:
        raise DataError(f"No predictions of the representative runs ({shorten(missing) or 'none named'}). Add them.")
    _check_same_test(runs)
    return runs


def _check_same_test(runs: Runs) -> None:
    """Every plan and seed must have predicted the same test clips, and know the same of them."""
    (reference, splits), *others = runs.items()
    expected = {key: _identity(row) for key, row in splits["test"].items()}
    if not expected:
        raise DataError(f"Plan {reference[0]}, seed {reference[1]} has no test clips. Predict the test split.")
    for (plan, seed), other in others:
        got = {key: _identity(row) for key, row in other["test"].items()}
        differing = sorted(key[1] for key in expected.keys() | got.keys() if expected.get(key) != got.get(key))
        if differing:
            raise DataError(
                f"Plan {plan}, seed {seed} and plan {reference[0]}, seed {reference[1]} differ in {len(differing)} "
                f"test clips or their scores ({shorten(differing)}). Predict the same test split with both."
            )


def _identity(row: Prediction) -> tuple[float | str | None, ...]:
    return row.score, row.singer_id, row.song_id, row.source


def _test_clips(rows: list[Prediction], resamples: int, confidence: float, seed: int) -> tuple[HeldOut, str, list[str]]:
    """The test split with its resamples, what the clusters are, and what a reader must know of them."""
    clusters = singer_clusters([row.singer_id for row in rows])
    number = len(np.unique(clusters))
    unknown = sum(row.singer_id is None for row in rows)
    warnings = []
    if unknown:
        warnings.append(f"{unknown} of {len(rows)} test clips have no singer; each counts as a singer of its own.")
    if number < 2:
        warnings.append("All test clips are by one singer: there are no intervals.")
        counts = np.zeros((0, len(rows)), dtype=np.int32)
    else:
        counts = cluster_counts(clusters, resamples, seed)
        if number < FEW_CLUSTERS:
            warnings.append(f"Only {number} test singers: the intervals are rough, and likely too narrow.")
    scores = np.array([row.human for row in rows])
    keys = [row.clip for row in rows]
    test = HeldOut(keys, scores, [row.source or NO_SOURCE for row in rows], counts, confidence)
    return test, "clip" if unknown == len(rows) else "singer", warnings


def _counts(rows: Sequence[Prediction]) -> dict[str, int]:
    """Clips, singers and songs of the test split, and how many clips have no known singer."""
    return {
        "clips": len(rows),
        "singers": len({row.singer_id for row in rows} - {None}),
        "songs": len({row.song_id for row in rows} - {None}),
        "without_singer": sum(row.singer_id is None for row in rows),
    }


def _plan(runs: Runs, plan: str, chosen: int, test: HeldOut) -> dict[str, Any]:
    """One plan's figures: estimates and slices of its representative seed, and the spread over its seeds."""
    rows = [runs[plan, chosen]["test"][key] for key in test.keys]
    predicted = np.array([row.predicted for row in rows])
    metrics: dict[str, Metric] = {
        "spearman": spearman,
        "spearman_within_source": within_sources(test.sources),
        "pairwise_accuracy": pairwise_accuracy,
        "kendall": kendall,
        "pearson": pearson,
        "mae": mae,
        "rmse": rmse,
        "bias": bias,
    }
    found = {name: test.estimate(metric, predicted) for name, metric in metrics.items()}
    gaps = {gap_name(*gap): test.estimate(pairwise_accuracy_in_gap(*gap), predicted) for gap in GAPS}
    undefined = {name: value.undefined for name, value in {**found, **gaps}.items() if value.undefined}
    return {
        "seed": chosen,
        **{name: value.as_dict() for name, value in found.items()},
        "per_source": _per_source(predicted, test),
        "pairwise_accuracy_by_gap": {name: value.as_dict() for name, value in gaps.items()},
        "per_seed": _per_seed(runs, plan),
        "bands": _bands(predicted, test.scores),
        "coverage": _coverage(rows),
        "undefined_resamples": undefined,
    }


def _per_source(predicted: Array, test: HeldOut) -> dict[str, Any]:
    sources = np.array(test.sources)
    found = {}
    for name in sorted(set(test.sources)):
        member = np.flatnonzero(sources == name)
        found[name] = {"clips": len(member), "spearman": test.estimate(spearman, predicted, member).as_dict()}
    return found


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


def _bands(predicted: Array, scores: Array) -> dict[str, dict[str, float | int]]:
    """Clips, mean absolute error and bias for each band of human scores that has clips, lowest band first."""
    bands: dict[str, list[int]] = {}
    for index in np.argsort(scores, kind="stable"):
        bands.setdefault(band_of(float(scores[index])), []).append(int(index))
    return {
        name: {
            "n": len(member),
            "mae": mae(scores[member], predicted[member]),
            "bias": bias(scores[member], predicted[member]),
        }
        for name, member in bands.items()
    }


def _coverage(rows: Sequence[Prediction]) -> dict[str, float | int | None]:
    """Share of the clips with an interval whose human score lies in it."""
    inside = [row.lo <= (row.human) <= row.hi for row in rows if row.lo is not None and row.hi is not None]
    return {"share": sum(inside) / len(inside) if inside else None, "clips": len(inside)}


def _control(name: str, values: Mapping[str, float], test: HeldOut, warnings: list[str]) -> dict[str, Any]:
    """Spearman of something that did not listen, over the test clips where it is known."""
    predicted = np.array([values.get(sha256, math.nan) for sha256, _ in test.keys])
    known = np.flatnonzero(np.isfinite(predicted))
    if len(known) < len(test.keys):
        warnings.append(f"Control {name} is known for {len(known)} of {len(test.keys)} test clips.")
    inside = within_sources([test.sources[index] for index in known])
    return {
        "clips": len(known),
        "spearman": test.estimate(spearman, predicted, known).as_dict(),
        "spearman_within_source": test.estimate(inside, predicted, known).as_dict(),
    }


def _comparison(runs: Runs, representative: Mapping[str, int], test: HeldOut) -> dict[str, Any] | None:
    """Spearman(hybrid) - Spearman(baseline) on the same clips, overall and, nested, `within_source`.

    Overall, the recording domain hides what the voice adds. None unless both plans were evaluated.
    """
    if BASELINE not in representative or HYBRID not in representative:
        return None

    def predicted(plan: str) -> list[float]:
        clips = runs[plan, representative[plan]]["test"]
        return [clips[key].predicted for key in test.keys]

    def difference(metric: Metric) -> dict[str, float | None]:
        first, second = predicted(HYBRID), predicted(BASELINE)
        return paired_difference(metric, test.scores, first, second, test.counts, test.confidence).as_dict("delta")

    return {**difference(spearman), "within_source": difference(within_sources(test.sources))}
