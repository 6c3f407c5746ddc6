"""`audioscore score`: score recordings with a model, by default the champion."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from audioscore.cli.options import (
    SOME_FAILED,
    DeviceOption,
    FastOption,
    JsonOption,
    find_model,
    find_recordings,
    stages,
)
from audioscore.errors import UsageError
from audioscore.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from audioscore.scoring.results import ClipScore

COLUMNS = ("file", "score", "lo", "hi", "raw", "seconds", "error", "notes")
WIDTH, HEIGHT, DPI = 9.0, 3.2, 130  # inches, inches, dots per inch
MARGIN = 3.0  # points of score above and below the curve


def score(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Recordings, folders, patterns, s3:// links, or - for a list on stdin."),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="Scorer folder, models:/NAME@ALIAS, or legacy model folder. Default: models:/audioscore@champion."
        ),
    ] = None,
    timeline: Annotated[
        bool, typer.Option("--timeline", help="Also score every 2.5 s, and draw a picture for each recording.")
    ] = False,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder of the pictures of --timeline. Default: the working folder.")
    ] = None,
    fast: FastOption = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, one line as soon as each result exists.")] = False,
) -> None:
    """Score recordings. If a recording cannot be scored, print an error for it and exit with 3."""
    from audioscore.encoders.compute import set_passive_waiting

    set_passive_waiting()
    if as_json and as_csv:
        raise UsageError("--json and --csv: they exclude each other. Choose one.")
    if pictures is not None and not timeline:
        raise UsageError(f"--pictures {pictures}: needs --timeline. Add it.")
    from audioscore.encoders.compute import choose_device
    from audioscore.scoring.checkpoint import load_scorer

    recordings = find_recordings(files)
    name, folder = find_model(model)
    scorer = load_scorer(folder, device=choose_device(device), fast=fast, needs_voice=True)
    if fast and not scorer.uses_fast_kernels:
        typer.echo("note: --fast has no effect: it needs MuQ of the published size, and certain CPUs", err=True)
    failed: list[str] = []
    rows = _with_side_effects(
        scorer.score_many(recordings, timeline=timeline),
        len(recordings),
        failed,
        (pictures or Path()) if timeline else None,
    )
    if as_csv:
        for line in csv_lines(rows):
            typer.echo(line)
    elif as_json:
        results = [json_row(row, timeline=timeline) for row in rows]
        typer.echo(json.dumps({"model": name, "results": results}, ensure_ascii=False, indent=2))
    else:
        _print_table(name, list(rows))
    if failed:
        raise typer.Exit(SOME_FAILED)


def _with_side_effects(
    rows: "Iterator[ClipScore]", total: int, failed: list[str], pictures: Path | None
) -> "Iterator[ClipScore]":
    """Yield the rows unchanged; show progress, draw timelines, and append files without a score to `failed`."""
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


def json_row(row: "ClipScore", *, timeline: bool) -> dict[str, Any]:
    """Return a result in the format of `score --json`."""
    document = row.to_json()
    return document if timeline else {name: value for name, value in document.items() if name != "timeline"}


def csv_lines(rows: "Iterable[ClipScore]") -> Iterator[str]:
    """Yield a header, then a line for each result; numbers are formatted as in JSON, missing values are empty."""
    yield _csv_line(COLUMNS)
    for row in rows:
        one = json_row(row, timeline=False)
        low, high = one["interval"] or (None, None)
        yield _csv_line(
            (one["file"], one["score"], low, high, one["raw"], one["seconds"], one["error"], " ".join(row.notes))
        )


def _csv_line(values: Sequence[Any]) -> str:
    written = io.StringIO()
    csv.writer(written, lineterminator="\r\n").writerow(values)  # the writer quotes values with these characters
    return written.getvalue().removesuffix("\r\n")


def _print_table(model: str, rows: "Sequence[ClipScore]") -> None:
    """Print scores with their intervals, and below the table the notes and errors."""
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
        for note in row.notes:
            console.print(f"[dim]{escape(row.file)}: {escape(note)}[/dim]", highlight=False, soft_wrap=True)
        if row.error is not None:
            console.print(f"[red]{escape(row.error)}[/red]", highlight=False, soft_wrap=True)


def timeline_text(row: "ClipScore") -> str:
    """Format a timeline on one line: at most 12 segments, each with the time of its centre.

    >>> from audioscore.scoring.results import ClipScore, TimelineSegment
    >>> timeline_text(ClipScore("a", timeline=(TimelineSegment(0, 10, 81.24), TimelineSegment(2.5, 12.5, 79))))
    '0:05 81.2  0:08 79.0'
    """
    segments = row.timeline or ()
    step = -(-len(segments) // 12) or 1
    shown = [(round((one.start + one.end) / 2), one.score) for one in segments[::step]]
    return "  ".join(f"{at // 60}:{at % 60:02d} {score:.1f}" for at, score in shown)


def write_picture(row: "ClipScore", folder: Path) -> Path:
    """Draw a result's timeline into `folder` as NAME.timeline.png, without overwriting an existing picture.

    Raises UsageError if the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--pictures {folder}: cannot be created ({error.strerror}). Use another folder.") from error
    stem = Path(row.file).name or "recording"
    target, number = folder / f"{stem}.timeline.png", 1
    while target.exists():
        number += 1
        target = folder / f"{stem}.timeline-{number}.png"
    with atomic_path(target) as temporary:
        timeline_figure(row).savefig(temporary, format="png", dpi=DPI)
    return target


def timeline_figure(row: "ClipScore") -> "Figure":
    """Draw the scores of the segments, over the score and interval of the whole recording."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from audioscore.html import INK, PALETTE, style_axes

    if not row.timeline or row.score is None or row.interval is None:
        raise ValueError(f"{row.file}: the result has no timeline")
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
    scores = [segment.score for segment in row.timeline]
    centres = [(segment.start + segment.end) / 2 for segment in row.timeline]
    axes.plot(centres, scores, color=PALETTE[0], linewidth=2, marker="o", markersize=3.5)
    axes.set_xlim(0, row.timeline[-1].end)
    axes.set_ylim(max(0.0, min(low, *scores) - MARGIN), min(100.0, max(high, *scores) + MARGIN))
    axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 1.5, 3, 6, 10]))  # ticks at integer fractions of a minute
    axes.xaxis.set_major_formatter(lambda at, _: f"{int(at) // 60}:{int(at) % 60:02d}")
    axes.set_xlabel("time")
    axes.set_ylabel("score")
    # matplotlib's font lacks glyphs of other scripts: they would be boxes, each with a warning.
    axes.set_title("" if not Path(row.file).name.isascii() else Path(row.file).name, loc="left", parse_math=False)
    return figure
