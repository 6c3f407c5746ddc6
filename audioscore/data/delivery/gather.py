"""Read a delivery, then find, download and check its recordings, before anything in the data folder changes."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from audioscore.data.clips import Clip
from audioscore.data.delivery.folder_state import FolderState
from audioscore.data.delivery.plan import DeliveredRecording
from audioscore.data.file_checks import CheckedRecording, Progress, check_recordings
from audioscore.data.gate.rejections import ValidationSettings, evaluate_clip
from audioscore.data.index import read_with_notes
from audioscore.data.labels import RowError, read_labels
from audioscore.data.spelling import NamesOnDisk
from audioscore.data.tables import READABLE, SUFFIXES
from audioscore.data.transfer.download import Downloaded, download_all
from audioscore.data.transfer.http import redact_name
from audioscore.data.transfer.locate import locate
from audioscore.data.transfer.network import redact
from audioscore.data.transfer.s3 import connect, list_objects, split_uri
from audioscore.errors import AudioscoreError, DataError

Stage = Callable[[str], Progress | None]  # returns the progress callback of a named stage, or None


@dataclass(frozen=True)
class Delivery:
    """The content of a delivered table or index.

    `clips` have scores and the order of the file; `groups` are ordered high to low and have no scores. `columns` maps
    our names to the headers, `unknown_columns` are ignored headers, `row_errors` are the unusable rows, `notes` are
    sentences about the file. A recording may occur several times, because contents have not been compared yet.
    """

    path: Path
    clips: list[Clip]
    groups: list[list[Clip]]
    columns: dict[str, str]
    unknown_columns: tuple[str, ...]
    row_errors: list[RowError]
    notes: tuple[str, ...] = ()
    locations: Mapping[int, str] = field(default_factory=dict)  # of rows of worksheets

    @property
    def all_clips(self) -> list[Clip]:
        """Every recording that the delivery names, those with scores first."""
        return [*self.clips, *(clip for group in self.groups for clip in group)]


def read_delivery(
    path: Path,
    *,
    column_map: Mapping[str, str] | None = None,
    singer_from: str | None = None,
    source: str | None = None,
    resort: bool = False,
    include_hidden: bool = False,
) -> Delivery:
    """Read csv, tsv, xlsx, jsonl (`read_labels`) or a JSON index (`read_index`).

    `source` is the recording domain of rows without one, `include_hidden` is that of `read_labels`. `resort` accepts an
    index whose scores are not sorted high to low.

    Raises DataError when the file cannot be read or names no recording, UsageError for a wrong `column_map` or
    `singer_from`.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file. Give a table ({', '.join(SUFFIXES)}) or an index (.json).")
    if path.suffix.lower() == ".json":
        delivery = _read_index(path, source, resort)
    elif path.suffix.lower() in READABLE:
        chosen = dict(column_map) if column_map else None
        table = read_labels(
            path,
            column_map=chosen,
            singer_from=singer_from,
            source=source,
            keep_duplicates=True,
            include_hidden=include_hidden,
        )
        delivery = Delivery(
            path,
            table.clips,
            [],
            table.columns,
            table.unknown_columns,
            table.row_errors,
            table.notes,
            table.locations,
        )
    else:
        raise DataError(
            f"{path.name}: files with {path.suffix or 'no suffix'} are not supported. Give {', '.join(SUFFIXES)} or "
            f".json."
        )
    if not delivery.clips and not delivery.groups and not delivery.row_errors:
        raise DataError(f"{path.name}: names no recording. Add a row for each recording below the header.")
    return delivery


def _read_index(path: Path, source: str | None, resort: bool) -> Delivery:
    clips: list[Clip] = []
    groups: list[list[Clip]] = []
    errors: list[RowError] = []
    number = 0
    read, notes = read_with_notes(path, resort=resort)
    for group in read:
        named: list[Clip] = []
        for clip in group:
            number += 1
            if any(ord(letter) < 32 for letter in clip.audio_file):
                reason = "the name contains a control character, such as a line end"
                errors.append(RowError(number, repr(clip.audio_file), reason))
                continue
            named.append(replace(clip, source=clip.source or source, row=number))
        if named and named[0].score is None:
            groups.append(named)
        else:
            clips += named
    return Delivery(path, clips, groups, {}, (), errors, tuple(notes))


@dataclass(frozen=True)
class Gathering:
    """The usable recordings of a delivery, the refused rows, and the warnings about usable rows."""

    scored: list[DeliveredRecording]
    groups: list[list[DeliveredRecording]]
    refused: list[RowError]
    warned: list[RowError]
    downloaded: int


