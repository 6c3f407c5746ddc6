"""Values with their intervals as text and HTML, and tables with notes."""

import html
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from audioscore.evaluation.evaluate import BASELINE, HYBRID
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
EXCLUDED = "undefined resamples were excluded; evaluation.json has their number"
NOT_MEASURED = {"value": None, "lo": None, "hi": None, "no_interval": "not measured by the version that evaluated"}


class Notes:
    """Footnotes of one table: why a value has no interval, or an unusual one. Each reason has a letter."""

    def __init__(self) -> None:
        self.marks: dict[str, str] = {}

    def mark(self, reason: str) -> Html:
        """Return the mark of a reason; equal reasons share a mark."""
        letter = self.marks.setdefault(reason, _letter(len(self.marks)))
        return Html(f"<sup>{letter}</sup>")

    def html(self) -> Html:
        """Return the footnotes as one paragraph; empty without footnotes."""
        notes = "".join(f"<span><sup>{mark}</sup> {html.escape(text)}</span> " for text, mark in self.marks.items())
        return Html(f'<p class="notes">{notes.rstrip()}</p>' if notes else "")


def _letter(number: int) -> str:
    """Return the letters of a mark.

    >>> _letter(0), _letter(25), _letter(26)
    ('a', 'z', 'aa')
    """
    first, last = divmod(number, 26)
    return ("" if first == 0 else _letter(first - 1)) + chr(ord("a") + last)


def plan_title(plan: str) -> str:
    """Return the title of a plan.

    >>> plan_title("hybrid"), plan_title("muq_frozen")
    ('B hybrid', 'control: muq_frozen')
    """
    return PLAN_TITLES.get(plan, f"control: {plan}")


def of_plan(what: str, plan: str) -> str:
    """Name a row by what it shows and its plan, in one cell that stays visible when a wide table is scrolled."""
    return f"{what} \N{MIDDLE DOT} {plan_title(plan)}"


def number(value: float, unit: Unit = "ratio", sign: str = "") -> str:
    r"""Format a value, with a true minus sign; a value that rounds to zero has no sign.

    >>> number(-0.25) == "\N{MINUS SIGN}0.250", number(-0.0001), number(0.5, "share"), number(1.5, "points", "+")
    (True, '0.000', '50%', '+1.50')
    """
    text = f"{value:{sign}{FORMATS[unit]}}"
    text = text.lstrip("+-") if not text.strip("+-0.%") else text
    return text.replace("-", "\N{MINUS SIGN}")


def interval(found: Mapping[str, Any], unit: Unit = "ratio", sign: str = "") -> str | None:
    """Format an interval in brackets; None without an interval.

    >>> interval({"lo": 0.25, "hi": 0.75})
    '[0.250, 0.750]'
    """
    if found["lo"] is None or found["hi"] is None:
        return None
    return f"[{number(found['lo'], unit, sign)}, {number(found['hi'], unit, sign)}]"


def figure_text(found: Mapping[str, Any], unit: Unit = "ratio", name: str = "value", sign: str = "") -> str:
    """Format a value with its interval for plain text.

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


def estimate_html(
    found: Mapping[str, Any], notes: Notes, unit: Unit = "ratio", name: str = "value", sign: str = ""
) -> Html:
    """Format a value for a cell, with its interval or the mark of a footnote."""
    value, ends = found[name], interval(found, unit, sign)
    if value is None:
        return Html(f"-{notes.mark(found.get('no_interval', UNDEFINED))}")
    text = number(value, unit, sign)
    if ends is None:
        return Html(f"{text}{notes.mark(found.get('no_interval', NOT_COMPUTED))}")
    marks = notes.mark(found["method"]) if found.get("method") else ""
    marks += notes.mark(EXCLUDED) if found.get("undefined_resamples") else ""
    return Html(f'{text} <span class="interval">{ends}</span>{marks}')


def metric_html(figures: Mapping[str, Any], metric: str, notes: Notes) -> Html:
    """Format one metric of a plan, control or slice in its unit."""
    return estimate_html(figures[metric], notes, UNITS.get(metric, "ratio"), sign="+" if metric in SIGNED else "")


def bare_html(value: float | None, notes: Notes, reason: str, unit: Unit = "ratio", sign: str = "") -> Html:
    """Format a value that has no interval, with the mark of the reason."""
    return Html(("-" if value is None else number(value, unit, sign)) + notes.mark(reason))


def noted_table(headers: Sequence[str], rows: Sequence[Sequence[Any]], notes: Notes) -> str:
    """Return a table with its footnotes below."""
    return table(headers, rows) + notes.html()
