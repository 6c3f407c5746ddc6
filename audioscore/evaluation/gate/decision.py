"""Which plan wins on validation, and whether the winner may take the champion's place."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from audioscore.errors import DataError, shorten
from audioscore.evaluation.bootstrap import (
    FEW_CLUSTERS,
    Estimate,
    cluster_counts,
    estimate,
    or_none,
    paired_difference,
    singer_clusters,
)
from audioscore.evaluation.evaluate import evaluate
from audioscore.evaluation.gate.slices import Slice, SliceRule, judge_slices, slices_text
from audioscore.evaluation.metrics import spearman, within_sources
from audioscore.evaluation.predictions import Prediction

if TYPE_CHECKING:
    from audioscore.config import EvaluationSection


MIN_SPEARMAN = 0.3  # a first model must rank at least this well overall
MIN_CLIPS, MIN_SINGERS = 10, 3  # of two singers, equal models are promoted in a quarter of the cases


def choose_winner(validation: Mapping[str, Sequence[float | None]]) -> str:
    """The plan with the highest validation Spearman, averaged over its seeds; equal plans: the first given.

    A seed whose Spearman is undefined (None or NaN: it gives every clip the same score) ranks nothing and counts 0.
    Raises DataError for no plans, a plan without seeds, or no defined value at all.

    >>> choose_winner({"baseline": [0.5, 0.6], "hybrid": [0.7, 0.5]})
    'hybrid'
    """
    empty = [plan for plan, values in validation.items() if not values]
    if not validation or empty:
        raise DataError(f"Choosing a winner needs a validation value for every plan; none for {empty or 'any plan'}.")
    defined = {plan: [v for v in values if v is not None and not math.isnan(v)] for plan, values in validation.items()}
    if not any(defined.values()):
        seeds = sum(len(values) for values in validation.values())
        raise DataError(
            f"None of {seeds} validation values of {len(validation)} plans is defined: no model orders the clips, "
            "or they are too few. Look at the training curves, or validate on more clips."
        )
    means = {plan: math.fsum(values) / len(validation[plan]) for plan, values in defined.items()}
    return max(means, key=lambda plan: means[plan])


@dataclass(frozen=True)
class Decision:
    """The gate's answer: `delta` and its interval are Spearman(challenger) - Spearman(champion), None for no champion.

    `reason` is one sentence with the figures it rests on. `clips` and `singers` (those unknown count one each) were
    judged, `dropped` left out because a model had trained on them. `slices` is empty without a champion; `probes` names
    those that refuse.
    """

    promoted: bool
    reason: str
    delta: float | None = None
    lo: float | None = None
    hi: float | None = None
    clips: int = 0
    singers: int = 0
    dropped: int = 0
    slices: tuple[Slice, ...] = ()
    probes: tuple[str, ...] = ()

    def verdict(self) -> dict[str, Any]:
        """The answer, its difference and its sentence, for JSON."""
        return {
            "delta": self.delta,
            "lo": self.lo,
            "hi": self.hi,
            "promoted": self.promoted,
            "reason": self.reason,
        }

    def parts(self) -> dict[str, Any]:
        """What the decision rests on beside the difference, for JSON."""
        return {
            "clips": self.clips,
            "singers": self.singers,
            "dropped": self.dropped,
            "slices": [asdict(one) for one in self.slices],
            "probes": list(self.probes),
        }


def decide(
    challenger: ArrayLike,
    champion: ArrayLike | None,
    *,
    scores: ArrayLike,
    singers: Sequence[str | None],
    sources: Sequence[str | None],
    dropped: int = 0,
    failed_probes: Sequence[str] = (),
    margin: float = 0.0,
    slices: SliceRule | None = None,
    min_spearman: float = MIN_SPEARMAN,
    min_clips: int = MIN_CLIPS,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Decision:
    """May the challenger be promoted? Everything is [N], over the same test clips in the same order.

    The caller has left out, and counted as `dropped`, the clips that either model trained on. Without a champion the
    challenger needs an overall Spearman of at least `min_spearman`; with one, the lower bound of the paired
    cluster-bootstrap interval of the difference in Spearman must lie above `margin`, and it may fall on none of the
    `slices` (None: judged by the usual rule). In both cases its Spearman within the recording domains must have a lower
    bound above 0, and no probe may have failed.
    """
    human, new = np.asarray(scores, dtype=np.float64), np.asarray(challenger, dtype=np.float64)
    old = None if champion is None else np.asarray(champion, dtype=np.float64)
    _check_same_clips(human, new, old, singers, sources)
    clusters = singer_clusters(singers)
    count = len(np.unique(clusters))
    size: dict[str, Any] = {"clips": len(human), "singers": count, "dropped": dropped, "probes": tuple(failed_probes)}
    ground = _ground(singers, dropped)
    if len(human) < min_clips or count < MIN_SINGERS:
        needed = f"at least {min_clips} clips of {MIN_SINGERS} singers are needed"
        return Decision(False, f"there is too little to judge by: {ground}, where {needed}", **size)
    if count < FEW_CLUSTERS:
        ground += ", so few singers that intervals are rough"
    if old is not None and np.array_equal(new, old):
        equal = f"challenger and champion are equal: the same predictions on {ground}"
        return Decision(False, equal, 0.0, 0.0, 0.0, **size)
    counts = cluster_counts(clusters, resamples, seed)
    within = estimate(within_sources(sources), human, new, counts, confidence)
    if old is None:
        overall = estimate(spearman, human, new, counts, confidence)
        return _with_probes(replace(_first_model(overall, within, min_spearman, ground, confidence), **size))
    difference = paired_difference(spearman, human, new, old, counts, confidence)
    ranks = (spearman(human, new), spearman(human, old))
    decision = _against_champion(difference, ranks, within, margin, ground, confidence)
    rule = slices or SliceRule()
    judged = judge_slices(human, new, old, clusters, sources, counts, rule, confidence)
    return _with_probes(_with_slices(replace(decision, **size), judged, rule.margin))


def _with_slices(decision: Decision, slices: tuple[Slice, ...], margin: float) -> Decision:
    """Refused where a slice fell; what was judged and what could not be is said either way."""
    fell = any(one.verdict == "fell" for one in slices)
    text = slices_text(slices, margin)
    return replace(
        decision,
        promoted=decision.promoted and not fell,
        reason=f"{decision.reason}; {text}" if text else decision.reason,
        slices=slices,
    )


def _with_probes(decision: Decision) -> Decision:
    """Refused where a probe failed, naming those that did."""
    if not decision.probes:
        return decision
    failed = f"{decision.reason}; it fails the probes {shorten(list(decision.probes), 10)}"
    return replace(decision, promoted=False, reason=failed)


def _check_same_clips(
    human: np.ndarray, new: np.ndarray, old: np.ndarray | None, singers: Sequence[object], sources: Sequence[object]
) -> None:
    sizes = {"scores": len(human), "challenger": len(new), "singers": len(singers), "sources": len(sources)}
    if old is not None:
        sizes["champion"] = len(old)
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise DataError(f"The gate compares models on the same clips; got {listed}. Predict the same clips with both.")


def _ground(singers: Sequence[str | None], dropped: int) -> str:
    """What the decision stands on, in words."""
    known, unknown = len(set(singers) - {None}), sum(singer is None for singer in singers)
    of = [f"{known} singer{'' if known == 1 else 's'}"] if known else []
    of += [f"{unknown} unknown singer{'' if unknown == 1 else 's'}"] if unknown else []
    left_out = f" ({dropped} more left out, because a model had trained on them)" if dropped else ""
    return f"{len(singers)} test clips of {' and '.join(of) or 'no singer'}{left_out}"


def _range(found: Estimate, confidence: float, sign: str = "") -> str:
    if math.isnan(found.lo):
        return "undefined"
    return f"{confidence:.0%} interval {found.lo:{sign}.3f} to {found.hi:{sign}.3f}"


def _within_text(within: Estimate, confidence: float) -> str:
    if math.isnan(within.value):
        return "Spearman within sources is undefined"
    return f"Spearman within sources is {within.value:.3f} ({_range(within, confidence)})"


def _first_model(overall: Estimate, within: Estimate, min_spearman: float, ground: str, confidence: float) -> Decision:
    """No champion yet: does the model rank at all, and not only tell the recording domains apart?"""
    ranks = overall.value >= min_spearman  # False where undefined
    hears = within.lo > 0
    verdict = "reaches" if ranks else "does not reach"
    text = "undefined" if math.isnan(overall.value) else f"{overall.value:.3f} ({_range(overall, confidence)})"
    reason = (
        f"first model, on {ground}: overall Spearman {text} {verdict} the {min_spearman:g} required, and "
        f"{_within_text(within, confidence)}, {'above 0' if hears else 'not shown to be above 0'}"
    )
    return Decision(bool(ranks and hears), reason)


def _against_champion(
    difference: Estimate,
    ranks: tuple[float, float],
    within: Estimate,
    margin: float,
    ground: str,
    confidence: float,
) -> Decision:
    """Is the challenger better than the champion by more than chance and the margin, and not by domain alone?"""
    if math.isnan(difference.value):
        constant = "challenger" if math.isnan(ranks[0]) else "champion"
        return Decision(False, f"the {constant}'s Spearman is undefined on {ground}, so nothing can be compared")
    better, hears = difference.lo > margin, within.lo > 0
    shown = "above" if better else "not shown to be above"
    reason = (
        f"Spearman {ranks[0]:.3f} against the champion's {ranks[1]:.3f} on {ground}: difference "
        f"{difference.value:+.3f} ({_range(difference, confidence, '+')}), {shown} {margin:g}, and "
        f"{_within_text(within, confidence)}, {'above 0' if hears else 'not shown to be above 0'}"
    )
    return Decision(better and hears, reason, difference.value, or_none(difference.lo), or_none(difference.hi))


CHAMPION = "champion"


def beside_champion(
    predictions: Sequence[Prediction],
    representative: Mapping[str, int],
    champion: Sequence[Prediction],
    settings: "EvaluationSection",
) -> dict[str, Any]:
    """The document of `evaluate` for the plans' representatives and the champion, with the champion as reference.

    `champion` are its rows, made now, on those test clips of `predictions` that neither it nor a plan was trained on;
    the rest of the test clips is left out and counted as `dropped`. Raises DataError where a row is of another clip, or
    there is none.
    """
    chosen = [row for row in predictions if row.split == "test" and representative.get(row.plan) == row.seed]
    judged, known = {row.clip for row in champion}, {row.clip for row in chosen}
    if not judged:
        raise DataError(
            f"None of {len(known)} test clips is new to the champion and the plans. Add clips, or leave it out."
        )
    if strangers := judged - known:
        raise DataError(f"{len(strangers)} of the champion's {len(judged)} clips are no test clips. Predict those.")
    rows = [row for row in chosen if row.clip in judged]
    rows += [replace(row, plan=CHAMPION, seed=0, split="test") for row in champion]
    found = evaluate(
        rows,
        {},
        {**representative, CHAMPION: 0},
        reference=CHAMPION,
        resamples=settings.resamples,
        confidence=settings.confidence,
        seed=settings.seed,
    )
    return {**found, "dropped": len(known) - len(judged)}