def gather(
    delivery: Delivery,
    root: Path | str,
    state: FolderState,
    incoming: Path,
    settings: ValidationSettings,
    *,
    absolute_allowed: bool,
    refetch: bool = False,
    cache: Path | None = None,
    stage: Stage = lambda name: None,
) -> Gathering:
    """Make every recording of a delivery available on this machine, and check it.

    A recording that cannot be found, downloaded or used is listed in the result and does not stop the others.

    Args:
        root: Folder or S3 prefix of relative names (see `locate`).
        state: What the data folder holds; links that an earlier delivery downloaded are taken from it.
        incoming: Folder for downloads.
        refetch: Download known links again.
        cache: File that caches measurements.
    """
    clips = delivery.all_clips
    paths, links, refused = _locate_all(clips, root, absolute_allowed)
    by_origin = {} if refetch else state.by_origin
    existing = {
        index: by_origin[link]
        for index, link in links.items()
        if link in by_origin and clips[index].sha256 in (None, by_origin[link].sha256)
    }
    fetched, failed = _fetch({index: link for index, link in links.items() if index not in existing}, incoming, stage)
    refused |= failed
    warned: list[RowError] = []
    usable = {
        index: DeliveredRecording(replace(clips[index], sha256=old.sha256, origin=old.origin), None)
        for index, old in existing.items()
    }
    for index, (path, checked) in _check(paths | fetched, settings, cache, stage).items():
        clip = clips[index]
        verdict = evaluate_clip(clip, checked, settings)
        if verdict.rejected:
            refused[index] = verdict.rejected[0]["reason"]
            if index in fetched:
                path.unlink(missing_ok=True)  # otherwise the next attempt would not download it again
            continue
        warned += [RowError(clip.row or 0, redact_name(clip.audio_file), one["reason"]) for one in verdict.warned]
        clip = replace(clip, sha256=checked.sha256, origin=_origin(links.get(index), clip))
        usable[index] = DeliveredRecording(clip, path)
    errors = [RowError(clips[index].row or 0, clips[index].audio_file, reason) for index, reason in refused.items()]
    errors = [error._replace(audio_file=redact_name(error.audio_file)) for error in delivery.row_errors + errors]
    errors, warned = ([one.located(delivery.locations) for one in listed] for listed in (errors, warned))
    scored = [usable[index] for index in range(len(delivery.clips)) if index in usable]
    groups = _in_groups(delivery, usable)
    return Gathering(scored, groups, sorted(errors), sorted(warned), len(set(fetched.values())))


def _origin(link: str | None, clip: Clip) -> str | None:
    """The link to store in the table; links with a secret are not stored, because the table is versioned and shared."""
    return link if link and redact(link) == link else clip.origin


def _locate_all(
    clips: Sequence[Clip], root: Path | str, absolute_allowed: bool
) -> tuple[dict[int, Path], dict[int, str], dict[int, str]]:
    """Files, links and errors, each by the index of the clip."""
    names = _names_under(root) if isinstance(root, str) else None
    on_disk = None if isinstance(root, str) else NamesOnDisk(root)
    paths: dict[int, Path] = {}
    links: dict[int, str] = {}
    refused: dict[int, str] = {}
    for index, clip in enumerate(clips):
        name = on_disk.find(clip.audio_file) if on_disk else clip.audio_file
        try:
            found = locate(name, root, absolute_allowed=absolute_allowed, names=names)
        except AudioscoreError as error:
            refused[index] = str(error).removeprefix(f"{name}: ")
            continue
        if found.path is not None:
            paths[index] = found.path
        elif found.uri is not None:
            links[index] = found.uri
    return paths, links, refused


def _names_under(root: str) -> set[str]:
    """Every key under an s3:// root, relative to it."""
    split_uri(root)  # before the server is asked
    with contextlib.closing(connect()) as client:
        return {item.name for item in list_objects(client, root)}


def _fetch(links: dict[int, str], incoming: Path, stage: Stage) -> tuple[dict[int, Path], dict[int, str]]:
    """Download each link once; files and errors by index."""
    if not links:
        return {}, {}
    results = download_all(list(links.values()), incoming, progress=stage("downloading"))
    fetched: dict[int, Path] = {}
    failed: dict[int, str] = {}
    for index, result in zip(links, results, strict=True):
        if isinstance(result, Downloaded):
            fetched[index] = result.path
        else:
            name = redact_name(result.uri)  # the row is listed with its name already
            failed[index] = result.reason.removeprefix(f"{name}: ").removeprefix(f"{name} ")
    return fetched, failed


def _check(
    paths: dict[int, Path], settings: ValidationSettings, cache: Path | None, stage: Stage
) -> dict[int, tuple[Path, CheckedRecording]]:
    """Check each file once; results in the order of the indices."""
    files = {index: str(paths[index].absolute()) for index in sorted(paths)}
    unique = list(dict.fromkeys(files.values()))
    checked = check_recordings(unique, Path(), settings.limits, progress=stage("checking recordings"), cache=cache)
    by_file = dict(zip(unique, checked, strict=True))
    return {index: (paths[index], by_file[file]) for index, file in files.items()}


def _in_groups(delivery: Delivery, usable: dict[int, DeliveredRecording]) -> list[list[DeliveredRecording]]:
    groups: list[list[DeliveredRecording]] = []
    start = len(delivery.clips)
    for group in delivery.groups:
        groups.append([usable[index] for index in range(start, start + len(group)) if index in usable])
        start += len(group)
    return groups
