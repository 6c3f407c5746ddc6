"""What a delivery changes in a data folder, decided by what recordings hold and not by what they are called."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from audioscore.data.clips import Clip
from audioscore.data.delivery.folder_state import Known, changed_cells
from audioscore.data.labels import Fault
from audioscore.data.transfer.http import shown_name
from audioscore.errors import DataError, UsageError, shorten
from audioscore.files import sha256_of

AUDIO = "audio"  # the folder of the recordings
UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|\s]+')  # what some file system or shell takes for something else
LONGEST = 120  # bytes; file systems take 255, and a temporary name adds some


def recording_name(delivered: str, sha256: str, taken: Container[str]) -> str:
    """Where a delivered recording goes: `audio/` and its own base name, with 8 digits of its hash where that is taken.

    `taken` holds names in `folded` form.

    >>> recording_name("https://host/a/my%20song.M4A?key=1", "5fd2" * 16, set())
    'audio/my_song.m4a'
    >>> recording_name("takes/a.wav", "5fd2" * 16, {"audio/a.wav"})
    'audio/a-5fd25fd2.wav'
    """
    path = unquote(urlsplit(delivered).path) if "://" in delivered else delivered
    base = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
    base = UNSAFE.sub("_", unicodedata.normalize("NFC", base)).strip("._- ")
    stem, suffix = PurePosixPath(base).stem, PurePosixPath(base).suffix.lower()
    stem = _shorten(stem, LONGEST - len(suffix.encode())) or sha256[:16]
    name = f"{AUDIO}/{stem}{suffix}"
    return name if folded(name) not in taken else f"{AUDIO}/{stem}-{sha256[:8]}{suffix}"


def folded(name: str) -> str:
    """A name as file systems that ignore case and normal form compare it.

    >>> folded("audio/A.m4a") == folded("audio/a.M4A")
    True
    """
    return unicodedata.normalize("NFC", name).casefold()


def _shorten(text: str, limit: int) -> str:
    return text.encode()[:limit].decode(errors="ignore")


TOLD = ("singer_id", "song_id", "source", "artist")  # what rows say of a recording beside its scores
POLICIES = ("error", "mean", "newest")  # for one recording with several scores in one delivery


@dataclass(frozen=True)
class Gathered:
    """A delivered recording whose content is known; no `path` where its link was followed in an earlier delivery."""

    clip: Clip
    path: Path | None


@dataclass(frozen=True)
class Placed:
    """A recording of the folder under its name there, and where its bytes come from (None: they are there)."""

    clip: Clip
    path: Path | None


@dataclass(frozen=True)
class Update:
    """A known recording, and the cells of its row that change."""

    clip: Clip
    cells: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """What will be done. `groups` are all groups without scores that the folder holds afterwards."""

    added: list[Placed]
    updated: list[Update]
    restored: list[Placed]  # known recordings whose files were missing
    ordered: list[Placed]  # recordings without scores that are new
    groups: list[list[Clip]]
    unchanged: int
    repeats: int
    refused: list[Fault]
    notes: list[str]

    @property
    def changes(self) -> bool:
        return bool(self.added or self.updated or self.restored or self.ordered)


def plan_add(
    scored: Sequence[Gathered],
    groups: Sequence[Sequence[Gathered]],
    known: Known,
    folder: Path,
    *,
    on_conflict: str = "error",
) -> Plan:
    """Compare what was gathered with what the folder holds.

    A recording is new, or known by its content: then a different score, singer or any other cell that is not blank is
    an update. One recording with several scores in one delivery is a conflict: an error, or settled by `on_conflict`:
    the mean, or the newest, which is the row furthest down. Raises DataError for a conflict, UsageError for a policy
    that is none.
    """
    if on_conflict not in POLICIES:
        raise UsageError(f"--on-conflict {on_conflict}: expected one of {', '.join(POLICIES)}.")
    refused = [_withdrawn(one, known) for one in _all(scored, groups) if one.clip.sha256 in known.withdrawn]
    settled, repeats, notes = _settle([one for one in scored if one.clip.sha256 not in known.withdrawn], on_conflict)
    names = _Names(folder, known)
    rows: dict[str | None, list[Clip]] = defaultdict(list)
    for clip in known.rows:
        rows[clip.sha256].append(clip)
    ordered = {clip.sha256: clip for clip in known.ordered}
    added: list[Placed] = []
    updated: list[Update] = []
    restored: list[Placed] = []
    unchanged = 0
    for one in settled:
        content = one.clip.sha256
        mine, replaced = rows.get(content, []), {}
        if not mine and (inside := _inside(folder, one.path)) in known.damaged:
            # Somebody put another take in the place of a known one: its row is about this take from now on.
            mine, replaced = [clip for clip in known.rows if clip.audio_file == inside], {"sha256": str(content)}
        if not mine:
            added.append(names.place(one, ordered.get(content)))
            continue
        if not replaced:
            restored += [Placed(clip, one.path) for clip in mine if one.path and names.may_be_restored(clip)]
        updates = [Update(clip, changed_cells(clip, one.clip) | replaced) for clip in mine]
        updated += [update for update in updates if update.cells]
        unchanged += not any(update.cells for update in updates)
    has_score = known.scored | {str(one.clip.sha256) for one in settled}
    new, kept, told = _order(groups, known, names, has_score)
    return Plan(added, updated, restored, new, kept, unchanged, repeats, refused, notes + told)


def _all(scored: Sequence[Gathered], groups: Sequence[Sequence[Gathered]]) -> list[Gathered]:
    return [*scored, *(one for group in groups for one in group)]


def _withdrawn(one: Gathered, known: Known) -> Fault:
    day = known.withdrawn[one.clip.sha256 or ""].removed
    reason = f"was removed on {day}, and is not taken back; delete its entry in withdrawn.json if it may be"
    return Fault(one.clip.row or 0, shown_name(one.clip.audio_file), reason)


class _Names:
    """Names given out so far: of recordings that are known, and of those that are being added."""

    def __init__(self, folder: Path, known: Known) -> None:
        self.folder = folder
        self.lost = known.missing | known.damaged
        self.taken = {folded(clip.audio_file) for clip in [*known.rows, *known.ordered]}

    def may_be_restored(self, clip: Clip) -> bool:
        """Whether a known recording's file is missing or damaged, and its place is inside the folder."""
        return clip.audio_file in self.lost and _is_inside(self.folder, clip.audio_file)

    def place(self, one: Gathered, known: Clip | None = None) -> Placed:
        """Name a recording; one that is known, or lies in the folder, keeps the name that it has."""
        inside = _inside(self.folder, one.path)
        name = known.audio_file if known else inside or self._new(one)
        self.taken.add(folded(name))
        clip = replace(one.clip, audio_file=name, origin=one.clip.origin or (known.origin if known else None), row=None)
        return Placed(clip, None if name == inside else one.path)

    def _new(self, one: Gathered) -> str:
        content = one.clip.sha256 or ""
        name = recording_name(one.clip.audio_file, content, self.taken)
        there = self.folder / name
        # A file that no table names is left alone, unless an interrupted delivery put this very recording there.
        if there.exists() and not (there.is_file() and sha256_of(there) == content):
            name = recording_name(one.clip.audio_file, content, {folded(name)})
        return name


