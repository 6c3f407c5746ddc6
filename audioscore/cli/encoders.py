"""`audioscore encoders`: download MuQ and CAM++."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from audioscore.cli.options import SOME_FAILED, JsonOption
from audioscore.errors import ModelError, UsageError

if TYPE_CHECKING:
    from audioscore.encoders.download import Pulled
    from audioscore.encoders.features import Kind

app = typer.Typer(no_args_is_help=True)


@app.callback()
def group() -> None:
    """Download the encoders MuQ and CAM++."""


@app.command("pull")
def pull(
    config: Annotated[
        Path | None, typer.Option(help="YAML configuration that names the encoders. Default: the published ones.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="Download one encoder only: muq or campplus.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Download and verify MuQ and CAM++.

    Print revision, folder, licence and SHA-256 of each. Cached files are only verified; interrupted downloads are
    resumed. The exit code is 3 if one encoder failed, and 2 if both failed.
    """
    from audioscore.encoders.download import pull_encoder

    results: list[dict[str, Any]] = []
    errors: list[ModelError] = []
    for kind, section in _selected(config, only).items():
        try:
            pulled = pull_encoder(kind, **section)
        except ModelError as error:
            errors.append(error)
            results.append({"kind": kind, "source": section["source"], "error": str(error)})
        else:
            results.append(pulled.to_json() | {"error": None})
            if not as_json:
                _print(pulled)
    if as_json:
        typer.echo(json.dumps({"encoders": results}, ensure_ascii=False, indent=2))
    all_failed = len(errors) == len(results)
    for failure in errors[:-1] if all_failed else errors:
        typer.echo(f"error: {failure}", err=True)
    if all_failed:
        raise errors[-1]
    if errors:
        raise typer.Exit(SOME_FAILED)


def _selected(config: Path | None, only: str | None) -> dict["Kind", dict[str, Any]]:
    """Arguments of pull_encoder for each selected encoder."""
    from audioscore.encoders.download import PUBLISHED

    if only is not None and only not in PUBLISHED:
        raise UsageError(f"--only {only}: unknown encoder. Use muq or campplus.")
    sections: dict[Kind, dict[str, Any]] = {kind: {"source": source} for kind, source in PUBLISHED.items()}
    if config is not None:
        from audioscore.config import load_config

        encoders = load_config(config).encoders
        sections = {"muq": encoders.muq.model_dump(), "campplus": encoders.campplus.model_dump(exclude={"layer"})}
    return {kind: section for kind, section in sections.items() if only in (None, kind)}


def _print(pulled: "Pulled") -> None:
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
