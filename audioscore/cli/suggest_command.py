"""`audioscore suggest`: which recordings to have scored next."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from audioscore.cli.data_options import JsonOption, SingerOption

if TYPE_CHECKING:
    from audioscore.tracking.suggest import Suggestions

SOME_FAILED = 3


def suggest(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Recordings; those its labels table scores are skipped.")
    ],
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="How many to suggest.")] = 50,
    run: Annotated[
        str | None, typer.Option(help="The run whose scorers judge: an id or a folder; the last finished by default.")
    ] = None,
    singer_from: SingerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rank recordings without a score by what scoring them would teach, the most useful first."""
    from audioscore.cli.progress import stages
    from audioscore.cli.run import find_run
    from audioscore.home import home
    from audioscore.tracking.suggest import suggest_clips, trained_in

    judges = find_run(run)
    with stages() as stage:
        found = suggest_clips(
            folder, trained_in(judges), singer_from=singer_from, memory=home().probes, progress=stage("listening")
        )
    if as_json:
        document = {
            "run": judges.name,
            "models": found.models,
            "scored": found.scored,
            "unscored": len(found.ranked),
            "suggestions": [one.to_json() for one in found.ranked[:number]],
            "refused": [{"audio_file": name, "reason": reason} for name, reason in found.refused.items()],
        }
        typer.echo(json.dumps(document, ensure_ascii=False, indent=2))
    else:
        _print_table(found, number, judges.name)
    if found.refused:
        raise typer.Exit(SOME_FAILED)


def _print_table(found: "Suggestions", number: int, run: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = min(number, len(found.ranked))
    said = f"{shown} of {len(found.ranked)} unscored recordings, by {found.models} models of {run}"
    table = Table(box=None, pad_edge=False, caption=escape(said), caption_justify="left")
    table.add_column("file", overflow="fold")
    for heading in ("gain", "score", "models differ by", "interval", "sparse", "new voice"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found.ranked[:number]:
        figures = (f"{one.gain:.2f}", f"{one.predicted:.1f}", f"{one.disagreement:.1f}", f"{one.width:.1f}")
        table.add_row(escape(one.audio_file), *figures, f"{one.sparsity:.2f}", f"{one.novelty:.2f}")
    Console().print(table)
    for name, reason in found.refused.items():
        typer.echo(f"cannot be scored: {name}: {reason}", err=True)
