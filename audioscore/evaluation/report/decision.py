"""The gate's answer, part by part: against the champion, slice by slice, probe by probe."""

import html
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from audioscore.evaluation.evaluate import BASELINE, HYBRID
from audioscore.evaluation.gate.decision import CHAMPION
from audioscore.html import Html, paragraph, table

Unit = Literal["ratio", "points", "score", "share"]

PLAN_TITLES = {BASELINE: "A baseline", HYBRID: "B hybrid"}
METRIC_TITLES = {
    "spearman_within_source": "Spearman within source",
    "spearman": "Spearman overall",
    "pairwise_accuracy": "Pairwise accuracy",
    "kendall": "Kendall τ-b",
    "pearson": "Pearson",
    "mae": "MAE, points",
    "rmse": "RMSE, points",
    "bias": "Bias, points",
}
UNITS: Mapping[str, Unit] = {"mae": "points", "rmse": "points", "bias": "points"}
FORMATS: Mapping[Unit, str] = {"ratio": ".3f", "points": ".2f", "score": ".1f", "share": ".0%"}
SIGNED = frozenset({"bias"})
UNDEFINED = "undefined"
NOT_COMPUTED = "no interval was computed"
LEFT_OUT = "some resamples have no value and were left out; evaluation.json counts them"


class Notes:
    """Reasons why figures of one table have no interval, or an unusual one: a letter each, spelled out below it."""

    def __init__(self) -> None:
        self.marks: dict[str, str] = {}

    def mark(self, reason: str) -> Html:
        """The mark that stands for a reason; equal reasons share it."""
        letter = self.marks.setdefault(reason, _letter(len(self.marks)))
        return Html(f"<sup>{letter}</sup>")

    def html(self) -> Html:
        """The reasons as one paragraph; empty where there are none."""
        told = "".join(f"<span><sup>{mark}</sup> {html.escape(text)}</span> " for text, mark in self.marks.items())
        return Html(f'<p class="notes">{told.rstrip()}</p>' if told else "")


def _letter(number: int) -> str:
    """Names of marks.

    >>> _letter(0), _letter(25), _letter(26)
    ('a', 'z', 'aa')
    """
    first, last = divmod(number, 26)
    return ("" if first == 0 else _letter(first - 1)) + chr(ord("a") + last)


def plan_title(plan: str) -> str:
    """What a reader calls a plan.

    >>> plan_title("hybrid"), plan_title("muq_frozen")
    ('B hybrid', 'control: muq_frozen')
    """
    return PLAN_TITLES.get(plan, f"control: {plan}")


def of_plan(what: str, plan: str) -> str:
    """A row's name where every plan has one: both stay in sight where a wide table is scrolled."""
    return f"{what} \N{MIDDLE DOT} {plan_title(plan)}"


def number(value: float, unit: Unit = "ratio", sign: str = "") -> str:
    r"""A value as text with a true minus; one that rounds to zero has no sign.

    >>> number(-0.25) == "\N{MINUS SIGN}0.250", number(-0.0001), number(0.5, "share"), number(1.5, "points", "+")
    (True, '0.000', '50%', '+1.50')
    """
    text = f"{value:{sign}{FORMATS[unit]}}"
    text = text.lstrip("+-") if not text.strip("+-0.%") else text
    return text.replace("-", "\N{MINUS SIGN}")


def interval(found: Mapping[str, Any], unit: Unit = "ratio", sign: str = "") -> str | None:
    """Both ends of a figure's interval in brackets; None where it has none.

    >>> interval({"lo": 0.25, "hi": 0.75})
    '[0.250, 0.750]'
    """
    if found["lo"] is None or found["hi"] is None:
        return None
    return f"[{number(found['lo'], unit, sign)}, {number(found['hi'], unit, sign)}]"


def figure_text(found: Mapping[str, Any], unit: Unit = "ratio", name: str = "value", sign: str = "") -> str:
    """A figure for plain text.

    >>> figure_text({"value": 0.5, "lo": 0.25, "hi": 0.75})
    '0.500 [0.250, 0.750]'
    >>> figure_text({"value": 0.5, "lo": None, "hi": None, "no_interval": "one singer"})
    '0.500 (no interval: one singer)'
    >>> figure_text({"value": None, "lo": None, "hi": None, "no_interval": "one singer"})
    'undefined (one singer)'
    """
    value, ends = found[name], interval(found, unit, sign)
    if value is None:
        return f"{UNDEFINED} ({found['no_interval']})" if found.get("no_interval") else UNDEFINED
    return f"{number(value, unit, sign)} {ends or '(no interval: ' + found.get('no_interval', NOT_COMPUTED) + ')'}"


def figure_html(
    found: Mapping[str, Any], notes: Notes, unit: Unit = "ratio", name: str = "value", sign: str = ""
) -> Html:
    """A figure for a cell: with its interval, or with a mark that `notes` spell out."""
    value, ends = found[name], interval(found, unit, sign)
    if value is None:
        return Html(f"-{notes.mark(found.get('no_interval', UNDEFINED))}")
    text = number(value, unit, sign)
    if ends is None:
        return Html(f"{text}{notes.mark(found.get('no_interval', NOT_COMPUTED))}")
    marks = notes.mark(found["method"]) if found.get("method") else ""
    marks += notes.mark(LEFT_OUT) if found.get("undefined_resamples") else ""
    return Html(f'{text} <span class="interval">{ends}</span>{marks}')


def metric_html(figures: Mapping[str, Any], metric: str, notes: Notes) -> Html:
    """One metric of a plan, a control or a slice, in its unit."""
    return figure_html(figures[metric], notes, UNITS.get(metric, "ratio"), sign="+" if metric in SIGNED else "")


def bare_html(value: float | None, notes: Notes, reason: str, unit: Unit = "ratio", sign: str = "") -> Html:
    """A number that can have no interval, with a mark that says why."""
    return Html(("-" if value is None else number(value, unit, sign)) + notes.mark(reason))


def noted_table(headers: Sequence[str], rows: Sequence[Sequence[Any]], notes: Notes) -> str:
    """A table with the reasons its cells refer to below it."""
    return table(headers, rows) + notes.html()


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
