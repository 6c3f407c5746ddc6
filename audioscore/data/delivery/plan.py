"""Plan what a delivery changes in a data folder, by comparing the content of recordings, not their names."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote, urlsplit

from audioscore.data.clips import Clip
from audioscore.data.delivery.folder_state import FolderState, changed_cells
from audioscore.data.labels import RowError, row_name
from audioscore.data.spelling import normalized_name, path_on_disk, text_name
from audioscore.data.tables import is_text
from audioscore.data.transfer.http import redact_name
from audioscore.errors import DataError, UsageError, shorten
from audioscore.files import sha256_of

AUDIO = "audio"  # the folder of the recordings
UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|\s]+')  # characters with a meaning in a file system or shell
LONGEST = 120  # bytes; file systems allow 255, and a temporary name is longer
METADATA = ("singer_id", "song_id", "source", "artist")  # cells of a row beside its scores
POLICIES = ("error", "mean", "newest")  # for a recording with several scores in one delivery


@dataclass(frozen=True)
class DeliveredRecording:
    """A delivered recording with its SHA-256; `path` is None if an earlier delivery downloaded its link."""

    clip: Clip
    path: Path | None


@dataclass(frozen=True)
class StoredRecording:
    """A recording under its name in the data folder, and the file to copy (None: it is there already)."""

    clip: Clip
    path: Path | None


@dataclass(frozen=True)
class RowUpdate:
    """An existing row, and its cells that change."""

    clip: Clip
    cells: dict[str, str]


@dataclass(frozen=True)
class AddPlan:
    """The changes of a data folder. `groups` are all groups without scores that it holds afterwards."""

    added: list[StoredRecording]
    updated: list[RowUpdate]
    restored: list[StoredRecording]  # existing recordings whose files were missing or damaged
    ordered: list[StoredRecording]  # new recordings without scores
    groups: list[list[Clip]]
    unchanged: int
    repeats: int
    refused: list[RowError]
    notes: list[str]

    @property
    def changes(self) -> bool:
        """Whether the data folder changes."""
        return bool(self.added or self.updated or self.restored or self.ordered)


def plan_add(
    scored: Sequence[DeliveredRecording],
    groups: Sequence[Sequence[DeliveredRecording]],
    state: FolderState,
    folder: Path,
    *,
    on_conflict: str = "error",
    locations: Mapping[int, str] = MappingProxyType({}),
) -> AddPlan:
    """Compare delivered recordings with the content of the data folder.

    A recording with new content is added. For existing content, a different score, singer or other non-blank cell is
    an update. A recording with several scores in one delivery is a conflict; `on_conflict` raises an error, or takes
    the mean or the newest score (of the last row). `locations` are those of the delivered table.

    Raises DataError for a conflict, UsageError for an unknown policy.
    """
    if on_conflict not in POLICIES:
        raise UsageError(f"--on-conflict {on_conflict}: expected one of {', '.join(POLICIES)}.")
    delivered = [*scored, *(one for group in groups for one in group)]
    refused = [_withdrawn(one.clip, state) for one in delivered if one.clip.sha256 in state.withdrawn]
    wanted = [one for one in scored if one.clip.sha256 not in state.withdrawn]
    merged, repeats, notes = _merge_rows(wanted, on_conflict, locations)
    names = _Names(folder, state)
    rows: dict[str | None, list[Clip]] = defaultdict(list)
    for clip in state.rows:
        rows[clip.sha256].append(clip)
    ordered = {clip.sha256: clip for clip in state.ordered}
    added: list[StoredRecording] = []
    updated: list[RowUpdate] = []
    restored: list[StoredRecording] = []
    unchanged = 0
    for one in merged:
        content = one.clip.sha256
        mine, replaced = rows.get(content, []), {}
        if not mine and (inside := _inside(folder, one.path)) in state.damaged:
            # The file of an existing row was replaced by another recording: the row now describes the new one.
            mine, replaced = [clip for clip in state.rows if clip.audio_file == inside], {"sha256": str(content)}
        if not mine:
            added.append(names.store(one, ordered.get(content)))
            continue
        if not replaced:
            restored += [StoredRecording(clip, one.path) for clip in mine if one.path and names.may_be_restored(clip)]
        updates = [RowUpdate(clip, changed_cells(clip, one.clip) | replaced) for clip in mine]
        updated += [update for update in updates if update.cells]
        unchanged += not any(update.cells for update in updates)
    has_score = state.scored | {str(one.clip.sha256) for one in merged}
    new, kept, order_notes = _plan_order(groups, state, names, has_score)
    return AddPlan(added, updated, restored, new, kept, unchanged, repeats, refused, notes + order_notes)


def recording_name(delivered: str, sha256: str, taken: Container[str]) -> str:
    """Name a delivered recording: `audio/` and its base name, with 8 digits of its hash if that name is taken.

    `taken` holds names in `normalized_name` form.

    >>> recording_name("https://host/a/my%20song.M4A?key=1", "5fd2" * 16, set())
    'audio/my_song.m4a'
    >>> recording_name("new/a.wav", "5fd2" * 16, {"audio/a.wav"})
    'audio/a-5fd25fd2.wav'
    """
    path = unquote(urlsplit(delivered).path) if "://" in delivered else delivered
    base = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
    base = UNSAFE.sub("_", unicodedata.normalize("NFC", base)).strip("._- ")
    stem, suffix = PurePosixPath(base).stem, PurePosixPath(base).suffix.lower()
    stem = stem.encode()[: LONGEST - len(suffix.encode())].decode(errors="ignore") or sha256[:16]
    name = f"{AUDIO}/{stem}{suffix}"
    return name if normalized_name(name) not in taken else f"{AUDIO}/{stem}-{sha256[:8]}{suffix}"


def _withdrawn(clip: Clip, state: FolderState) -> RowError:
    day = state.withdrawn[clip.sha256 or ""].removed
    reason = f"was removed on {day} and is not added again; to add it, delete its entry in withdrawn.json"
    return RowError(clip.row or 0, redact_name(clip.audio_file), reason)


class _Names:
    """The names in use: of existing recordings, and of those that are being added."""

    def __init__(self, folder: Path, state: FolderState) -> None:
        self.folder = folder
        self.lost = state.missing | state.damaged
        self.taken = {normalized_name(clip.audio_file) for clip in [*state.rows, *state.ordered]}

    def may_be_restored(self, clip: Clip) -> bool:
        """Whether the file of an existing recording is missing or damaged, and belongs inside the folder."""
        path = Path(os.path.abspath(self.folder / clip.audio_file))
        return clip.audio_file in self.lost and path.is_relative_to(os.path.abspath(self.folder))

    def store(self, one: DeliveredRecording, existing: Clip | None = None) -> StoredRecording:
        """Name a recording; an existing one, and one inside the folder, keeps its name."""
        inside = _inside(self.folder, one.path)
        name = existing.audio_file if existing else inside or self._new(one)
        self.taken.add(normalized_name(name))
        origin = one.clip.origin or (existing.origin if existing else None)
        clip = replace(one.clip, audio_file=name, origin=origin, row=None)
        return StoredRecording(clip, None if name == inside else one.path)

    def _new(self, one: DeliveredRecording) -> str:
        content = one.clip.sha256 or ""
        name = recording_name(one.clip.audio_file, content, self.taken)
        path = path_on_disk(self.folder, name)
        # A file that no table names is not replaced, unless an interrupted delivery wrote the same recording.
        if path.exists() and not (path.is_file() and sha256_of(path) == content):
            name = recording_name(one.clip.audio_file, content, {normalized_name(name)})
        return name


def _inside(folder: Path, path: Path | None) -> str | None:
    """The name of a file in the folder; None for files elsewhere and names that a table cannot hold."""
    if path is None or not folder.exists() or not path.resolve().is_relative_to(folder.resolve()):
        return None
    name = text_name(folder, path.resolve().relative_to(folder.resolve()).as_posix())
    clean = name == name.strip() and is_text(name) and not any(ord(letter) < 32 for letter in name)
    return name if clean else None


def _merge_rows(
    scored: Sequence[DeliveredRecording], on_conflict: str, locations: Mapping[int, str]
) -> tuple[list[DeliveredRecording], int, list[str]]:
    """Merge the rows of each recording; also return the number of repeated rows, and notes."""
    same: dict[str, list[DeliveredRecording]] = defaultdict(list)
    for one in scored:
        same[one.clip.sha256 or ""].append(one)
    merged: list[DeliveredRecording] = []
    conflicts: list[str] = []
    notes: list[str] = []
    repeats = 0
    for rows in same.values():
        one, disputed = _merge_metadata(rows)
        if disputed:
            same_names = shorten([redact_name(row.clip.audio_file) for row in rows])
            notes.append(f"{same_names} are the same recording with different {', '.join(disputed)}: left blank")
        scores = [row.clip.score or 0.0 for row in rows]
        if len(set(scores)) > 1:
            named = [(redact_name(row.clip.audio_file), row.clip) for row in rows]
            where = [f"{name} ({row_name(clip.row, locations)}): {clip.score:g}" for name, clip in named]
            conflicts.append(shorten(where))
            score = scores[-1] if on_conflict == "newest" else sum(scores) / len(scores)
            raters = rows[-1].clip.raters if on_conflict == "newest" else ()
            one = replace(one, clip=replace(one.clip, score=score, raters=raters))
        else:
            repeats += len(rows) - 1
        merged.append(one)
    if conflicts and on_conflict == "error":
        raise DataError(
            f"delivery: {len(conflicts)} of {len(same)} recordings have different scores in it "
            f"({shorten(conflicts)}). Correct the table, or pass --on-conflict mean or --on-conflict newest."
        )
    if conflicts:
        notes.insert(0, f"{len(conflicts)} conflicting recordings have the {on_conflict} score ({shorten(conflicts)})")
    return merged, repeats, notes


def _merge_metadata(rows: Sequence[DeliveredRecording]) -> tuple[DeliveredRecording, list[str]]:
    """The first row of a recording with the metadata of all its rows, and the cells on which they disagree."""
    found = {name: {getattr(one.clip, name) for one in rows} - {None} for name in METADATA}
    agreed: dict[str, Any] = {name: next(iter(values)) if len(values) == 1 else None for name, values in found.items()}
    clip = replace(rows[0].clip, **agreed)
    return replace(rows[0], clip=clip), [name for name in METADATA if len(found[name]) > 1]


def _plan_order(
    groups: Sequence[Sequence[DeliveredRecording]], state: FolderState, names: _Names, scored: set[str]
) -> tuple[list[StoredRecording], list[list[Clip]], list[str]]:
    """New recordings without scores, all groups without scores afterwards, and notes."""
    existing = {clip.sha256: clip for clip in state.ordered}
    stored: dict[str | None, StoredRecording] = {}
    kept = [[clip for clip in group if clip.sha256 not in scored] for group in state.groups]
    contents = {tuple(clip.sha256 for clip in group) for group in kept}
    dropped = short = 0
    for group in groups:
        usable = {one.clip.sha256: one for one in group if one.clip.sha256 not in scored | state.withdrawn.keys()}
        dropped += len(group) - len(usable)
        if len(usable) < 2:
            short += 1
            continue
        if tuple(usable) in contents:
            continue
        contents.add(tuple(usable))
        for content, one in usable.items():
            old = existing.get(content)
            if content not in stored and (old is None or names.may_be_restored(old)):
                stored[content] = names.store(one, old)
        kept.append([existing[key] if key in existing else stored[key].clip for key in usable])
    listed = sum(map(len, groups))
    notes = [f"{dropped} of {listed} ordered recordings have scores, are repeated or were removed: left out"] * (
        dropped > 0
    )
    notes += [f"{short} of {len(groups)} ordered groups have fewer than two recordings without scores: left out"] * (
        short > 0
    )
    return list(stored.values()), [group for group in kept if len(group) > 1], notes
