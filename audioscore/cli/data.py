"""`audioscore data`: check, sort and version recordings and their scores."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from audioscore.cli import data_add
from audioscore.cli.options import (
    ConfigOption,
    JsonOption,
    MapOption,
    SingerOption,
    column_overrides,
    require_folder,
    stages,
)
from audioscore.errors import UsageError, shorten

if TYPE_CHECKING:
    from audioscore.data.versions.changes import FolderStatus, OtherFiles

REFUSED = 1  # exit code: the data gate refused

RemoteOption = Annotated[str | None, typer.Option(help="DVC remote. Default: the repository's default remote.")]

app = typer.Typer(no_args_is_help=True)
app.command("add")(data_add.add)
app.command("remove")(data_add.remove)


@app.callback()
def group() -> None:
    """Add, check, sort and version recordings and their scores."""


@app.command("validate")
def validate(
    folder: Annotated[Path, typer.Argument(help="Data folder: labels.csv (or xlsx, tsv, jsonl) and its recordings.")],
    report: Annotated[Path | None, typer.Option(help="HTML report to write.")] = None,
    table_only: Annotated[bool, typer.Option("--table-only", help="Check the table without the recordings.")] = False,
    config: ConfigOption = None,
    column_map: MapOption = None,
    singer_from: SingerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check the labels table and every recording. Exit with 1 if the data gate refuses."""
    from audioscore.config import SMALL, load_config
    from audioscore.data.gate.output import validation_settings
    from audioscore.data.gate.report import render_validation
    from audioscore.data.gate.validation import validate_folder
    from audioscore.data.labels import row_label
    from audioscore.files import check_can_be_file, write_text
    from audioscore.home import home

    require_folder(folder)
    if report is not None:
        check_can_be_file(report)
    settings = load_config(config or SMALL, column_overrides(column_map, singer_from))
    with stages() as stage:
        result = validate_folder(
            folder,
            settings=validation_settings(settings),
            progress=stage("checking recordings"),
            cache=home().measurements,
            audio=not table_only,
        )
    if report is not None:
        write_text(report, render_validation(result, folder), errors="backslashreplace")
    if as_json:
        typer.echo(json.dumps(result.to_json(str(report) if report else None), ensure_ascii=False, indent=2))
    else:
        for word, clips in (("rejected", result.rejected), ("warning", result.warned)):
            for clip in clips:
                row = row_label(clip["row"], clip["reason"])
                typer.echo(f"{word:<9} {row}{'  ' if row else ''}{clip['audio_file']}: {clip['reason']}")
        for warning in result.warnings:
            typer.echo(f"warning   {warning}")
        typer.echo(f"{len(result.accepted)} of {result.clips} clips accepted, {len(result.rejected)} rejected")
        for reason in result.reasons:
            typer.echo(f"refused   {reason}")
    if not result.valid:
        raise typer.Exit(REFUSED)


