"""What degraded recordings do to the scores, and how much of the recording domain a model knows."""

from collections.abc import Mapping, Sequence
from typing import Any

from audioscore.evaluation.report.decision import (
    Notes,
    bare_html,
    figure_html,
    metric_html,
    noted_table,
    of_plan,
    plan_title,
)
from audioscore.html import paragraph

KNOWN = "it is known, not estimated"


def probes_section(probes: Mapping[str, Any] | None, plans: Mapping[str, Any]) -> str:
    """Both probes of every plan that was asked."""
    if probes is None:
        return paragraph("No probe was run.", "soft")
    asked = {plan: probes["plans"][plan] for plan in plans if plan in probes["plans"]}
    warnings = "".join(paragraph(text, "bad") for text in probes["warnings"])
    return _degradations(probes, asked) + _domain(asked) + warnings


def _degradations(probes: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    names = list(dict.fromkeys(name for own in asked.values() for name in own["degradations"]))
    if not names:
        return paragraph(f"No clip was degraded: {probes['reason'] or 'no plan could be asked'}.", "soft")
    notes = Notes()
    rows = [
        [
            of_plan(one["title"], plan), _verdict(name, one, probes),
            figure_html(one["effect"], notes, "points", sign="+"), figure_html(one["violations"], notes, "share"),
            one["expected"], one["clips"],
        ]
        for name in names
        for plan, own in asked.items()
        if (one := own["degradations"].get(name)) is not None
    ]  # fmt: skip
    note = (
        f"{len(probes['probed'])} test clips, changed on purpose and scored again. Effect: the mean change of the "
        "score in points. Violations: the share of clips whose score went where it should not, by more than the "
        f"tolerance of {probes['tolerance_points']:g} points. Flagged: on average it went there by more than that, "
        "chance allowed for; such a model rewards the fault, or hears a difference where there is none."
    )
    refuse = probes["refuse"]
    asked_to = f"These refuse a promotion: {', '.join(refuse)}." if refuse else "None of them refuses a promotion."
    headers = ["change", "verdict", "effect", "violations", "score should be", "clips"]
    left_out = _left_out(probes["left_out"])
    return noted_table(headers, rows, notes) + f'<p class="notes">{note} {asked_to}</p>' + left_out


def _verdict(name: str, one: Mapping[str, Any], probes: Mapping[str, Any]) -> str:
    if one["wrong_way"]["lo"] is None:
        return "not judged"
    if not one["flagged"]:
        return "passed"
    return "flagged, refuses" if name in probes["refuse"] else "flagged"


def _left_out(left_out: list[Mapping[str, Any]]) -> str:
    """Versions that could not be made or would be refused, counted by reason."""
    reasons: dict[str, int] = {}
    for one in left_out:
        said = str(one["reason"]).removeprefix(f"{one['audio_file']}: ")
        reasons[said] = reasons.get(said, 0) + 1
    if not reasons:
        return ""
    most = sorted(reasons.items(), key=lambda item: -item[1])[:5]
    listed = "; ".join(f"{count}: {reason}" for reason, count in most)
    return paragraph(f"{len(left_out)} degraded versions were left out. Most often: {listed}", "soft")


def _domain(asked: Mapping[str, Any]) -> str:
    notes = Notes()
    rows = []
    for plan, own in asked.items():
        found = own["domain"]
        figure = found["balanced_accuracy"] or {"value": None, "lo": None, "hi": None, "no_interval": found["reason"]}
        chance = bare_html(found["chance"], notes, found["reason"] or KNOWN)
        bands = ", ".join(found["bands"]) or "none"
        rows.append([plan_title(plan), figure_html(figure, notes), chance, found["clips"], bands])
    if not rows:
        return ""
    note = (
        "Domain probe: how well a linear classifier names the recording domain of a test clip from what the model "
        "knows of it, within a band of scores, where it should not matter. Near chance the model does not know it; "
        "far above it may use it, and Spearman within source says whether it does."
    )
    headers = ["recording domain", "balanced accuracy", "chance", "clips", "bands"]
    return noted_table(headers, rows, notes) + paragraph(note, "soft")


KEYS = ("spearman", "mae", "bias")
TITLES = {"spearman": "Spearman", "mae": "MAE", "bias": "bias"}


def sources(plans: Mapping[str, Any]) -> str:
    """Spearman, MAE and bias inside each recording domain."""
    return _by(plans, "per_source", "source", KEYS)


def bands(plans: Mapping[str, Any]) -> str:
    """The same in each band of human scores."""
    note = "Human scores inside a band differ little, so that Spearman is low there for any judge, people included."
    return _by(plans, "per_band", "human score", KEYS) + paragraph(note, "soft")


def _by(plans: Mapping[str, Any], key: str, heading: str, metrics: Sequence[str]) -> str:
    """A row for each slice and plan: narrow enough for a phone, whatever the number of plans."""
    notes = Notes()
    rows = [
        [of_plan(name, plan), found["clips"], found["singers"], *(metric_html(found, m, notes) for m in metrics)]
        for name in next(iter(plans.values()))[key]
        for plan, found in ((plan, figures[key][name]) for plan, figures in plans.items())
    ]
    return noted_table([heading, "clips", "singers", *(TITLES[m] for m in metrics)], rows, notes)


def at_the_top(plans: Mapping[str, Any]) -> str:
    """Precision and recall of the clips that people put at or above 85 and 90."""
    notes = Notes()
    rows = [
        [of_plan(f"{top} or above", plan), one["clips"], one["predicted"],
         figure_html(one["precision"], notes, "share"), figure_html(one["recall"], notes, "share")]
        for top in next(iter(plans.values()))["at_or_above"]
        for plan, one in ((plan, figures["at_or_above"][top]) for plan, figures in plans.items())
    ]  # fmt: skip
    note = (
        "Precision: of the clips that the model puts there, the share that people put there. Recall: of those that "
        "people put there, the share that the model does."
    )
    headers = ["human score", "clips there", "predicted there", "precision", "recall"]
    return noted_table(headers, rows, notes) + paragraph(note, "soft")


def singers_and_songs(plans: Mapping[str, Any]) -> str:
    """Singers' means, order inside songs, and the songs with the largest errors."""
    notes = Notes()
    rows: list[list[Any]] = []
    for plan, figures in plans.items():
        singer, song = figures["by_singer"], figures["by_song"]
        rows.append(
            [plan_title(plan), singer["singers"], metric_html(singer, "spearman", notes),
             metric_html(singer, "mae", notes), song["songs"], metric_html(song, "spearman", notes)]
        )  # fmt: skip
    headers = ["", "singers", "Spearman of their means", "MAE of their means", "songs", "Spearman inside songs"]
    first = next(iter(plans.values()))
    note = (
        f"Singers with {first['by_singer']['min_clips']} clips or more, songs with {first['by_song']['min_clips']} "
        "clips or more."
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
    return f"<details><summary>The songs furthest off</summary>{listed}</details>"
