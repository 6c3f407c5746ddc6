"""`audioscore data add` and `data remove`: what changes a data folder, and makes a new version of it."""

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from audioscore.cli.options import (
    ConfigOption,
    JsonOption,
    MapOption,
    SingerOption,
    own_folder,
    parse_map,
    require_folder,
    stages,
)
from audioscore.errors import DataError, shorten

if TYPE_CHECKING:
    from audioscore.config import Config
    from audioscore.data.delivery.add import Added
    from audioscore.data.delivery.new_version import NewVersion

SOME_REFUSED = 3  # part of a batch failed, and the rest was done

FolderOption = Annotated[Path, typer.Option("--data", help="The data folder.")]
NoVersionOption = Annotated[bool, typer.Option("--no-version", help="Record no DVC version.")]


def add(
    labels: Annotated[
        Path, typer.Argument(readable=False, help="Labels: csv, tsv, xlsx (every sheet), jsonl, or a JSON index.")
    ],
    folder: FolderOption = Path("data"),
    audio: Annotated[
        str | None,
        typer.Option(help="Where relative names lie: a folder or s3://BUCKET/PREFIX; default: by the table."),
    ] = None,
    source: Annotated[str | None, typer.Option(help="Recording domain of rows that name none: ktv, acapella.")] = None,
    column_map: MapOption = None,
    singer_from: SingerOption = None,
    on_conflict: Annotated[
        str, typer.Option(help="One recording with several scores in this delivery: error, mean or newest.")
    ] = "error",
    resort: Annotated[bool, typer.Option("--resort", help="Take an index whose scores are not high to low.")] = False,
    refetch: Annotated[bool, typer.Option("--refetch", help="Download links again that are known already.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
    no_version: NoVersionOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a delivery: fetch and hear its recordings, join its scores, sort, split, and record a new version.

    Exit code 3 where some rows were refused and the others added; 1, and nothing added, where too many were.
    """
    from audioscore.config import SMALL, load_config
    from audioscore.data.delivery.add import DeliveryRefused, Request, add_delivery
    from audioscore.data.delivery.new_version import prepare
    from audioscore.data.gate.output import settings_of
    from audioscore.home import home

    folder = own_folder(folder)
    settings = load_config(config or SMALL)
    prepare(folder, record=not no_version, say=_note)
    request = Request(
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
    )
    out = _Output(as_json)
    with stages() as stage:
        try:
            added = add_delivery(
                request, folder, settings_of(settings), memory=home().probes, stage=stage, dry_run=dry_run
            )
        except DeliveryRefused as refusal:
            nothing: dict[str, Any] = {"added": [], "updated": [], "restored": [], "ordered": []}
            out.document |= {"delivery": refusal.added.to_json() | nothing, "error": str(refusal)}
            _tell_refused(refusal.added, out.say)
            out.end()
            raise
        except KeyboardInterrupt:
            _note("interrupted: run the same command again; what has arrived is kept")
            raise
        _tell(added, out)
        if not dry_run:
            out.finish(_settle(folder, settings, record=not no_version, stage=stage))
    out.end()
    if added.refused:
        raise typer.Exit(SOME_REFUSED)


def remove(
    names: Annotated[
        list[str] | None, typer.Argument(help="Recordings as the table names them, or their SHA-256.")
    ] = None,
    folder: FolderOption = Path("data"),
    singer: Annotated[list[str] | None, typer.Option(help="All recordings of a singer. May be repeated.")] = None,
    purge: Annotated[
        bool,
        typer.Option("--purge", help="Also from DVC's cache and remotes, earlier runs and feature stores: for good."),
    ] = False,
    no_version: NoVersionOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take recordings out, as when a singer withdraws consent: from the table, the folder and the index.

    They are remembered in withdrawn.json by their hashes, and not added again. With --purge and no names, everything
    that was removed so far is purged. Feature stores in S3 are those that --config names.
    """
    from audioscore.config import SMALL, load_config
    from audioscore.data.delivery.new_version import prepare
    from audioscore.data.delivery.remove import remove_recordings

    folder = own_folder(folder)
    require_folder(folder)
    settings = load_config(config or SMALL)
    prepare(folder, record=purge or not no_version, say=_note)
    out = _Output(as_json)
    if names or singer or not purge:
        removed = remove_recordings(
            folder,
            names or [],
            singers=singer or [],
            own_columns=settings.data.column_map,
            own_singers=settings.data.singer_from,
        )
        out.say(f"removed   {len(removed.names)} recordings: {shorten(removed.names)}")
        if removed.kept:
            out.say(f"note      files outside {folder} were left, {len(removed.kept)}: {shorten(removed.kept)}")
        out.document |= {"removed": removed.names, "kept": removed.kept}
    with stages() as stage:
        out.finish(_settle(folder, settings, record=purge or not no_version, stage=stage, removing=True))
    if purge:
        out.document["purged"] = _purge(folder, settings, out.say)
    out.end()


class _Output:
    """Lines on standard output as the work goes on, or one JSON document at its end."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.document: dict[str, Any] = {}

    def say(self, line: str) -> None:
        if not self.as_json:
            typer.echo(line)

    def finish(self, version: "NewVersion") -> None:
        """Tell of the folder's new version."""
        self.document |= version.to_json()
        for line in version.describe():
            self.say(line)

    def end(self) -> None:
        """Print the document, if that was asked for."""
        if self.as_json:
            typer.echo(json.dumps(self.document, ensure_ascii=False, indent=2))


def _purge(folder: Path, settings: "Config", say: Callable[[str], object]) -> dict[str, Any]:
    """Take what was removed out of DVC's cache and remotes, and out of earlier runs and every feature store."""
    from dataclasses import asdict

    from audioscore.data.delivery.add import empty, incoming_of
    from audioscore.data.delivery.folder_state import read_withdrawn
    from audioscore.data.delivery.remove import delete_copies, purge
    from audioscore.home import home

    withdrawn = read_withdrawn(folder)
    purged = purge([one.md5 for one in withdrawn.values() if one.md5], folder)
    copies = delete_copies(home().folder, withdrawn)
    home().probes.unlink(missing_ok=True)  # it holds what they sounded like; the next check measures anew
    with incoming_of(folder) as incoming:
        empty(incoming)
    if unknown := [content[:12] for content, one in withdrawn.items() if not one.md5]:
        say(f"note      {len(unknown)} are in no version that is known here, and were not purged: {shorten(unknown)}")
    say(f"purged    {sum(purged.removed.values())} objects from DVC, {copies} copies from {home().folder}")
    for remote, reason in purged.failed.items():
        say(f"note      {remote}: {reason}")
    shared = _purge_shared(shared_features(settings), withdrawn, say)
    if purged.in_git:
        say(f"note      git's own history still holds them, in the remotes {', '.join(purged.in_git)}")
    if purged.broken:
        say(f"note      versions that can no longer be pulled whole: {shorten(purged.broken)}")
    if purged.unknown:
        say(f"note      versions whose list of files is nowhere to be had: {shorten(purged.unknown)}")
    say("note      models that were trained on them stay as they are: train again, and promote the new one")
    return {**asdict(purged), "copies": copies, "features": shared}


def shared_features(settings: "Config") -> list[str]:
    """Where a configuration's runs on a cluster keep features: their store, and what trainings of several pods read."""
    from audioscore.training.trainjob.pod import FEATURES

    store, exchange = settings.cluster.feature_store, settings.training.trainjob.exchange
    return [uri for uri in (store, exchange and f"{exchange.rstrip('/')}/{FEATURES}") if uri]


def _purge_shared(
    stores: Sequence[str], withdrawn: Collection[str], say: Callable[[str], object]
) -> dict[str, dict[str, Any]]:
    """Take features out of stores that others share; what came of it by store. One that fails stops no other."""
    from audioscore.encoders.store import forget_features

    told: dict[str, dict[str, Any]] = {}
    for uri in stores:
        try:
            found = forget_features(uri, withdrawn)
        except DataError as fault:
            say(f"note      {uri} was not purged: {fault} Then purge again.")
            told[uri] = {"removed": 0, "failed": str(fault)}
            continue
        say(f"purged    {found.features} features from {uri}")
        if found.still_versions:
            say(f"note      {uri} still holds {found.still_versions} of them as older versions: expire those")
        told[uri] = {"removed": found.features, "still_versions": found.still_versions, "failed": None}
    if not stores:
        say("note      no feature store in S3 was looked at: --config names none. Give that of your runs on a cluster")
    return told


def _settle(folder: Path, settings: "Config", *, record: bool, stage: Any, removing: bool = False) -> "NewVersion":
    from audioscore.data.delivery.new_version import new_version
    from audioscore.encoders.extract import voice_embedder
    from audioscore.home import home

    embed = voice_embedder(settings.encoders.campplus, folder, home().features, stage("hearing voices"))
    return new_version(
        folder, settings, record=record, removing=removing, memory=home().probes, embed=embed, stage=stage
    )


def _note(line: str) -> None:
    typer.echo(line, err=True)


def _tell(added: "Added", out: _Output) -> None:
    plan, say = added.plan, out.say
    out.document["delivery"] = added.to_json()
    for name, header in added.delivery.columns.items():
        if name != header:
            say(f"column    {header} is read as {name}")
    if added.delivery.left_out:
        say(f"column    not read: {shorten(list(added.delivery.left_out))}")
    for name, placed in (("added", plan.added), ("restored", plan.restored), ("in order", plan.ordered)):
        if placed:
            say(f"{name:<9} {len(placed)}: {shorten([one.clip.audio_file for one in placed])}")
    for update in plan.updated[:20]:
        told = ", ".join(f"{name} {_before(update.clip, name)} -> {text}" for name, text in update.cells.items())
        say(f"updated   {update.clip.audio_file}: {told}")
    if len(plan.updated) > 20:
        say(f"updated   and {len(plan.updated) - 20} more")
    if not plan.changes and not added.refused:
        say("nothing   new in this delivery")
    if plan.unchanged or plan.repeats:
        say(f"unchanged {plan.unchanged} known recordings, {plan.repeats} repeated rows")
    _tell_refused(added, say)
    for fault in added.gathering.warned:
        say(f"warning   row {fault.row}  {fault.audio_file}: {fault.reason}")
    for note in plan.notes:
        say(f"note      {note}")
    if added.agreement:
        from audioscore.data.agreement import describe_agreement

        say(f"raters    {describe_agreement(added.agreement)}")
    if added.dry_run:
        say("dry run   nothing was changed")


def _tell_refused(added: "Added", say: Callable[[str], object]) -> None:
    for fault in added.refused:
        say(f"refused   row {fault.row}  {fault.audio_file}: {fault.reason}")


def _before(clip: Any, name: str) -> str:
    from audioscore.data.tables import cell_text

    return cell_text(getattr(clip, name, None)) or "(blank)"
