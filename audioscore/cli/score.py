"""`audioscore score`: recordings to scores, with the registered winner unless told otherwise."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from audioscore.errors import UsageError
from audioscore.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from audioscore.scoring.results import ClipScore


WIDTH, HEIGHT, DPI = 9.0, 3.2, 130  # inches; dots an inch
MARGIN = 3.0  # points of score above and below what is drawn


def write_picture(row: "ClipScore", folder: Path) -> Path:
    """Draw a result's timeline into `folder`, as NAME.timeline.png; what is there under that name stays.

    Raises UsageError where the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise UsageError(f"--pictures {folder}: cannot be made ({fault.strerror}). Name another folder.") from fault
    stem = Path(row.file).name or "recording"
    target, number = folder / f"{stem}.timeline.png", 1
    while target.exists():
        number += 1
        target = folder / f"{stem}.timeline-{number}.png"
    with atomic_path(target) as temporary:
        timeline_figure(row).savefig(temporary, format="png", dpi=DPI)
    return target


def timeline_figure(row: "ClipScore") -> "Figure":
    """Scores along a recording, each at the middle of its span, over the whole recording's score and interval."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from audioscore.html import INK, PALETTE, style_axes

    if not row.timeline or row.score is None or row.interval is None:
        raise ValueError(f"{row.file}: there is no timeline to draw")
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    style_axes(axes)
    low, high = row.interval
    axes.axhspan(low, high, color=INK, alpha=0.07, linewidth=0)
    axes.axhline(row.score, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"{row.score:.1f}", (1, row.score), xycoords=("axes fraction", "data"), xytext=(4, 0),
        textcoords="offset points", va="center", color=INK,
    )  # fmt: skip
    scores = [moment.score for moment in row.timeline]
    middles = [(moment.start + moment.end) / 2 for moment in row.timeline]
    axes.plot(middles, scores, color=PALETTE[0], linewidth=2, marker="o", markersize=3.5)
    axes.set_xlim(0, row.timeline[-1].end)
    axes.set_ylim(max(0.0, min(low, *scores) - MARGIN), min(100.0, max(high, *scores) + MARGIN))
    axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 1.5, 3, 6, 10]))  # whole parts of a minute
    axes.xaxis.set_major_formatter(lambda at, _: f"{int(at) // 60}:{int(at) % 60:02d}")
    axes.set_xlabel("time")
    axes.set_ylabel("score")
    # Names in scripts that the font has not would be drawn as boxes, with a warning for each.
    axes.set_title("" if not Path(row.file).name.isascii() else Path(row.file).name, loc="left", parse_math=False)
    return figure


SOME_FAILED = 3


def score(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Recordings, folders, patterns, s3:// links, or - for a list on stdin."),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="A scorer folder, models:/NAME@ALIAS, or a predecessor's folder. Default: models:/audioscore@champion."
        ),
    ] = None,
    timeline: Annotated[
        bool, typer.Option("--timeline", help="Also a score each 2.5 s, and a picture of it for each recording.")
    ] = False,
    pictures: Annotated[
        Path | None, typer.Option(help="Where --timeline puts its pictures; default: this folder.")
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Multiply 16-bit integers where the CPU does so quicker; less exact.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, a line as soon as it is known.")] = False,
) -> None:
    """Score recordings. A recording that cannot be judged gets a sentence instead of a score, and exit code 3."""
    from audioscore.encoders.compute import wait_asleep
    from audioscore.errors import UsageError

    wait_asleep()
    if as_json and as_csv:
        raise UsageError("--json and --csv: only one of them can be printed. Choose one.")
    if pictures is not None and not timeline:
        raise UsageError(f"--pictures {pictures}: there are pictures of a timeline alone. Add --timeline.")
    from audioscore.cli import score as score_output
    from audioscore.cli.options import find_model, takes_of
    from audioscore.encoders.extract import choose_device
    from audioscore.scoring.checkpoint import load_scorer

    takes = takes_of(files)
    name, folder = find_model(model)
    scorer = load_scorer(folder, device=choose_device(device), fast=fast, needs_voice=True)
    if fast and not scorer.is_faster:
        typer.echo("note: --fast changes nothing here: it is for MuQ of the published size, and some CPUs", err=True)
    failed: list[str] = []
    rows = _watched(
        scorer.score_many(takes, timeline=timeline), len(takes), failed, (pictures or Path()) if timeline else None
    )
    if as_csv:
        for line in score_output.csv_lines(rows):
            typer.echo(line)
    elif as_json:
        results = [score_output.json_row(row, timeline=timeline) for row in rows]
        typer.echo(json.dumps({"model": name, "results": results}, ensure_ascii=False, indent=2))
    else:
        score_output.print_table(name, list(rows))
    if failed:
        raise typer.Exit(SOME_FAILED)


def _watched(
    rows: "Iterator[ClipScore]", total: int, failed: list[str], pictures: Path | None
) -> "Iterator[ClipScore]":
    """The same rows, with a bar on a terminal, a picture of each timeline, and a note of those that failed."""
    from audioscore.cli.options import stages

    with stages() as stage:
        show = stage("scoring")
        for done, row in enumerate(rows, start=1):
            if row.error is not None:
                failed.append(row.file)
            elif pictures is not None and row.timeline:
                typer.echo(f"note: {write_picture(row, pictures)} shows the timeline of {row.file}", err=True)
            if show is not None:
                show(done, total)
            yield row


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
