"""Decide whether the winner of a run may replace the champion."""

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
from audioscore.evaluation.gate.slices import Slice, SliceRule, compare_slices, slices_text
from audioscore.evaluation.metrics import spearman, within_sources
from audioscore.evaluation.predictions import Prediction

if TYPE_CHECKING:
    from audioscore.config import EvaluationSection


MIN_SPEARMAN = 0.3  # overall, of a first model
CHAMPION = "champion"  # plan name of the champion's predictions
MIN_CLIPS, MIN_SINGERS = 10, 7  # a bootstrap interval of fewer singers is much too narrow
OVERALL_MARGIN = 0.02  # by which overall Spearman may fall


@dataclass(frozen=True)
class Decision:
    """The decision of the gate, with the values it is based on.

    `delta` and its interval are the difference in within-source Spearman, challenger minus champion, and
    `overall_delta` and its interval that in overall Spearman; None without a champion. `reason` states the deciding
    values. `clips` and `singers` were compared (an unknown singer counts separately for each clip); `dropped` clips
    were excluded because a model was trained on them. `slices` is empty without a champion; `failed_tests` are the
    robustness tests that refuse the promotion.
    """

    promoted: bool
    reason: str
    delta: float | None = None
    lo: float | None = None
    hi: float | None = None
    overall_delta: float | None = None
    overall_lo: float | None = None
    overall_hi: float | None = None
    clips: int = 0
    singers: int = 0
    dropped: int = 0
    slices: tuple[Slice, ...] = ()
    failed_tests: tuple[str, ...] = ()

    def verdict(self) -> dict[str, Any]:
        """Return the decision, the difference and the reason, for JSON."""
        return {key: getattr(self, key) for key in ("delta", "lo", "hi", "promoted", "reason")}

    def parts(self) -> dict[str, Any]:
        """Return the other values of the decision, for JSON."""
        return {
            "clips": self.clips,
            "singers": self.singers,
            "dropped": self.dropped,
            **{key: getattr(self, key) for key in ("overall_delta", "overall_lo", "overall_hi")},
            "slices": [asdict(one) for one in self.slices],
            "probes": list(self.failed_tests),
        }


