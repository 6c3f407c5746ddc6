"""`audioscore data add` and `data remove`: change a data folder and record a new version of it."""

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from audioscore.cli.options import (
    SOME_FAILED,
    ConfigOption,
    JsonOption,
    MapOption,
    SingerOption,
    parse_map,
    require_folder,
    resolve_data_folder,
    stages,
)
from audioscore.errors import DataError, shorten

if TYPE_CHECKING:
    from audioscore.config import Config
    from audioscore.data.delivery.add import AddResult
    from audioscore.data.delivery.new_version import NewVersion
    from audioscore.data.labels import RowError

Echo = Callable[[str], object]  # prints one line

FolderOption = Annotated[Path, typer.Option("--data", help="The data folder.")]
NoVersionOption = Annotated[bool, typer.Option("--no-version", help="Do not record a DVC version.")]


def add(
    labels: Annotated[
        Path, typer.Argument(readable=False, help="Labels: csv, tsv, xlsx (all sheets), jsonl, or a JSON index.")
    ],
    folder: FolderOption = Path("data"),
    audio: Annotated[
        str | None,
        typer.Option(help="Base of relative file names: a folder or s3://BUCKET/PREFIX. Default: the table's folder."),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Recording domain of rows without one, for example ktv or acapella.")
    ] = None,
    column_map: MapOption = None,
    singer_from: SingerOption = None,
    on_conflict: Annotated[
        str, typer.Option(help="If the delivery has several scores for one recording: error, mean or newest.")
    ] = "error",
    resort: Annotated[bool, typer.Option("--resort", help="Accept an index whose scores are not descending.")] = False,
    refetch: Annotated[bool, typer.Option("--refetch", help="Download known links again.")] = False,
    include_hidden: Annotated[
        bool, typer.Option("--include-hidden", help="Read the hidden rows and sheets of a workbook, too.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the changes without making them.")] = False,
    no_version: NoVersionOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a delivery and record a new version.

    Recordings are downloaded and checked, scores are merged, and clips are sorted and split. The exit code is
    3 if some rows were refused and the others added; it is 1 if so many were refused that nothing is added.
    """
    from audioscore.config import SMALL, load_config
    from audioscore.data.delivery.add import DeliveryRefused, DeliveryRequest, add_delivery
    from audioscore.data.delivery.new_version import prepare
    from audioscore.data.gate.output import validation_settings
    from audioscore.home import home

    folder = resolve_data_folder(folder)
    settings = load_config(config or SMALL)
    prepare(folder, record=not no_version, report=_note)
    request = DeliveryRequest(
        labels=labels,
        audio=audio,
        source=source,
        column_map=parse_map(column_map),
        singer_from=singer_from,
        own_columns=settings.data.column_map,
        own_singers=settings.data.singer_from,
        on_conflict=on_conflict,
        resort=resort,
        refetch=refetch,
        include_hidden=include_hidden,
    )
    out = _Output(as_json)
    with stages() as stage:
        try:
            added = add_delivery(
                request, folder, validation_settings(settings), cache=home().measurements, stage=stage, dry_run=dry_run
            )
        except DeliveryRefused as refusal:
            nothing: dict[str, Any] = {"added": [], "updated": [], "restored": [], "ordered": []}
            out.document |= {"delivery": refusal.result.to_json() | nothing, "error": str(refusal)}
            _print_refused(refusal.result, out.echo)
            out.end()
            raise
        except KeyboardInterrupt:
            _note("interrupted: run the same command again; complete downloads are kept")
            raise
        _print_added(added, out)
        if not dry_run:
            out.add_version(_record(folder, settings, record=not no_version, stage=stage))
    out.end()
    if added.refused:
        raise typer.Exit(SOME_FAILED)


def remove(
    names: Annotated[
        list[str] | None, typer.Argument(help="Recordings, by their name in the table or their SHA-256.")
    ] = None,
    folder: FolderOption = Path("data"),
    singer: Annotated[
        list[str] | None, typer.Option(help="Remove all recordings of this singer. May be repeated.")
    ] = None,
    purge: Annotated[
        bool, typer.Option("--purge", help="Also delete them from DVC's cache and remotes, runs and feature stores.")
    ] = False,
    no_version: NoVersionOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove recordings and record a new version, for example if a singer withdraws consent.

    Their hashes are stored in withdrawn.json, so that they are not added again. With --purge and without names, all
    recordings removed so far are purged. Feature stores in S3 are those of the cluster section of --config.
    """
    from audioscore.config import SMALL, load_config
    from audioscore.data.delivery.new_version import prepare
    from audioscore.data.delivery.remove import remove_recordings

    folder = resolve_data_folder(folder)
    require_folder(folder)
    settings = load_config(config or SMALL)
    prepare(folder, record=purge or not no_version, report=_note)
    out = _Output(as_json)
    if names or singer or not purge:
        removed = remove_recordings(
            folder,
            names or [],
            singers=singer or [],
            own_columns=settings.data.column_map,
            own_singers=settings.data.singer_from,
        )
        out.echo(f"removed   {len(removed.names)} recordings: {shorten(removed.names)}")
        if removed.kept:
            out.echo(f"note      {len(removed.kept)} files outside {folder} were kept: {shorten(removed.kept)}")
        out.document |= {"removed": removed.names, "kept": removed.kept}
    with stages() as stage:
        out.add_version(_record(folder, settings, record=purge or not no_version, stage=stage, removing=True))
    if purge:
        out.document["purged"] = _purge(folder, settings, out.echo)
    out.end()


class _Output:
    """Output of a command: lines while it runs, or one JSON document at its end."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.document: dict[str, Any] = {}

    def echo(self, line: str) -> None:
        if not self.as_json:
            typer.echo(line)

    def add_version(self, version: "NewVersion") -> None:
        self.document |= version.to_json()
        for line in version.describe():
            self.echo(line)

    def end(self) -> None:
        if self.as_json:
            typer.echo(json.dumps(self.document, ensure_ascii=False, indent=2))


def _purge(folder: Path, settings: "Config", echo: Echo) -> dict[str, Any]:
    """Delete removed recordings from DVC's cache and remotes, from earlier runs, and from feature stores."""
    from dataclasses import asdict

    from audioscore.data.delivery.add import clear_incoming, incoming_folder
    from audioscore.data.delivery.folder_state import read_withdrawn
    from audioscore.data.delivery.remove import delete_copies, purge
    from audioscore.home import home

    withdrawn = read_withdrawn(folder)
    purged = purge([one.md5 for one in withdrawn.values() if one.md5], folder)
    copies = delete_copies(home().folder, withdrawn)
    home().measurements.unlink(missing_ok=True)  # it has fingerprints of the recordings; the next check measures again
    with incoming_folder(folder) as incoming:
        clear_incoming(incoming)
    if unknown := [content[:12] for content, one in withdrawn.items() if not one.md5]:
        echo(f"note      {len(unknown)} recordings are in no local version and were not purged: {shorten(unknown)}")
    echo(f"purged    {sum(purged.removed.values())} objects from DVC, {copies} copies from {home().folder}")
    for remote, reason in purged.failed.items():
        echo(f"note      {remote}: {reason}")
    shared = _purge_shared(shared_features(settings), withdrawn, echo)
    if purged.in_git:
        echo(f"note      the Git history still contains them, in the remotes {', '.join(purged.in_git)}")
    if purged.broken:
        echo(f"note      versions that can no longer be pulled completely: {shorten(purged.broken)}")
    if purged.unknown:
        echo(f"note      versions whose list of files is missing: {shorten(purged.unknown)}")
    echo("note      models that were trained on them are unchanged: train again, and promote the new version")
    return {**asdict(purged), "copies": copies, "features": shared}


def shared_features(settings: "Config") -> list[str]:
    """Return the feature stores of cluster runs: the configured store, and that of TrainJobs."""
    from audioscore.training.trainjob.pod import FEATURES

    store, exchange = settings.cluster.feature_store, settings.training.trainjob.exchange
    return [uri for uri in (store, exchange and f"{exchange.rstrip('/')}/{FEATURES}") if uri]


def _purge_shared(stores: Sequence[str], withdrawn: Collection[str], echo: Echo) -> dict[str, dict[str, Any]]:
    """Delete features from shared stores, and return the result for each store. An error does not stop the others."""
    from audioscore.encoders.store import delete_features

    results: dict[str, dict[str, Any]] = {}
    for uri in stores:
        try:
            found = delete_features(uri, withdrawn)
        except DataError as error:
            echo(f"note      {uri} was not purged: {error} Then purge again.")
            results[uri] = {"removed": 0, "failed": str(error)}
            continue
        echo(f"purged    {found.features} features from {uri}")
        if found.still_versions:
            echo(f"note      {uri} still has {found.still_versions} older versions of them: expire those")
        results[uri] = {"removed": found.features, "still_versions": found.still_versions, "failed": None}
    if not stores:
        echo("note      no feature store in S3 was purged: pass the --config of your cluster runs")
    return results


def _record(folder: Path, settings: "Config", *, record: bool, stage: Any, removing: bool = False) -> "NewVersion":
    from audioscore.data.delivery.new_version import new_version
    from audioscore.encoders.extract import voice_embedder
    from audioscore.home import home

    embed = voice_embedder(settings.encoders.campplus, folder, home().features, stage("encoding voices"))
    return new_version(
        folder, settings, record=record, removing=removing, cache=home().measurements, embed=embed, stage=stage
    )


def _note(line: str) -> None:
    typer.echo(line, err=True)


def _print_added(added: "AddResult", out: _Output) -> None:
    plan, echo = added.plan, out.echo
    out.document["delivery"] = added.to_json()
    for name, header in added.delivery.columns.items():
        if name != header:
            echo(f"column    {header} is read as {name}")
    if added.delivery.unknown_columns:
        echo(f"column    not read: {shorten(list(added.delivery.unknown_columns))}")
    for name, stored in (("added", plan.added), ("restored", plan.restored), ("in order", plan.ordered)):
        if stored:
            echo(f"{name:<9} {len(stored)}: {shorten([one.clip.audio_file for one in stored])}")
    for update in plan.updated[:20]:
        cells = ", ".join(f"{name} {_old_text(update.clip, name)} -> {text}" for name, text in update.cells.items())
        echo(f"updated   {update.clip.audio_file}: {cells}")
    if len(plan.updated) > 20:
        echo(f"updated   and {len(plan.updated) - 20} more")
    if not plan.changes and not added.refused:
        echo("unchanged the delivery contains nothing new")
    if plan.unchanged or plan.repeats:
        echo(f"unchanged {plan.unchanged} existing recordings, {plan.repeats} repeated rows")
    _print_refused(added, echo)
    for warning in added.gathering.warned:
        echo(f"warning   {_row(warning)}{warning.audio_file}: {warning.reason}")
    for note in added.notes:
        echo(f"note      {note}")
    if added.agreement:
        from audioscore.data.agreement import describe_agreement

        echo(f"raters    {describe_agreement(added.agreement)}")
    if added.dry_run:
        echo("dry run   nothing was changed")


def _print_refused(added: "AddResult", echo: Echo) -> None:
    for row in added.refused:
        echo(f"refused   {_row(row)}{row.audio_file}: {row.reason}")


def _row(error: "RowError") -> str:
    from audioscore.data.labels import row_label

    label = row_label(error.row, error.reason)
    return f"{label}  " if label else ""


def _old_text(clip: Any, name: str) -> str:
    from audioscore.data.tables import cell_text

    return cell_text(getattr(clip, name, None)) or "(blank)"
