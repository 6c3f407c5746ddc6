"""`audioscore encoders`: the networks that hear, and where they are."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from audioscore.errors import ModelError, UsageError

if TYPE_CHECKING:
    from audioscore.encoders.download import Pulled
    from audioscore.encoders.features import Kind

SOME_FAILED = 3

app = typer.Typer(help="Fetch the encoders: MuQ and CAM++.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Fetch the encoders: MuQ and CAM++."""


@app.command("pull")
def pull(
    config: Annotated[
        Path | None, typer.Option(help="YAML configuration that names the encoders; default: the published ones.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="One of them: muq or campplus.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    """Fetch MuQ and CAM++ into their hubs' caches, load them, and print revision, folder, licence and SHA-256.

    What is there already is only checked; what was cut off is resumed. Exit code 3 where one came and the other did
    not, 2 where none did.
    """
    from audioscore.encoders.download import pull_encoder

    results: list[dict[str, Any]] = []
    faults: list[ModelError] = []
    for kind, section in _wanted(config, only).items():
        row: dict[str, Any] = {"kind": kind, "source": section["source"], "error": None}
        try:
            pulled = pull_encoder(kind, **section)
        except ModelError as fault:
            faults.append(fault)
            row["error"] = str(fault)
        else:
            row = pulled.to_json() | {"error": None}
            if not as_json:
                _tell(pulled)
        results.append(row)
    if as_json:
        typer.echo(json.dumps({"encoders": results}, ensure_ascii=False, indent=2))
    if len(faults) == len(results):
        for failed in faults[:-1]:
            typer.echo(f"error: {failed}", err=True)
        raise faults[-1]
    for failed in faults:
        typer.echo(f"error: {failed}", err=True)
    if faults:
        raise typer.Exit(SOME_FAILED)


def _wanted(config: Path | None, only: str | None) -> dict["Kind", dict[str, Any]]:
    """What to pull: for each encoder, the arguments of pull_encoder."""
    from audioscore.encoders.download import PUBLISHED

    if only is not None and only not in PUBLISHED:
        raise UsageError(f"--only {only}: no such encoder. Give muq or campplus.")
    wanted: dict[Kind, dict[str, Any]] = {kind: {"source": source} for kind, source in PUBLISHED.items()}
    if config is not None:
        from audioscore.config import load_config

        encoders = load_config(config).encoders
        muq, campplus = encoders.muq, encoders.campplus
        wanted = {
            "muq": {"source": muq.source, "revision": muq.revision, "layer": muq.layer, "sha256": muq.sha256},
            "campplus": {"source": campplus.source, "revision": campplus.revision, "sha256": campplus.sha256},
        }
    return {kind: section for kind, section in wanted.items() if only in (None, kind)}


def _tell(pulled: "Pulled") -> None:
    typer.echo(f"{pulled.kind:<10}{pulled.source}")
    if pulled.id is not None:
        asked = pulled.asked if pulled.asked not in (None, pulled.revision) else None
        typer.echo(f"  revision  {pulled.revision}{f' ({asked})' if asked else ''}")
        typer.echo(f"  folder    {pulled.folder}")
    typer.echo(f"  licence   {pulled.licence}")
    typer.echo(f"  sha256    {pulled.sha256}")
    for file in pulled.files:
        typer.echo(f"  file      {file.sha256}  {file.bytes:>13,} bytes  {file.name}")
    for note in pulled.notes:
        typer.echo(f"  note      {note}")
