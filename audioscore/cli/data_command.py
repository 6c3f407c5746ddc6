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


ConfigOption = Annotated[Path | None, typer.Option(help="YAML configuration; default: small.yaml.")]
MapOption = Annotated[list[str] | None, typer.Option("--map", help="A column's header: score=HEADER. May be repeated.")]
SingerOption = Annotated[str | None, typer.Option(help="Regular expression on the file name; its group is the singer.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


@app.command("validate")
def validate(
    folder: Annotated[Path, typer.Argument(help="Data folder: labels.csv (or xlsx, tsv, jsonl) and its recordings.")],
    report: Annotated[Path | None, typer.Option(help="Where to write the HTML page.")] = None,
    config: ConfigOption = None,
    column_map: MapOption = None,
    singer_from: SingerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check the labels table and every recording. Exit code 1 where the gate says no."""
    from audioscore.config import SMALL, load_config
    from audioscore.data.accepted import settings_of
    from audioscore.data.validation import validate_folder
    from audioscore.data.validation_report import render_validation
    from audioscore.files import write_text

    _require_folder(folder)
    settings = load_config(config or SMALL, reading_overrides(column_map, singer_from))
    result = validate_folder(folder, settings=settings_of(settings))
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


@app.command("sort")
def sort(
    folder: Annotated[Path, typer.Argument(help="Data folder; index/ and splits.json are written into it.")],
    report: Annotated[Path | None, typer.Option(help="Where to write the gate's HTML page.")] = None,
    config: ConfigOption = None,
    column_map: MapOption = None,
    singer_from: SingerOption = None,
) -> None:
    """Validate, then write the main list, high to low, and remember every singer's split in splits.json."""
    import tempfile

    from audioscore.config import SMALL, load_config
    from audioscore.data.accepted import run_gate
    from audioscore.data.sort import sort_folder

    _require_folder(folder)
    settings = load_config(config or SMALL, reading_overrides(column_map, singer_from))
    with tempfile.TemporaryDirectory() as scratch:
        run_gate(folder, Path(scratch), report or Path(scratch) / "report.html", settings)
        splits = sort_folder(folder, Path(scratch), folder, settings.split)
    for name, count in splits.report.splits.items():
        typer.echo(f"{name:<6} {count.clips} clips by {count.singers} singers, {count.songs} songs")


def reading_overrides(column_map: list[str] | None, singer_from: str | None) -> list[str]:
    """The settings that --map and --singer-from stand for. Raises UsageError where --map is not NAME=HEADER."""
    overrides = []
    for choice in column_map or []:
        name, equals, header = choice.partition("=")
        if not equals or not name.strip() or not header.strip():
            raise UsageError(f"--map {choice}: expected NAME=HEADER, for instance --map score=Points.")
        overrides.append(f"data.column_map.{name.strip()}={json.dumps(header.strip(), ensure_ascii=False)}")
    if singer_from is not None:
        overrides.append(f"data.singer_from={json.dumps(singer_from, ensure_ascii=False)}")
    return overrides


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder. Give the folder that holds the labels table.")


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
