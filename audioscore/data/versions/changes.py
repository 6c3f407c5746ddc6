"""Compare versions of a data folder by recordings, scores and labels."""

import contextlib
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
from audioscore.data.split.groups import SPLITS
from audioscore.data.tables import SUFFIXES
from audioscore.data.versions.repository import recorded_file, recorded_files, recorded_version
from audioscore.data.versions.revision import digest_of, file_md5s
from audioscore.errors import DataError, shorten

TABLES = frozenset(f"labels{suffix}" for suffix in SUFFIXES)
LABELS = ("singer_id", "song_id", "source", "artist")
NO_SOURCE = "no source"


class ScoreChange(NamedTuple):
    """A recording whose score changed."""

    audio_file: str
    before: float | None
    after: float | None


class LabelChange(NamedTuple):
    """A recording whose singer, song, source or artist changed."""

    audio_file: str
    field: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class TableChanges:
    """The differences between two labels tables; a pair of values means (before, after).

    `renamed` holds two names with the same content, `replaced` names with new content. `sources` counts the clips of
    each recording domain. `mean_before` and `mean_after` are mean scores of the complete tables; `mean_shift` is the
    mean score change of the clips that have a score in both.
    """

    clips: tuple[int, int]
    added: list[str]
    gone: list[str]
    renamed: list[tuple[str, str]]
    replaced: list[str]
    moved: list[ScoreChange]
    relabelled: list[LabelChange]
    sources: dict[str, tuple[int, int]]
    mean_before: float | None
    mean_after: float | None
    mean_shift: float | None

    def __bool__(self) -> bool:
        return any((self.added, self.gone, self.renamed, self.replaced, self.moved, self.relabelled))

    def to_json(self) -> dict[str, Any]:
        """Return the changes as JSON values, for `--json`."""
        document = dataclasses.asdict(self)
        document["moved"] = [change._asdict() for change in self.moved]
        document["relabelled"] = [change._asdict() for change in self.relabelled]
        return document


@dataclass(frozen=True)
class OtherFiles:
    """Changed files that are neither the labels table nor its recordings: indexes, splits.json, ..."""

    added: list[str]
    gone: list[str]
    changed: list[str]

    def __bool__(self) -> bool:
        return bool(self.added or self.gone or self.changed)


@dataclass(frozen=True)
class FolderStatus:
    """A data folder compared with its recorded version, and that version with a git revision.

    `digest` is the folder's current digest, `version` the one in its `.dvc` file (None: never recorded); `uncommitted`
    and `other_files` are the differences. `committed` and `other_committed` are the differences between the version at
    the git revision `since`, which is `version_since`, and the recorded one; None without such a version.
    """

    folder: str
    digest: str
    version: str | None
    uncommitted: TableChanges | None
    other_files: OtherFiles
    since: str | None
    version_since: str | None
    committed: TableChanges | None
    other_committed: OtherFiles

    @property
    def clean(self) -> bool:
        """Whether the folder equals its recorded version."""
        return self.digest == self.version

    def to_json(self) -> dict[str, Any]:
        """Return the status as JSON values, for `--json`."""
        names = ("folder", "digest", "version", "clean", "since", "version_since")
        changes = {"uncommitted": self.uncommitted, "committed": self.committed}
        return {
            **{name: getattr(self, name) for name in names},
            **{name: None if found is None else found.to_json() for name, found in changes.items()},
            **{name: dataclasses.asdict(getattr(self, name)) for name in ("other_files", "other_committed")},
        }


def compare_tables(before: Sequence[Clip], after: Sequence[Clip]) -> TableChanges:
    """Compare two tables. Clips correspond if they have the same name, or else the same content (`sha256`).

    Clips without a hash, and those that share one with another clip of the table, are compared by name only.
    """
    old, new = ({clip.audio_file: clip for clip in clips} for clips in (before, after))
    removed = [clip for clip in before if clip.audio_file not in new]
    added = [clip for clip in after if clip.audio_file not in old]
    by_content = _by_content(added)
    renamed = [(clip, by_content[content]) for content, clip in _by_content(removed).items() if content in by_content]
    old_names, new_names = {clip.audio_file for clip, _ in renamed}, {clip.audio_file for _, clip in renamed}
    pairs = [(old[name], clip) for name, clip in new.items() if name in old] + renamed
    shifts = [b.score - a.score for a, b in pairs if a.score is not None and b.score is not None]
    return TableChanges(
        clips=(len(before), len(after)),
        added=[clip.audio_file for clip in added if clip.audio_file not in new_names],
        gone=[clip.audio_file for clip in removed if clip.audio_file not in old_names],
        renamed=[(a.audio_file, b.audio_file) for a, b in renamed],
        replaced=[b.audio_file for a, b in pairs if None not in (a.sha256, b.sha256) and a.sha256 != b.sha256],
        moved=[ScoreChange(b.audio_file, a.score, b.score) for a, b in pairs if a.score != b.score],
        relabelled=[
            LabelChange(b.audio_file, name, getattr(a, name), getattr(b, name))
            for a, b in pairs
            for name in LABELS
            if getattr(a, name) != getattr(b, name)
        ],
        sources=_count_sources(before, after),
        mean_before=_mean(clip.score for clip in before if clip.score is not None),
        mean_after=_mean(clip.score for clip in after if clip.score is not None),
        mean_shift=_mean(shifts),
    )