@app.command("sort")
def sort(
    folder: Annotated[Path, typer.Argument(help="Data folder, or one index (a JSON file) to check or to --resort.")],
    report: Annotated[Path | None, typer.Option(help="HTML report of the data gate to write.")] = None,
    resort: Annotated[bool, typer.Option("--resort", help="Sort an index whose scores are not descending.")] = False,
    config: ConfigOption = None,
    column_map: MapOption = None,
    singer_from: SingerOption = None,
) -> None:
    """Validate and sort a folder. Write its clips by descending score, and record each singer's split."""
    import tempfile

    from audioscore.config import SMALL, load_config
    from audioscore.data.delivery.add import incoming_folder, remove_leftovers
    from audioscore.data.gate.output import run_gate
    from audioscore.data.split.sort import check_indexes, index_notes, sort_folder, sort_index_file
    from audioscore.data.tables import SUFFIXES
    from audioscore.encoders.extract import voice_embedder
    from audioscore.files import check_can_be_file
    from audioscore.home import home

    if report is not None:
        check_can_be_file(report)
    if folder.suffix == ".json":
        sort_index_file(folder, resort=resort)
        for note in index_notes([folder]):
            typer.echo(f"note      {note}", err=True)
        typer.echo(f"{folder}: sorted by descending score")
        return
    require_folder(folder)
    indexes = check_indexes(folder, resort)
    if indexes and not any((folder / f"labels{suffix}").is_file() for suffix in SUFFIXES):
        for note in index_notes(indexes):
            typer.echo(f"note      {note}", err=True)
        names = ", ".join(path.name for path in indexes)
        typer.echo(f"{names}: sorted by descending score; the folder has no labels table to sort")
        return
    settings = load_config(config or SMALL, column_overrides(column_map, singer_from))
    with tempfile.TemporaryDirectory() as scratch, incoming_folder(folder), stages() as stage:
        remove_leftovers(folder)
        run_gate(folder, Path(scratch), report, settings, stage("checking recordings"), cache=home().measurements)
        embed = voice_embedder(settings.encoders.campplus, folder, home().features, stage("encoding voices"))
        splits = sort_folder(folder, Path(scratch), folder, settings.split, embed, resort=resort)
    for name, count in splits.report.splits.items():
        typer.echo(f"{name:<6} {count.clips} clips by {count.singers} singers, {count.songs} songs")


@app.command("status")
def status(
    folder: Annotated[Path, typer.Argument(help="Data folder.")] = Path("data"),
    since: Annotated[str | None, typer.Option(help="Git revision whose version is compared.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List changes of recordings and scores since the last version."""
    from audioscore.data.versions.changes import status as status_of

    require_folder(folder)
    found = status_of(folder, since)
    if as_json:
        typer.echo(json.dumps(found.to_json(), ensure_ascii=False, indent=2))
    else:
        for line in _status_lines(found):
            typer.echo(line)


def _status_lines(found: "FolderStatus") -> list[str]:
    from audioscore.data.versions.changes import describe

    record = f"{found.folder}.dvc"
    if found.version is None:
        return [f"{found.folder}: {found.digest}, not recorded yet: `dvc add --no-relink {found.folder}`"]
    lines = [f"{found.folder}: {found.digest} {'matches' if found.clean else 'differs from'} {record}"]
    lines += [f"  {line}" for line in describe(found.uncommitted)] if found.uncommitted else []
    lines += [f"  other files: {line}" for line in _other_lines(found.other_files)]
    if found.since is not None:
        state = "unchanged" if found.version == found.version_since else "changed"
        lines.append(f"{record} since {found.since}: {state}")
        lines += [f"  {line}" for line in describe(found.committed)] if found.committed else []
        lines += [f"  other files: {line}" for line in _other_lines(found.other_committed)]
    return lines


def _other_lines(files: "OtherFiles") -> list[str]:
    changes = (("added", files.added), ("removed", files.gone), ("changed", files.changed))
    return [f"{word}: {len(names)} ({shorten(names)})" for word, names in changes if names]


@app.command("push")
def push(
    folders: Annotated[list[Path] | None, typer.Argument(help="Data folders. Default: data.")] = None,
    remote: RemoteOption = None,
) -> None:
    """Upload the recorded version to a DVC remote. An interrupted push continues."""
    from audioscore.data.versions.repository import push as push_folders

    chosen = folders or [Path("data")]
    sent = push_folders(chosen, remote)
    typer.echo(f"{', '.join(map(str, chosen))}: up to date, {sent} files sent")


@app.command("pull")
def pull(
    folder: Annotated[Path, typer.Argument(help="Repository whose data is downloaded.")] = Path(),
    remote: RemoteOption = None,
) -> None:
    """Download the versioned corpus and the small encoders."""
    from audioscore.data.versions.repository import pull as pull_records

    records = sorted(path for path in [*folder.glob("*.dvc"), *folder.glob("pipelines/*.dvc")] if path.is_file())
    if not records:
        raise UsageError(f"{folder.resolve()}: no .dvc file. Change into a clone of the repository.")
    fetched = pull_records(records, remote)
    typer.echo(f"{', '.join(record.stem for record in records)}: up to date, {fetched} files fetched")
