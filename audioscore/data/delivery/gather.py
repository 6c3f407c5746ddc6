"""Finding, fetching and hearing the recordings that a delivery names, before anything in the data folder changes."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from audioscore.data.audio_checks import Heard, Progress, hear_all
from audioscore.data.clips import Clip
from audioscore.data.delivery.folder_state import Known
from audioscore.data.delivery.plan import Gathered
from audioscore.data.gate.rejections import ValidationSettings, weigh
from audioscore.data.index import read_index
from audioscore.data.labels import Fault, read_labels
from audioscore.data.tables import SUFFIXES
from audioscore.data.transfer.download import Downloaded, download_all
from audioscore.data.transfer.http import shown, shown_name
from audioscore.data.transfer.locate import locate
from audioscore.data.transfer.s3 import connect, list_objects
from audioscore.errors import AudioscoreError, DataError


@dataclass(frozen=True)
class Delivery:
    """Recordings with scores, in the file's order, and groups of recordings in order, high to low, without scores.

    `columns` are the headers behind our names, `left_out` those that mean nothing here, `faults` the rows that cannot
    be used. One recording may come several times: nobody has listened to the files yet.
    """

    path: Path
    clips: list[Clip]
    groups: list[list[Clip]]
    columns: dict[str, str]
    left_out: tuple[str, ...]
    faults: list[Fault]


def read_delivery(
    path: Path,
    *,
    column_map: Mapping[str, str] | None = None,
    singer_from: str | None = None,
    source: str | None = None,
    resort: bool = False,
) -> Delivery:
    """Read csv, tsv, xlsx, jsonl (`read_labels`) or a JSON index (`read_index`).

    `source` is the recording domain of those that name none. `resort` takes an index whose scores stand in another
    order than high to low, which is otherwise refused. Raises DataError where the file cannot be read, and where it
    holds no recording at all; UsageError for a wrong `column_map` or `singer_from`.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file. Give a table ({', '.join(SUFFIXES)}) or an index (.json).")
    if path.suffix.lower() == ".json":
        delivery = _from_index(path, source, resort)
    elif path.suffix.lower() in SUFFIXES:
        chosen = dict(column_map) if column_map else None
        table = read_labels(path, column_map=chosen, singer_from=singer_from, source=source, keep_repeats=True)
        delivery = Delivery(path, table.clips, [], table.columns, table.left_out, table.faults)
    else:
        raise DataError(f"{path.name}: {path.suffix or 'no suffix'} is not read. Give {', '.join(SUFFIXES)} or .json.")
    if not delivery.clips and not delivery.groups and not delivery.faults:
        raise DataError(f"{path.name} names no recording. Below its header, a table has a row for each.")
    return delivery


def _from_index(path: Path, source: str | None, resort: bool) -> Delivery:
    clips: list[Clip] = []
    groups: list[list[Clip]] = []
    faults: list[Fault] = []
    number = 0
    for group in read_index(path, resort=resort):
        named: list[Clip] = []
        for clip in group:
            number += 1
            if any(ord(letter) < 32 for letter in clip.audio_file):
                faults.append(
                    Fault(number, repr(clip.audio_file), "the name holds a control character, such as a line end")
                )
                continue
            named.append(replace(clip, source=clip.source or source, row=number))
        if named and named[0].score is None:
            groups.append(named)
        else:
            clips += named
    return Delivery(path, clips, groups, {}, (), faults)


Stage = Callable[[str], Progress | None]  # what is told how far the stage of that name is, or None


@dataclass(frozen=True)
class Gathering:
    """Recordings that can be used, those that cannot and why, and what is worth saying of some that can."""

    scored: list[Gathered]
    groups: list[list[Gathered]]
    refused: list[Fault]
    warned: list[Fault]
    downloaded: int