def describe(changes: TableChanges) -> list[str]:
    """Describe changes in lines of text, counts first; an empty list without changes."""
    if not changes:
        return []
    lines = [f"clips: {changes.clips[0]} -> {changes.clips[1]}"]
    for label, names in (("added", changes.added), ("removed", changes.gone), ("new audio", changes.replaced)):
        if names:
            lines.append(f"{label}: {len(names)} ({shorten(names)})")
    if changes.renamed:
        lines.append(f"renamed: {len(changes.renamed)} ({shorten([f'{a} -> {b}' for a, b in changes.renamed])})")
    if changes.moved:
        scores = [f"{name} {_number(before)} -> {_number(after)}" for name, before, after in changes.moved]
        shift = "" if changes.mean_shift is None else f", mean change of the clips in both {changes.mean_shift:+.2f}"
        lines.append(f"scores changed: {len(changes.moved)} ({shorten(scores)}){shift}")
    for field in LABELS:
        if found := [change for change in changes.relabelled if change.field == field]:
            values = [f"{change.audio_file} {change.before or '-'} -> {change.after or '-'}" for change in found]
            lines.append(f"{field} changed: {len(found)} ({shorten(values)})")
    for source, (before, after) in changes.sources.items():
        if before != after:
            lines.append(f"{source}: {before} -> {after}")
    if changes.mean_before != changes.mean_after:
        lines.append(f"mean score: {_number(changes.mean_before)} -> {_number(changes.mean_after)}")
    return lines


def status(folder: Path, since: str | None = None) -> FolderStatus:
    """Compare a data folder with `<folder>.dvc`, and that with a git revision (HEAD if it has a version).

    Raises DataError when the folder has no labels table, a table cannot be read, git has no such revision, or a
    version's table is neither in DVC's cache nor on its remote.
    """
    now = file_md5s(folder)
    version, digest = recorded_version(folder), digest_of(now)
    clips = _with_content(read_labels(find_labels(folder)).clips, now)
    recorded, recorded_clips = _read_version(folder, None) if version not in (None, digest) else (now, clips)
    uncommitted = None if version is None else compare_tables(recorded_clips, clips)
    if since is None:
        with contextlib.suppress(DataError):  # no git, or no commit yet
            since = None if recorded_version(folder, "HEAD") is None else "HEAD"
    version_since = None if since is None else recorded_version(folder, since)
    committed, other = None, OtherFiles([], [], [])
    if version is not None and version_since is not None:
        then, then_clips = _read_version(folder, since) if version_since != version else (recorded, recorded_clips)
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


def last_scores(folder: Path) -> dict[str, list[float]]:
    """Read the scores of the last sorted version from its indexes, by source ("" for clips without one).

    Raises DataError for an index that cannot be read; without indexes, the result is empty.
    """
    scores: dict[str, list[float]] = defaultdict(list)
    for name in SPLITS:
        path = folder / "index" / f"{name}.json"
        for group in read_index(path) if path.is_file() else []:
            for clip in group:
                if clip.score is not None:
                    scores[clip.source or ""].append(clip.score)
    return dict(scores)


def _read_version(folder: Path, revision: str | None) -> tuple[dict[str, str], list[Clip]]:
    """The files and the clips of a recorded version; no clips if it has no labels table."""
    files = recorded_files(folder, revision)
    with tempfile.TemporaryDirectory() as scratch:
        found = sorted(TABLES & files.keys())
        for name in found:
            (Path(scratch) / name).write_bytes(recorded_file(folder, name, revision) or b"")
        clips = read_labels(find_labels(Path(scratch))).clips if found else []
    return files, _with_content(clips, files)


def _with_content(clips: Iterable[Clip], md5s: Mapping[str, str]) -> list[Clip]:
    """Clips with the MD5 of their file as `sha256`: every version has an MD5, and only equality is tested."""
    return [dataclasses.replace(clip, sha256=md5s.get(clip.audio_file)) for clip in clips]


def _other_files(before: Mapping[str, str], after: Mapping[str, str], clips: Iterable[Clip]) -> OtherFiles:
    listed = TABLES | {clip.audio_file for clip in clips}
    old, new = before.keys() - listed, after.keys() - listed
    return OtherFiles(
        added=sorted(new - old),
        gone=sorted(old - new),
        changed=sorted(name for name in old & new if before[name] != after[name]),
    )


def _by_content(clips: Iterable[Clip]) -> dict[str, Clip]:
    """Clips by content, if it is available and unique among them."""
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
