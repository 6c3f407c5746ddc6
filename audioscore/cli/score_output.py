"""Scores as a table for people, one JSON document, or lines of CSV."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audioscore.scoring.results import ClipScore

COLUMNS = ("file", "score", "lo", "hi", "raw", "seconds", "error")


def json_row(row: "ClipScore", *, timeline: bool) -> dict[str, Any]:
    """A result as `score --json` has it."""
    told = row.to_json()
    return told if timeline else {name: value for name, value in told.items() if name != "timeline"}


def csv_lines(rows: "Iterable[ClipScore]") -> Iterator[str]:
    """A header and a line for each result, as each is known; numbers as JSON has them, nothing where there is none."""
    yield _line(COLUMNS)
    for row in rows:
        one = json_row(row, timeline=False)
        low, high = one["interval"] or (None, None)
        yield _line((one["file"], one["score"], low, high, one["raw"], one["seconds"], one["error"]))


def _line(values: Sequence[Any]) -> str:
    written = io.StringIO()
    csv.writer(written, lineterminator="").writerow(values)
    return written.getvalue()


def print_table(model: str, rows: "Sequence[ClipScore]") -> None:
    """Scores with their intervals; below the table, why some have none."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, caption=f"scored by {escape(model)}", caption_justify="left")
    table.add_column("file", overflow="fold")
    for heading in ("score", "90 % interval", "length"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        name = escape(row.file)
        if row.score is None or row.interval is None or row.seconds is None:
            table.add_row(name, "-", "-", "-")
            continue
        low, high = row.interval
        table.add_row(name, f"{row.score:.1f}", f"{low:.1f} - {high:.1f}", f"{row.seconds:.1f} s")
        if row.timeline is not None:
            table.add_row(f"  [dim]{timeline_text(row)}[/dim]", "", "", "")
    console = Console()
    console.print(table)
    for row in rows:
        if row.error is not None:
            console.print(f"[red]{escape(row.error)}[/red]", highlight=False, soft_wrap=True)


def timeline_text(row: "ClipScore") -> str:
    """Scores along a recording on one line, at most a dozen, each at the middle of its span.

    >>> from audioscore.scoring.results import ClipScore, Moment
    >>> timeline_text(ClipScore("a", timeline=(Moment(0, 10, 81.24), Moment(2.5, 12.5, 79))))
    '0:05 81.2  0:08 79.0'
    """
    moments = row.timeline or ()
    step = -(-len(moments) // 12) or 1
    shown = [(round((one.start + one.end) / 2), one.score) for one in moments[::step]]
    return "  ".join(f"{at // 60}:{at % 60:02d} {score:.1f}" for at, score in shown)
