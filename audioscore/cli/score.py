"""`audioscore score`: recordings to scores, with the registered winner unless told otherwise."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from audioscore.scoring.results import ClipScore

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
    from audioscore.encoders.threads import wait_asleep
    from audioscore.errors import UsageError

    wait_asleep()
    if as_json and as_csv:
        raise UsageError("--json and --csv: only one of them can be printed. Choose one.")
    if pictures is not None and not timeline:
        raise UsageError(f"--pictures {pictures}: there are pictures of a timeline alone. Add --timeline.")
    from audioscore.cli import score_output
    from audioscore.cli.find_model import find_model
    from audioscore.cli.options import takes_of
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
    from audioscore.cli.progress import stages

    with stages() as stage:
        show = stage("scoring")
        for done, row in enumerate(rows, start=1):
            if row.error is not None:
                failed.append(row.file)
            elif pictures is not None and row.timeline:
                from audioscore.cli.score_picture import write_picture

                typer.echo(f"note: {write_picture(row, pictures)} shows the timeline of {row.file}", err=True)
            if show is not None:
                show(done, total)
            yield row