def decide(
    challenger: ArrayLike,
    champion: ArrayLike | None,
    *,
    scores: ArrayLike,
    singers: Sequence[str | None],
    sources: Sequence[str | None],
    dropped: int = 0,
    failed_tests: Sequence[str] = (),
    margin: float = 0.0,
    overall_margin: float = OVERALL_MARGIN,
    slices: SliceRule | None = None,
    min_spearman: float = MIN_SPEARMAN,
    min_clips: int = MIN_CLIPS,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Decision:
    """Decide whether the challenger is promoted.

    Without a champion the overall Spearman must be at least `min_spearman`. With a champion, the lower bound of the
    paired cluster-bootstrap interval of the difference in within-source Spearman must exceed `margin`, overall Spearman
    must not fall by more than `overall_margin`, and no slice may regress (`slices`, default `SliceRule()`). Within
    sources, because a model that only recognises the source of a recording can raise overall Spearman. In both cases
    the lower bound of the within-source Spearman must exceed 0, and no test may be in `failed_tests`. The caller
    excludes the clips that either model was trained on, and passes their number as `dropped`.

    Shape: all [N], for the same test clips in the same order.
    """
    human, new = np.asarray(scores, dtype=np.float64), np.asarray(challenger, dtype=np.float64)
    old = None if champion is None else np.asarray(champion, dtype=np.float64)
    _check_same_clips(human, new, old, singers, sources)
    clusters = singer_clusters(singers)
    count = len(np.unique(clusters))
    size: dict[str, Any] = {"clips": len(human), "singers": count, "dropped": dropped}
    size["failed_tests"] = tuple(failed_tests)
    basis = _basis(singers, dropped)
    if len(human) < min_clips or count < MIN_SINGERS:
        return Decision(
            False, f"too few test clips: {basis}; {min_clips} clips of {MIN_SINGERS} singers are needed", **size
        )
    if count < FEW_CLUSTERS:
        basis += " (few singers: rough intervals)"
    if old is not None and np.array_equal(new, old):
        equal = f"challenger and champion make the same predictions on {basis}"
        return Decision(False, equal, 0.0, 0.0, 0.0, **size)
    counts = cluster_counts(clusters, resamples, seed)
    inside = within_sources(sources)
    within = estimate(inside, human, new, counts, confidence)
    if old is None:
        overall = estimate(spearman, human, new, counts, confidence)
        return _with_tests(replace(_first_model(overall, within, min_spearman, basis, confidence), **size))
    metrics = (inside, spearman)
    ranks = [(metric(human, new), metric(human, old)) for metric in metrics]
    differences = [paired_difference(metric, human, new, old, counts, confidence) for metric in metrics]
    decision = _against_champion(differences, ranks, within, (margin, overall_margin), basis, confidence)
    rule = slices or SliceRule()
    compared = compare_slices(human, new, old, clusters, sources, counts, rule, confidence)
    return _with_tests(_with_slices(replace(decision, **size), compared, rule.margin))


def _with_slices(decision: Decision, slices: tuple[Slice, ...], margin: float) -> Decision:
    """Refuse the promotion where a slice fell, and add the slices to the reason."""
    fell = any(one.verdict == "fell" for one in slices)
    text = slices_text(slices, margin)
    return replace(
        decision,
        promoted=decision.promoted and not fell,
        reason=f"{decision.reason}; {text}" if text else decision.reason,
        slices=slices,
    )


def _with_tests(decision: Decision) -> Decision:
    """Refuse the promotion where a robustness test failed, and name the failed tests."""
    if not decision.failed_tests:
        return decision
    failed = f"{decision.reason}; failed robustness tests: {shorten(list(decision.failed_tests), 10)}"
    return replace(decision, promoted=False, reason=failed)


def _check_same_clips(
    human: np.ndarray, new: np.ndarray, old: np.ndarray | None, singers: Sequence[object], sources: Sequence[object]
) -> None:
    sizes = {"scores": len(human), "challenger": len(new), "singers": len(singers), "sources": len(sources)}
    if old is not None:
        sizes["champion"] = len(old)
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise DataError(f"Gate: the inputs differ in clips: {listed}. Predict the same clips with both models.")


def _basis(singers: Sequence[str | None], dropped: int) -> str:
    """Describe the clips that the decision is based on."""
    named, unknown = len(set(singers) - {None}), sum(singer is None for singer in singers)
    of = [f"{named} singer{'' if named == 1 else 's'}"] if named else []
    of += [f"{unknown} unknown singer{'' if unknown == 1 else 's'}"] if unknown else []
    left_out = f" ({dropped} more excluded: a model was trained on them)" if dropped else ""
    return f"{len(singers)} test clips of {' and '.join(of) or 'no singer'}{left_out}"


def _range(found: Estimate, confidence: float, sign: str = "") -> str:
    if math.isnan(found.lo):
        return "undefined"
    return f"{confidence:.0%} interval {found.lo:{sign}.3f} to {found.hi:{sign}.3f}"


def _within_text(within: Estimate, confidence: float) -> str:
    if math.isnan(within.value):
        return "within-source Spearman is undefined"
    return f"within-source Spearman is {within.value:.3f} ({_range(within, confidence)})"


def _first_model(overall: Estimate, within: Estimate, min_spearman: float, basis: str, confidence: float) -> Decision:
    """Decide without a champion: the model must rank clips overall, and within the sources."""
    ranks = overall.value >= min_spearman  # False where undefined
    within_source = within.lo > 0
    verdict = "reaches" if ranks else "does not reach"
    text = "undefined" if math.isnan(overall.value) else f"{overall.value:.3f} ({_range(overall, confidence)})"
    reason = (
        f"first model, on {basis}: overall Spearman {text} {verdict} the required {min_spearman:g}, and "
        f"{_within_text(within, confidence)}, {'above 0' if within_source else 'not significantly above 0'}"
    )
    return Decision(bool(ranks and within_source), reason)


def _against_champion(
    differences: Sequence[Estimate], ranks: Sequence[tuple[float, float]], within: Estimate,
    margins: tuple[float, float], basis: str, confidence: float,
) -> Decision:  # fmt: skip
    """Decide against a champion: better within sources by more than the margin, above 0 there, and no worse overall.

    `differences`, `ranks` (challenger, champion) and `margins` are of within-source, then of overall Spearman.
    """
    for pair in ranks:
        if math.isnan(pair[0]) or math.isnan(pair[1]):
            constant = "challenger" if math.isnan(pair[0]) else "champion"
            return Decision(False, f"the Spearman of the {constant} is undefined on {basis}")
    inside, overall = differences
    better, above, kept = inside.lo > margins[0], within.lo > 0, overall.value >= -margins[1]
    reason = (
        f"within-source Spearman {ranks[0][0]:.3f} ({_range(within, confidence)}), champion {ranks[0][1]:.3f}, on "
        f"{basis}: difference {inside.value:+.3f} ({_range(inside, confidence, '+')}), "
        f"{'above' if better else 'not significantly above'} {margins[0]:g}"
        f"{'' if above else '; within sources it is not significantly above 0'}; overall Spearman {ranks[1][0]:.3f}, "
        f"champion {ranks[1][1]:.3f}, {'within' if kept else 'below'} the margin of {margins[1]:g}"
    )
    return Decision(
        better and above and kept, reason, inside.value, or_none(inside.lo), or_none(inside.hi), overall.value,
        or_none(overall.lo), or_none(overall.hi),
    )  # fmt: skip


def compare_with_champion(
    predictions: Sequence[Prediction],
    representative: Mapping[str, int],
    champion: Sequence[Prediction],
    settings: "EvaluationSection",
) -> dict[str, Any]:
    """Evaluate the plans and the champion on the same clips, with the champion as reference.

    `champion` holds the champion's predictions, made now, for the test clips that neither it nor a plan was trained on.
    The other test clips are excluded and counted as `dropped`. Returns the document of `evaluate` with `dropped`.

    Raises: DataError without champion rows, or for a row that is not of a test clip.
    """
    chosen = [row for row in predictions if row.split == "test" and representative.get(row.plan) == row.seed]
    compared, test = {row.clip for row in champion}, {row.clip for row in chosen}
    if not compared:
        raise DataError(
            f"Champion: it or a plan was trained on all of the {len(test)} test clips. Add clips, or omit the champion."
        )
    if other := compared - test:
        raise DataError(f"Champion: {len(other)} of its {len(compared)} clips are not test clips. Predict those.")
    rows = [row for row in chosen if row.clip in compared]
    rows += [replace(row, plan=CHAMPION, seed=0, split="test") for row in champion]
    found = evaluate(rows, {}, {**representative, CHAMPION: 0}, reference=CHAMPION, **settings.bootstrap)
    return {**found, "dropped": len(test) - len(compared)}
