"""`audioscore score`: recordings to scores, with the registered winner unless told otherwise."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

SOME_FAILED = 3


def score(
    files: Annotated[list[Path], typer.Argument(help="Recordings: m4a, mp3, flac, ogg, opus, wav, ...")],
    model: Annotated[
        str | None,
        typer.Option(help="A scorer folder, or models:/NAME@ALIAS. Default: models:/audioscore@champion."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    """Score recordings. A recording that cannot be judged gets a sentence instead of a score, and exit code 3."""
    from audioscore.cli.find_model import find_model
    from audioscore.errors import AudioError
    from audioscore.scoring.checkpoint import load_scorer

    name, folder = find_model(model)
    scorer = load_scorer(folder)
    results: list[dict[str, Any]] = []
    for path in files:
        row: dict[str, Any] = {
            "file": str(path),
            "score": None,
            "interval": None,
            "raw": None,
            "seconds": None,
            "error": None,
        }
        try:
            scored = scorer.score(path)
        except AudioError as fault:
            row["error"] = str(fault)
        else:
            row |= {
                "score": round(scored.score, 4),
                "interval": [round(end, 4) for end in scored.interval],
                "raw": scored.raw,
                "seconds": round(scored.seconds, 3),
            }
        results.append(row)
    if as_json:
        typer.echo(json.dumps({"model": name, "results": results}, ensure_ascii=False, indent=2))
    else:
        _print_table(name, results)
    if any(row["error"] for row in results):
        raise typer.Exit(SOME_FAILED)


def _print_table(name: str, results: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, caption=f"scored by {escape(name)}", caption_justify="left")
    table.add_column("file", overflow="fold")
    for heading in ("score", "90 % interval", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in results:
        if row["error"]:
            table.add_row(f"{escape(row['file'])}\n  [red]{escape(row['error'])}[/red]", "-", "-", "-")
        else:
            low, high = row["interval"]
            table.add_row(
                escape(row["file"]), f"{row['score']:.1f}", f"{low:.1f} - {high:.1f}", f"{row['seconds']:.1f}"
            )
    Console().print(table)
