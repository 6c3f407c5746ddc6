"""Every figure of an evaluation, computed from the predictions table: what each plan reaches, and which is better."""

from collections.abc import Mapping, Sequence
from typing import Any

from audioscore.evaluation.comparison import BASELINE, HYBRID, compare_plans, compare_variants, default_reference
from audioscore.evaluation.controls import control_figures
from audioscore.evaluation.estimates import NO_SOURCE, hold_out
from audioscore.evaluation.noise_ceiling import Ratings, noise_ceiling
from audioscore.evaluation.plan_figures import plan_figures, predicted_scores, resampled_ranks
from audioscore.evaluation.predictions import Prediction
from audioscore.evaluation.runs import align_runs

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
