"""What a delivery changes in a data folder, decided by what recordings hold and not by what they are called."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from audioscore.data.clips import Clip
from audioscore.data.ingest.known import Known
from audioscore.data.ingest.labels_file import changed_cells
from audioscore.data.ingest.names import folded, recording_name
from audioscore.data.labels import Fault
from audioscore.errors import DataError, UsageError, shorten
from audioscore.files import sha256_of

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
    scored = [one for one in scored if one.clip.sha256 not in known.withdrawn]
    settled, repeats, notes = _settle(scored, on_conflict)
    names = _Names(folder, known)
    contents = known.by_content
    scored_before = {clip.sha256 for clip in known.clips}
    added: list[Placed] = []
    updated: list[Update] = []
    restored: list[Placed] = []
    unchanged = 0
    for one in settled:
        old = contents.get(one.clip.sha256 or "")
        if old is None or old.sha256 not in scored_before:
            added.append(names.place(one, old))
            continue
        if one.path is not None and not (folder / old.audio_file).is_file():
            restored.append(Placed(old, one.path))
        if cells := changed_cells(old, one.clip):
            updated.append(Update(old, cells))
        else:
            unchanged += 1
    has_score = scored_before | {one.clip.sha256 for one in settled}
    ordered, kept, told = _order(groups, known, names, has_score - {None})
    return Plan(added, updated, restored, ordered, kept, unchanged, repeats, refused, notes + told)


def _all(scored: Sequence[Gathered], groups: Sequence[Sequence[Gathered]]) -> list[Gathered]:
    return [*scored, *(one for group in groups for one in group)]


def _withdrawn(one: Gathered, known: Known) -> Fault:
    day = known.withdrawn[one.clip.sha256 or ""].removed
    reason = f"was removed on {day}, and is not taken back; delete its entry in withdrawn.json if it may be"
    return Fault(one.clip.row or 0, one.clip.audio_file, reason)


class _Names:
    """Names given out so far: of recordings that are known, and of those that are being added."""

    def __init__(self, folder: Path, known: Known) -> None:
        self.folder = folder
        clips = [*known.clips, *(clip for group in known.groups for clip in group)]
        self.taken = {folded(clip.audio_file) for clip in clips} | {folded(fault.audio_file) for fault in known.faults}

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
    if path is None or not folder.exists() or not path.resolve().is_relative_to(folder.resolve()):
        return None
    return path.resolve().relative_to(folder.resolve()).as_posix()


def _settle(scored: Sequence[Gathered], on_conflict: str) -> tuple[list[Gathered], int, list[str]]:
    """One entry a recording, how many rows said nothing new, and what was decided."""
    same: dict[str, list[Gathered]] = defaultdict(list)
    for one in scored:
        same[one.clip.sha256 or ""].append(one)
    settled: list[Gathered] = []
    told: list[str] = []
    repeats = 0
    for rows in same.values():
        first, scores = rows[0], [one.clip.score or 0.0 for one in rows]
        if len(set(scores)) == 1:
            settled.append(first)
            repeats += len(rows) - 1
            continue
        told.append(" and ".join(f"{one.clip.audio_file} (row {one.clip.row}): {one.clip.score:g}" for one in rows))
        if on_conflict == "newest":
            settled.append(rows[-1])
        else:
            settled.append(replace(first, clip=replace(first.clip, score=sum(scores) / len(scores), raters=())))
    if told and on_conflict == "error":
        raise DataError(
            f"{len(told)} of {len(same)} recordings have different scores in this delivery ({shorten(told)}). "
            f"Mend the table, or pass --on-conflict mean or --on-conflict newest."
        )
    notes = [f"{len(told)} conflicting recordings took the {on_conflict} score ({shorten(told)})"] if told else []
    return settled, repeats, notes


def _order(
    groups: Sequence[Sequence[Gathered]], known: Known, names: _Names, scored: set[str | None]
) -> tuple[list[Placed], list[list[Clip]], list[str]]:
    """New recordings without scores, all such groups afterwards, and what is worth telling."""
    contents = {clip.sha256: clip for group in known.groups for clip in group}
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
            if content not in placed and (old is None or not (names.folder / old.audio_file).is_file()):
                placed[content] = names.place(one, old)
        kept.append([contents[key] if key in contents else placed[key].clip for key in usable])
    return list(placed.values()), [group for group in kept if len(group) > 1], notes
