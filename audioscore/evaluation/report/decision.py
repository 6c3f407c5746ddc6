"""The gate's answer, part by part: against the champion, slice by slice, probe by probe."""

from collections.abc import Mapping
from typing import Any

from audioscore.evaluation.gate.beside_champion import CHAMPION
from audioscore.evaluation.report.figure_text import (
    METRIC_TITLES,
    PLAN_TITLES,
    Notes,
    bare_html,
    figure_html,
    metric_html,
    noted_table,
    plan_title,
)
from audioscore.html import paragraph

METRICS = ("spearman_within_source", "spearman", "pairwise_accuracy", "mae")
RANKS = METRICS[:2]
SENTENCE = (
    "Where the gate's sentence gives two Spearman and one interval, the interval is that of their difference, which is "
    "what decides; both have their own further down."
)
OF_DIFFERENCE = "the difference has the interval"
TOO_SMALL = "so few clips or singers are not judged"
NOT_COMPARED = "the gate compares ranks"
NO_RESAMPLES = "the gate computed none: most resamples are undefined"


def lead_text(decision: Mapping[str, Any] | None) -> tuple[str, bool | None]:
    """The page's first sentence, and whether it is a yes."""
    if decision is None:
        return "Not decided yet: the gate has not been asked whether the winner may be promoted.", None
    return f"{'Promoted' if decision['promoted'] else 'Not promoted'}: {decision['reason']}.", decision["promoted"]


def decision_parts(
    decision: Mapping[str, Any] | None, evaluation: Mapping[str, Any], probes: Mapping[str, Any] | None
) -> str:
    """What the decision rests on, and what a reader of any figure below must know."""
    warnings = "".join(paragraph(text, "bad") for text in evaluation["warnings"])
    if decision is None:
        return warnings or paragraph("Nothing was decided.", "soft")
    winner = decision.get("winner")
    chosen = f"The winner on validation, over all its seeds, is {plan_title(winner)}. " if winner else ""
    parts = [
        paragraph(chosen + SENTENCE, "soft"),
        _difference(decision),
        _slices(decision),
        paragraph(_flagged(decision, winner, probes)),
        warnings,
    ]
    return "".join(parts)


def _difference(decision: Mapping[str, Any]) -> str:
    ground = [
        f"{decision[key]} {name}" for key, name in (("clips", "clips"), ("singers", "singers")) if key in decision
    ]
    if dropped := decision.get("dropped", 0):
        ground.append(f"{dropped} more clips left out, because a model had trained on them")
    judged = paragraph(f"Judged on {', '.join(ground)}.") if ground else ""
    if decision.get("delta") is None:
        return judged + paragraph("There is no difference to a champion: none was there, or nothing could be compared.")
    notes = Notes()
    found = {"no_interval": NO_RESAMPLES, "lo": None, "hi": None, **decision}
    row = ["Spearman, winner minus champion", figure_html(found, notes, name="delta", sign="+")]
    return judged + noted_table(["the gate's figure", "difference"], [row], notes)


def _slices(decision: Mapping[str, Any]) -> str:
    """Every slice the gate looked at: what fell, what was kept, and what was too small to judge."""
    slices = decision.get("slices", [])
    if not slices:
        return ""
    notes = Notes()
    rows = []
    for one in slices:
        small = one["verdict"] == "too small"
        why = TOO_SMALL if small else OF_DIFFERENCE
        difference = {**one, "no_interval": TOO_SMALL if small else NO_RESAMPLES}
        rows.append(
            [
                f"{one['kind']} {one['name']}", one["verdict"], figure_html(difference, notes, name="delta", sign="+"),
                bare_html(one["challenger"], notes, why), bare_html(one["champion"], notes, why),
                one["clips"], one["singers"],
            ]
        )  # fmt: skip
    fell, few = (sum(one["verdict"] == verdict for one in slices) for verdict in ("fell", "too small"))
    said = f"Of {len(slices)} slices the winner fell on {fell}; {few} were too small to judge."
    headers = ["slice", "verdict", "difference", "winner", "champion", "clips", "singers"]
    return paragraph(said) + noted_table(headers, rows, notes)


def _flagged(decision: Mapping[str, Any], winner: str | None, probes: Mapping[str, Any] | None) -> str:
    """Which probes flag the winner, and which of them refuse it, in one sentence."""
    if refusing := decision.get("probes"):
        return f"Refused by the probes {', '.join(refusing)}: the model rewards these faults."
    of_winner = None if probes is None or winner is None else probes["plans"].get(winner)
    if of_winner is None or not of_winner["degradations"]:
        return "No probe was asked about the winner."
    flags = [one["title"] for one in of_winner["degradations"].values() if one["flagged"]]
    if not flags:
        return "No probe flags the winner."
    return f"Probes flag the winner, without refusing it: {'; '.join(flags)}."


def beside_the_champion(champion: Mapping[str, Any] | None, plans: Mapping[str, Any]) -> str:
    """The candidates and the champion on the clips that none of them has seen, and each difference."""
    if champion is None:
        return paragraph("There was no champion to score beside the plans.", "soft")
    if "reason" in champion:
        return paragraph(f"The champion could not be scored beside the plans: {champion['reason']}", "soft")
    notes = Notes()
    others = [plan for plan in champion["plans"] if plan != CHAMPION and plan in plans]
    names = [CHAMPION, *([plan for plan in others if plan in PLAN_TITLES] or others)]
    rows = [
        [
            CHAMPION if name == CHAMPION else plan_title(name),
            *(metric_html(champion["plans"][name], metric, notes) for metric in METRICS),
        ]
        for name in names
    ]
    compared = champion["variants"]["compared"]
    differences = [
        [
            f"{plan_title(name)} minus champion",
            *(figure_html(compared[name][metric], notes, name="delta", sign="+") for metric in RANKS),
            *(bare_html(None, notes, NOT_COMPARED) for _ in METRICS[2:]),
        ]
        for name in names[1:]
    ]
    left_out = f", {champion['dropped']} more left out" if champion["dropped"] else ""
    ground = (
        f"Scored now, on the {champion['counts']['clips']} test clips of {champion['counts']['singers']} singers that "
        f"neither the champion nor a plan was trained on{left_out}."
    )
    headers = ["", *(METRIC_TITLES[metric] for metric in METRICS)]
    return paragraph(ground) + noted_table(headers, [*rows, *differences], notes)
