"""What degraded recordings do to the scores, and how much of the recording domain a model knows."""

from collections.abc import Mapping
from typing import Any

from audioscore.evaluation.report.figure_text import Notes, bare_html, figure_html, noted_table, of_plan, plan_title
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
