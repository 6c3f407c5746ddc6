"""What changed between two versions of a data folder, in the terms of the people who label it."""

import dataclasses
import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from audioscore.data.clips import Clip
from audioscore.data.index import read_index
from audioscore.data.labels import find_labels, read_labels
from audioscore.data.split.assign import SPLITS
from audioscore.data.tables import SUFFIXES
from audioscore.data.versions.history import recorded_file, recorded_files, recorded_version
from audioscore.data.versions.revision import digest_of, file_md5s
from audioscore.errors import DataError, shorten

TABLES = frozenset(f"labels{suffix}" for suffix in SUFFIXES)
LABELS = ("singer_id", "song_id", "source", "artist")
NO_SOURCE = "no source"


class Moved(NamedTuple):
    """A recording whose score changed."""

    audio_file: str
    before: float | None
    after: float | None


class Relabelled(NamedTuple):
    """A recording whose singer, song, source or artist changed."""

    audio_file: str
    field: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Changes:
    """What changed from one labels table to another.

    `renamed` holds pairs of names, before and after, of one and the same content. `replaced` are names whose content
    changed. `sources` counts the clips of each recording domain before and after. `mean_before` and `mean_after` are
    the mean scores of the whole tables; `mean_shift` is the mean change of the clips that both score.
    """

    clips: tuple[int, int]
    added: list[str]
    gone: list[str]
    renamed: list[tuple[str, str]]
    replaced: list[str]
    moved: list[Moved]
    relabelled: list[Relabelled]
    sources: dict[str, tuple[int, int]]
    mean_before: float | None
    mean_after: float | None
    mean_shift: float | None

    def __bool__(self) -> bool:
        return any((self.added, self.gone, self.renamed, self.replaced, self.moved, self.relabelled))

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        document = dataclasses.asdict(self)
        document["moved"] = [moved._asdict() for moved in self.moved]
        document["relabelled"] = [one._asdict() for one in self.relabelled]
        return document


@dataclass(frozen=True)
class OtherFiles:
    """Files of the folder that are neither the labels table nor a recording it names: an index, splits.json, ..."""

    added: list[str]
    gone: list[str]
    changed: list[str]

    def __bool__(self) -> bool:
        return bool(self.added or self.gone or self.changed)


@dataclass(frozen=True)
class FolderStatus:
    """A data folder against its versions.

    `digest` is what the folder holds now, `version` what its `.dvc` file records (None: never recorded). `uncommitted`
    and `other_files` tell the former from the latter. `since` is the git revision whose version, `version_since`, is
    compared with the recorded one in `committed` and `other_committed`; None where there is none to compare with.
    """

    folder: str
    digest: str
    version: str | None
    uncommitted: Changes | None
    other_files: OtherFiles
    since: str | None
    version_since: str | None
    committed: Changes | None
    other_committed: OtherFiles

    @property
    def clean(self) -> bool:
        """Whether the folder is what its `.dvc` file records."""
        return self.digest == self.version

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            **{
                name: getattr(self, name) for name in ("folder", "digest", "version", "clean", "since", "version_since")
            },
            **{
                name: None if found is None else found.to_json()
                for name in ("uncommitted", "committed")
                for found in [getattr(self, name)]
            },
            **{name: dataclasses.asdict(getattr(self, name)) for name in ("other_files", "other_committed")},
        }


def compare_tables(before: Sequence[Clip], after: Sequence[Clip]) -> Changes:
    """What changed between two tables. Clips are the same if they have one name, or else one content.

    A content is told by `sha256`; where several clips of a table share one, or it is not known, names alone decide.
    """
    old, new = _by_name(before), _by_name(after)
    left, came = [clip for clip in before if clip.audio_file not in new], [c for c in after if c.audio_file not in old]
    by_content = _by_content(came)
    renamed = [
        (clip, by_content[clip.sha256])
        for clip in _by_content(left).values()
        if clip.sha256 is not None and clip.sha256 in by_content
    ]
    moved_away, arrived = {clip.audio_file for clip, _ in renamed}, {clip.audio_file for _, clip in renamed}
    pairs = [(old[name], clip) for name, clip in new.items() if name in old] + renamed
    shifts = [b.score - a.score for a, b in pairs if a.score is not None and b.score is not None]
    return Changes(
        clips=(len(before), len(after)),
        added=[clip.audio_file for clip in came if clip.audio_file not in arrived],
        gone=[clip.audio_file for clip in left if clip.audio_file not in moved_away],
        renamed=[(a.audio_file, b.audio_file) for a, b in renamed],
        replaced=[b.audio_file for a, b in pairs if None not in (a.sha256, b.sha256) and a.sha256 != b.sha256],
        moved=[Moved(b.audio_file, a.score, b.score) for a, b in pairs if a.score != b.score],
        relabelled=[
            Relabelled(b.audio_file, name, getattr(a, name), getattr(b, name))
            for a, b in pairs
            for name in LABELS
            if getattr(a, name) != getattr(b, name)
        ],
        sources=_count_sources(before, after),
        mean_before=_mean(clip.score for clip in before if clip.score is not None),
        mean_after=_mean(clip.score for clip in after if clip.score is not None),
        mean_shift=_mean(shifts),
    )


