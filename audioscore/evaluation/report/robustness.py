"""Report sections on robustness tests, the domain probe, and slices of the test clips."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from audioscore.evaluation.report.tables import (
    NOT_MEASURED,
    Notes,
    bare_html,
    estimate_html,
    metric_html,
    noted_table,
    of_plan,
    plan_title,
)
from audioscore.html import paragraph

GIVEN = "given by the number of sources"
KEYS = ("spearman", "mae", "bias")
TITLES = {"spearman": "Spearman", "mae": "MAE", "bias": "bias"}


def robustness_section(document: Mapping[str, Any] | None, plans: Mapping[str, Any]) -> str:
    """Show the robustness tests and the domain probe of every tested plan."""
    if document is None:
        return paragraph("No robustness tests.", "soft")
    tested = {plan: document["plans"][plan] for plan in plans if plan in document["plans"]}
    warnings = "".join(paragraph(text, "bad") for text in document["warnings"])
    return _degradations(document, tested) + _domain(tested) + warnings


def _degradations(document: Mapping[str, Any], tested: Mapping[str, Any]) -> str:
    names = list(dict.fromkeys(name for own in tested.values() for name in own["degradations"]))
    if not names:
        return paragraph(f"No robustness tests: {document['reason'] or 'no plan was tested'}.", "soft")
    notes = Notes()
    rows = [
        [
            of_plan(one["title"], plan), _verdict(name, one, document["refuse"]),
            estimate_html(one["effect"], notes, "points", sign="+"),
            estimate_html(one.get("in_order", NOT_MEASURED), notes, "share"),
            estimate_html(one["violations"], notes, "share"), one["expected"], one["clips"],
        ]
        for name in names
        for plan, own in tested.items()
        if (one := own["degradations"].get(name)) is not None
    ]  # fmt: skip
    note = (
        f"{len(document['probed'])} test clips, degraded and scored again. Effect: mean change of the score in points. "
        "In order: share of clips whose score fell; a model that does not respond to a fault has 50 %. Violations: "
        f"share of clips that change in the unexpected direction by more than {document['tolerance_points']:g} points. "
        "Passed: the interval shows that scores fall (lower: in order above 50 %), or that they stay (same: mean "
        "absolute change within the tolerance), or does not show that they rise (not higher)."
    )
    refuse = document["refuse"]
    gate = f"These tests refuse a promotion: {', '.join(refuse)}." if refuse else "No test refuses a promotion."
    headers = ["degradation", "verdict", "effect", "in order", "violations", "expected score", "clips"]
    skipped = _skipped(document["left_out"])
    return noted_table(headers, rows, notes) + f'<p class="notes">{note} {gate}</p>' + skipped


def _verdict(name: str, one: Mapping[str, Any], refuse: Sequence[str]) -> str:
    if one["wrong_way"]["lo"] is None:
        return "no interval"
    if not one["flagged"]:
        return "passed"
    return "flagged, refuses" if name in refuse else "flagged"


def _skipped(skipped: Sequence[Mapping[str, Any]]) -> str:
    """Count the degraded versions without a score by reason."""
    reasons = Counter(str(one["reason"]).removeprefix(f"{one['audio_file']}: ") for one in skipped)
    if not reasons:
        return ""
    listed = "; ".join(f"{count}: {reason}" for reason, count in reasons.most_common(5))
    return paragraph(f"{len(skipped)} degraded versions were skipped. Most frequent reasons: {listed}", "soft")


def _domain(tested: Mapping[str, Any]) -> str:
    notes = Notes()
    rows = []
    for plan, own in tested.items():
        found = own["domain"]
        figure = found["balanced_accuracy"] or {"value": None, "lo": None, "hi": None, "no_interval": found["reason"]}
        chance = bare_html(found["chance"], notes, found["reason"] or GIVEN)
        bands = ", ".join(found["bands"]) or "none"
        rows.append([plan_title(plan), estimate_html(figure, notes), chance, found["clips"], bands])
    if not rows:
        return ""
    note = (
        "Domain probe: how well a linear classifier predicts the source of a clip from the model's features, within "
        "score bands. Near chance, the features do not contain the source."
    )
    headers = ["domain probe", "balanced accuracy", "chance", "clips", "bands"]
    return noted_table(headers, rows, notes) + paragraph(note, "soft")


def sources(plans: Mapping[str, Any]) -> str:
    """Show Spearman, MAE and bias of each source."""
    return _by(plans, "per_source", "source", KEYS)


def bands(plans: Mapping[str, Any]) -> str:
    """Show Spearman, MAE and bias of each band of human scores."""
    note = "Within a band human scores differ little, so Spearman is low for any model and any rater."
    return _by(plans, "per_band", "human score", KEYS) + paragraph(note, "soft")


def _by(plans: Mapping[str, Any], key: str, heading: str, metrics: Sequence[str]) -> str:
    """Return a row for each slice and plan, narrow enough for a phone with any number of plans."""
    notes = Notes()
    rows = [
        [of_plan(name, plan), found["clips"], found["singers"], *(metric_html(found, m, notes) for m in metrics)]
        for name in next(iter(plans.values()))[key]
        for plan, found in ((plan, figures[key][name]) for plan, figures in plans.items())
    ]
    return noted_table([heading, "clips", "singers", *(TITLES[m] for m in metrics)], rows, notes)


def high_scores(plans: Mapping[str, Any]) -> str:
    """Show precision and recall of human scores of 85 or more and of 90 or more."""
    notes = Notes()
    rows = [
        [of_plan(f"{top} or above", plan), one["clips"], one["predicted"],
         estimate_html(one["precision"], notes, "share"), estimate_html(one["recall"], notes, "share")]
        for top in next(iter(plans.values()))["at_or_above"]
        for plan, one in ((plan, figures["at_or_above"][top]) for plan, figures in plans.items())
    ]  # fmt: skip
    note = (
        "Precision: share of the clips predicted at or above the threshold whose human score is, too. Recall: share of "
        "the clips with such a human score that are predicted there."
    )
    headers = ["threshold", "clips", "predicted", "precision", "recall"]
    return noted_table(headers, rows, notes) + paragraph(note, "soft")


def singers_and_songs(plans: Mapping[str, Any]) -> str:
    """Show the metrics of singers' means, Spearman within songs, and the songs with the largest errors."""
    notes = Notes()
    rows: list[list[Any]] = []
    for plan, figures in plans.items():
        singer, song = figures["by_singer"], figures["by_song"]
        rows.append(
            [plan_title(plan), singer["singers"], metric_html(singer, "spearman", notes),
             metric_html(singer, "mae", notes), song["songs"], metric_html(song, "spearman", notes)]
        )  # fmt: skip
    headers = ["", "singers", "Spearman of singer means", "MAE of singer means", "songs", "Spearman within songs"]
    first = next(iter(plans.values()))
    note = (
        f"Singers with {first['by_singer']['min_clips']} clips or more, songs with {first['by_song']['min_clips']} "
        "or more."
    )
    return noted_table(headers, rows, notes) + paragraph(note, "soft") + _worst_songs(plans)


def _worst_songs(plans: Mapping[str, Any]) -> str:
    notes = Notes()
    rows = [
        [of_plan(one["song"], plan), one["clips"], one["singers"],
         metric_html(one, "mae", notes), metric_html(one, "bias", notes)]
        for plan, figures in plans.items()
        for one in figures["by_song"]["worst"]
    ]  # fmt: skip
    if not rows:
        return ""
    listed = noted_table(["song", "clips", "singers", "MAE", "bias"], rows, notes)
    return f"<details><summary>Songs with the largest errors</summary>{listed}</details>"