def gather(
    delivery: Delivery,
    root: Path | str,
    known: Known,
    incoming: Path,
    settings: ValidationSettings,
    *,
    absolute_allowed: bool,
    refetch: bool = False,
    memory: Path | None = None,
    stage: Stage = lambda name: None,
) -> Gathering:
    """Bring every recording of a delivery to this machine, and hear it.

    `root` is where relative names are looked up (`locate`). Links are downloaded into `incoming`; one that an earlier
    delivery followed is known by its content, and not fetched again unless `refetch`. A recording that cannot be
    found, fetched or used is listed, and stops no other.
    """
    clips = every_clip(delivery)
    places, links, refused = _locate_all(clips, root, absolute_allowed)
    followed = {} if refetch else known.by_origin
    reused = {
        place: followed[link]
        for place, link in links.items()
        if link in followed and clips[place].sha256 in (None, followed[link].sha256)
    }
    fetched, unfetched = _fetch({place: link for place, link in links.items() if place not in reused}, incoming, stage)
    refused |= unfetched
    warned: list[Fault] = []
    usable = {place: Gathered(_known_as(clips[place], old), None) for place, old in reused.items()}
    for place, (path, heard) in _hear(places | fetched, settings, memory, stage).items():
        clip = clips[place]
        weighed = weigh(clip, heard, settings)
        if weighed.rejected:
            refused[place] = weighed.rejected[0]["reason"]
            if place in fetched:
                path.unlink(missing_ok=True)  # or the next attempt would not fetch it anew
            continue
        warned += [Fault(clip.row or 0, shown_name(clip.audio_file), one["reason"]) for one in weighed.warned]
        usable[place] = Gathered(replace(clip, sha256=heard.sha256, origin=_origin(links.get(place), clip)), path)
    faults = [Fault(clips[place].row or 0, clips[place].audio_file, reason) for place, reason in refused.items()]
    faults = [fault._replace(audio_file=shown_name(fault.audio_file)) for fault in delivery.faults + faults]
    scored = [usable[place] for place in range(len(delivery.clips)) if place in usable]
    groups = _in_groups(delivery, usable)
    return Gathering(scored, groups, sorted(faults), sorted(warned), len(set(fetched.values())))


def every_clip(delivery: Delivery) -> list[Clip]:
    """Every recording that a delivery names, those in order after those with scores."""
    return [*delivery.clips, *(clip for group in delivery.groups for clip in group)]


def _known_as(clip: Clip, old: Clip) -> Clip:
    return replace(clip, sha256=old.sha256, origin=old.origin)


def _origin(link: str | None, clip: Clip) -> str | None:
    """The link to remember: none that carries a secret, since the table is versioned and shared."""
    return link if link and shown(link) == link else clip.origin


def _locate_all(
    clips: Sequence[Clip], root: Path | str, absolute_allowed: bool
) -> tuple[dict[int, Path], dict[int, str], dict[int, str]]:
    """Files, links, and what is wrong with the rest, each by its place among the clips."""
    names = _names_under(root) if isinstance(root, str) else None
    places: dict[int, Path] = {}
    links: dict[int, str] = {}
    refused: dict[int, str] = {}
    for place, clip in enumerate(clips):
        try:
            found = locate(clip.audio_file, root, absolute_allowed=absolute_allowed, names=names)
        except AudioscoreError as fault:
            refused[place] = str(fault).removeprefix(f"{clip.audio_file}: ")
            continue
        if found.path is not None:
            places[place] = found.path
        elif found.uri is not None:
            links[place] = found.uri
    return places, links, refused


def _names_under(root: str) -> set[str]:
    """Every key under an s3:// root, relative to it."""
    with contextlib.closing(connect()) as client:
        return {item.name for item in list_objects(client, root)}


def _fetch(links: dict[int, str], incoming: Path, stage: Stage) -> tuple[dict[int, Path], dict[int, str]]:
    """Download each link once: files, and what went wrong, by place."""
    if not links:
        return {}, {}
    results = download_all(list(links.values()), incoming, progress=stage("downloading"))
    fetched: dict[int, Path] = {}
    failed: dict[int, str] = {}
    for place, result in zip(links, results, strict=True):
        if isinstance(result, Downloaded):
            fetched[place] = result.path
        else:
            name = shown_name(result.uri)  # which the row is listed under
            failed[place] = result.reason.removeprefix(f"{name}: ").removeprefix(f"{name} ")
    return fetched, failed


def _hear(
    places: dict[int, Path], settings: ValidationSettings, memory: Path | None, stage: Stage
) -> dict[int, tuple[Path, Heard]]:
    """Hear each file once, in the order of its place."""
    files = {place: str(places[place].absolute()) for place in sorted(places)}
    unique = list(dict.fromkeys(files.values()))
    heard = hear_all(unique, Path(), settings.limits, progress=stage("listening"), memory=memory)
    by_file = dict(zip(unique, heard, strict=True))
    return {place: (places[place], by_file[file]) for place, file in files.items()}


def _in_groups(delivery: Delivery, usable: dict[int, Gathered]) -> list[list[Gathered]]:
    groups: list[list[Gathered]] = []
    start = len(delivery.clips)
    for group in delivery.groups:
        groups.append([usable[place] for place in range(start, start + len(group)) if place in usable])
        start += len(group)
    return groups
