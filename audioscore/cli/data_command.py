"""`audioscore data`: the corpus and its versions."""

import json
from pathlib import Path
from typing import Annotated

import typer

from audioscore.errors import UsageError

app = typer.Typer(help="Check and fetch data folders.", no_args_is_help=True)

GATE_SAID_NO = 1


@app.callback()
def group() -> None:
    """Check and fetch data folders."""


@app.command("validate")
def validate(
    folder: Annotated[Path, typer.Argument(help="Data folder: labels.csv (or xlsx, tsv, jsonl) and its recordings.")],
    report: Annotated[Path | None, typer.Option(help="Where to write the HTML page.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML configuration with the gate's settings.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    """Check the labels table and every recording. Exit code 1 where the gate says no."""
    from audioscore.config import SMALL, load_config
    from audioscore.data.accepted import settings_of
    from audioscore.data.validation import validate_folder
    from audioscore.data.validation_report import render_validation
    from audioscore.files import write_text

    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder. Give the folder that holds the labels table.")
    result = validate_folder(folder, settings=settings_of(load_config(config or SMALL)))
    if report is not None:
        write_text(report, render_validation(result, folder))
    if as_json:
        typer.echo(json.dumps(result.to_json(str(report) if report else None), ensure_ascii=False, indent=2))
    else:
        for rejected in result.rejected:
            typer.echo(f"rejected  row {rejected['row']}  {rejected['audio_file']}: {rejected['reason']}")
        for warning in result.warnings:
            typer.echo(f"warning   {warning}")
        typer.echo(f"{len(result.accepted)} of {result.clips} clips accepted, {len(result.rejected)} rejected")
        for reason in result.reasons:
            typer.echo(f"gate: no  {reason}")
    if not result.valid:
        raise typer.Exit(GATE_SAID_NO)


@app.command("pull")
def pull(
    folder: Annotated[Path, typer.Argument(help="Repository whose data is pulled.")] = Path(),
) -> None:
    """Fetch the versioned corpus and the small encoders from the DVC remote, as the repository records them."""
    from audioscore.data.versioning import pull as pull_records

    records = sorted(path for path in [*folder.glob("*.dvc"), *folder.glob("pipelines/*.dvc")] if path.is_file())
    if not records:
        raise UsageError(f"{folder.resolve()}: holds no .dvc file. Change into a clone of the repository.")
    fetched = pull_records(records)
    typer.echo(f"{', '.join(record.stem for record in records)}: up to date, {fetched} files fetched")