def describe(changes: Changes) -> list[str]:
    """Lines for a person, the numbers first; none where nothing changed."""
    if not changes:
        return []
    lines = [f"clips: {changes.clips[0]} -> {changes.clips[1]}"]
    for label, names in (("added", changes.added), ("gone", changes.gone), ("new audio", changes.replaced)):
        if names:
            lines.append(f"{label}: {len(names)} ({shorten(names)})")
    if changes.renamed:
        lines.append(f"renamed: {len(changes.renamed)} ({shorten([f'{a} -> {b}' for a, b in changes.renamed])})")
    if changes.moved:
        told = [f"{name} {_number(before)} -> {_number(after)}" for name, before, after in changes.moved]
        shift = "" if changes.mean_shift is None else f", mean shift of the clips in both {changes.mean_shift:+.2f}"
        lines.append(f"scores moved: {len(changes.moved)} ({shorten(told)}){shift}")
    for field in LABELS:
        if found := [one for one in changes.relabelled if one.field == field]:
            told = [f"{one.audio_file} {one.before or '-'} -> {one.after or '-'}" for one in found]
            lines.append(f"{field} changed: {len(found)} ({shorten(told)})")
    for source, (count, now) in changes.sources.items():
        if count != now:
            lines.append(f"{source}: {count} -> {now}")
    if changes.mean_before != changes.mean_after:
        lines.append(f"mean score: {_number(changes.mean_before)} -> {_number(changes.mean_after)}")
    return lines


def status(folder: Path, since: str | None = None) -> FolderStatus:
    """A data folder against what `<folder>.dvc` records, and that against a git revision (HEAD, where it has one).

    Raises DataError where the folder has no labels table, a table cannot be read, git knows no such revision, or a
    version's table is neither in DVC's cache nor on its remote.
    """
    now = file_md5s(folder)
    version, digest = recorded_version(folder), digest_of(now)
    clips = _with_content(read_labels(find_labels(folder)).clips, now)
    recorded, recorded_clips = _version(folder, None) if version not in (None, digest) else (now, clips)
    uncommitted = None if version is None else compare_tables(recorded_clips, clips)
    if since is None and _head_version(folder) is not None:
        since = "HEAD"
    version_since = None if since is None else recorded_version(folder, since)
    committed, other = None, OtherFiles([], [], [])
    if version is not None and version_since is not None:
        then, then_clips = _version(folder, since) if version_since != version else (recorded, recorded_clips)
        committed = compare_tables(then_clips, recorded_clips)
        other = _other_files(then, recorded, [*then_clips, *recorded_clips])
    return FolderStatus(
        folder=str(folder),
        digest=digest,
        version=version,
        uncommitted=uncommitted,
        other_files=_other_files(recorded, now, [*recorded_clips, *clips]),
        since=since,
        version_since=version_since,
        committed=committed,
        other_committed=other,
    )


def _head_version(folder: Path) -> str | None:
    try:
        return recorded_version(folder, "HEAD")
    except DataError:  # no git, or no commit yet
        return None


def _version(folder: Path, revision: str | None) -> tuple[dict[str, str], list[Clip]]:
    """The files and the clips of a recorded version; no clips where it has no labels table."""
    files = recorded_files(folder, revision)
    with tempfile.TemporaryDirectory() as scratch:
        found = sorted(TABLES & files.keys())
        for name in found:
            (Path(scratch) / name).write_bytes(recorded_file(folder, name, revision) or b"")
        clips = read_labels(find_labels(Path(scratch))).clips if found else []
    return files, _with_content(clips, files)


def _with_content(clips: Iterable[Clip], md5s: Mapping[str, str]) -> list[Clip]:
    """Clips with their file's MD5 in the place of its hash: every version has one, and only equality is asked for."""
    return [dataclasses.replace(clip, sha256=md5s.get(clip.audio_file)) for clip in clips]


def _other_files(before: Mapping[str, str], after: Mapping[str, str], clips: Iterable[Clip]) -> OtherFiles:
    known = TABLES | {clip.audio_file for clip in clips}
    old, new = before.keys() - known, after.keys() - known
    return OtherFiles(
        added=sorted(new - old),
        gone=sorted(old - new),
        changed=sorted(name for name in old & new if before[name] != after[name]),
    )


def _by_name(clips: Iterable[Clip]) -> dict[str, Clip]:
    return {clip.audio_file: clip for clip in clips}


def _by_content(clips: Iterable[Clip]) -> dict[str, Clip]:
    """Clips by content, where it is known and no other clip among them has it."""
    found: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        if clip.sha256 is not None:
            found[clip.sha256].append(clip)
    return {content: same[0] for content, same in found.items() if len(same) == 1}


def _count_sources(before: Iterable[Clip], after: Iterable[Clip]) -> dict[str, tuple[int, int]]:
    old, new = (Counter(clip.source or NO_SOURCE for clip in clips) for clips in (before, after))
    return {source: (old[source], new[source]) for source in sorted(old | new)}


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 2):g}"


def last_scores(folder: Path) -> dict[str, list[float]]:
    """Scores of the last accepted version by source, "" for clips that name none; empty where there was no version.

    Raises DataError where an index is there and cannot be read.
    """
    scores: dict[str, list[float]] = defaultdict(list)
    for name in SPLITS:
        path = folder / "index" / f"{name}.json"
        for group in read_index(path) if path.is_file() else []:
            for clip in group:
                if clip.score is not None:
                    scores[clip.source or ""].append(clip.score)
    return dict(scores)