def _inside(folder: Path, path: Path | None) -> str | None:
    """A file's name in the folder; None where it lies elsewhere, or has a name that no table can hold."""
    if path is None or not folder.exists() or not path.resolve().is_relative_to(folder.resolve()):
        return None
    name = path.resolve().relative_to(folder.resolve()).as_posix()
    return name if name == name.strip() and not any(ord(letter) < 32 for letter in name) else None


def _is_inside(folder: Path, name: str) -> bool:
    return Path(os.path.abspath(folder / name)).is_relative_to(os.path.abspath(folder))


def _settle(scored: Sequence[Gathered], on_conflict: str) -> tuple[list[Gathered], int, list[str]]:
    """One entry a recording, how many rows said nothing new, and what was decided."""
    same: dict[str, list[Gathered]] = defaultdict(list)
    for one in scored:
        same[one.clip.sha256 or ""].append(one)
    settled: list[Gathered] = []
    told: list[str] = []
    notes: list[str] = []
    repeats = 0
    for rows in same.values():
        one, disputed = _agreed(rows)
        if disputed:
            names = " and ".join(shown_name(row.clip.audio_file) for row in rows)
            notes.append(f"{names} are one recording, of which the rows say different {', '.join(disputed)}: left out")
        scores = [row.clip.score or 0.0 for row in rows]
        if len(set(scores)) > 1:
            named = [(shown_name(row.clip.audio_file), row.clip) for row in rows]
            told.append(" and ".join(f"{name} (row {clip.row}): {clip.score:g}" for name, clip in named))
            score = scores[-1] if on_conflict == "newest" else sum(scores) / len(scores)
            raters = rows[-1].clip.raters if on_conflict == "newest" else ()
            one = replace(one, clip=replace(one.clip, score=score, raters=raters))
        else:
            repeats += len(rows) - 1
        settled.append(one)
    if told and on_conflict == "error":
        raise DataError(
            f"{len(told)} of {len(same)} recordings have different scores in this delivery ({shorten(told)}). "
            f"Mend the table, or pass --on-conflict mean or --on-conflict newest."
        )
    if told:
        notes.insert(0, f"{len(told)} conflicting recordings took the {on_conflict} score ({shorten(told)})")
    return settled, repeats, notes


def _agreed(rows: Sequence[Gathered]) -> tuple[Gathered, list[str]]:
    """The first of a recording's rows with what the others add to it, and the cells on which they disagree."""
    said = {name: {getattr(one.clip, name) for one in rows} - {None} for name in TOLD}
    agreed: dict[str, Any] = {name: next(iter(values)) if len(values) == 1 else None for name, values in said.items()}
    return replace(rows[0], clip=replace(rows[0].clip, **agreed)), [name for name in TOLD if len(said[name]) > 1]


def _order(
    groups: Sequence[Sequence[Gathered]], known: Known, names: _Names, scored: set[str]
) -> tuple[list[Placed], list[list[Clip]], list[str]]:
    """New recordings without scores, all such groups afterwards, and what is worth telling."""
    contents = {clip.sha256: clip for clip in known.ordered}
    placed: dict[str | None, Placed] = {}
    kept = [[clip for clip in group if clip.sha256 not in scored] for group in known.groups]
    there = {tuple(clip.sha256 for clip in group) for group in kept}
    notes: list[str] = []
    for group in groups:
        usable = {one.clip.sha256: one for one in group if one.clip.sha256 not in scored | known.withdrawn.keys()}
        if len(usable) < len(group):
            dropped = len(group) - len(usable)
            notes.append(
                f"{dropped} of {len(group)} recordings in order have scores, come twice or were removed: left out"
            )
        if len(usable) < 2:
            notes.append("a group of fewer than two recordings without scores says nothing, and was left out")
            continue
        if tuple(usable) in there:
            continue
        there.add(tuple(usable))
        for content, one in usable.items():
            old = contents.get(content)
            if content not in placed and (old is None or names.may_be_restored(old)):
                placed[content] = names.place(one, old)
        kept.append([contents[key] if key in contents else placed[key].clip for key in usable])
    return list(placed.values()), [group for group in kept if len(group) > 1], notes
