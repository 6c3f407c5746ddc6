"""A figure in words: its value, its interval, or a mark of the reason why it has none."""

import html
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from audioscore.evaluation.comparison import BASELINE, HYBRID
from audioscore.html import Html, table

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
