"""Taking recordings out of a data folder, as when a singer withdraws consent.

A process that is killed on the way has forgotten nothing: removing the same recordings again finishes.
"""

import contextlib
import datetime
import hashlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audioscore.data.clips import Clip
from audioscore.data.delivery.add import incoming_of, sweep
from audioscore.data.delivery.folder_state import (
    Known,
    Withdrawn,
    read_known,
    read_labels_file,
    write_labels_file,
    write_order,
    write_withdrawn,
)
from audioscore.data.index import read_index, write_index
from audioscore.data.split.assign import SPLITS
from audioscore.data.split.pseudo_singers import singer_name
from audioscore.data.versions.dvc import explained, locked, open_repository
from audioscore.data.versions.history import files_of, git, recorded_files
from audioscore.data.versions.repository import record_of
from audioscore.data.versions.revision import recorded_md5
from audioscore.errors import DataError, UsageError, shorten
from audioscore.files import sha256_of

if TYPE_CHECKING:
    from dvc.repo import Repo


@dataclass(frozen=True)
class Removed:
    """Names of recordings taken out; `kept` are files outside the data folder, which are not ours to delete."""

    names: list[str]
    kept: list[str]


def remove_recordings(
    folder: Path,
    names: Sequence[str] = (),
    *,
    singers: Sequence[str] = (),
    today: datetime.date | None = None,
    own_columns: Mapping[str, str] | None = None,
    own_singers: str | None = None,
) -> Removed:
    """Remove recordings by their names in the table (or SHA-256), or all of a singer's.

    Every row with the same content goes too, and rows that cannot be used are looked at as well. Their hashes are
    remembered in withdrawn.json, so that a later delivery does not bring them back unnoticed. `own_columns` and
    `own_singers` are the folder's `column_map` and `singer_from`. Raises DataError, before anything changes, where a
    name or singer is not there.
    """
    if not names and not singers:
        raise UsageError("nothing to remove: name recordings as the table does, or give --singer.")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Give the data folder that holds the recordings.")
    day = (today or datetime.date.today()).isoformat()
    with incoming_of(folder):
        sweep(folder)
        table = read_labels_file(folder, own_columns)
        known = read_known(folder, table, own_singers)
        chosen = _choose(folder, known, names, singers)
        gone = {clip.audio_file for clip in chosen}
        write_withdrawn(folder, known.withdrawn | _withdraw(folder, chosen, day, known.withdrawn))
        kept = [name for name in sorted(gone) if not _delete(folder, name)]
        _leave_indexes(folder, gone)
        write_order(folder, [[clip for clip in group if clip.audio_file not in gone] for group in known.groups])
        table.remove({clip.row for clip in known.rows if clip.row and clip.audio_file in gone})
        write_labels_file(folder, table)
    return Removed(sorted(gone), kept)


def delete_copies(home: Path, contents: Mapping[str, Withdrawn]) -> int:
    """Delete copies of removed recordings below a home: linked into runs, and their features; returns how many files.

    `contents` are those recordings by their SHA-256, whose sizes tell which files need to be read.
    """
    sizes = {one.bytes for one in contents.values()} - {None}
    deleted = 0
    for root, _, files in os.walk(home):
        for path in (Path(root) / name for name in files):
            if path.is_symlink() or not path.is_file():
                continue
            if path.stem in contents or (path.stat().st_size in sizes and sha256_of(path) in contents):
                path.unlink()
                deleted += 1
    return deleted


def _choose(folder: Path, known: Known, names: Sequence[str], singers: Sequence[str]) -> list[Clip]:
    """The named recordings and those singers', with every other row about the same file or content."""
    clips = [*known.rows, *known.ordered]
    paths, contents = {os.path.normpath(name) for name in names}, {name.lower() for name in names}
    voices = {singer_name(singer) for singer in singers}
    by_path = {os.path.normpath(clip.audio_file) for clip in clips}
    by_content = {clip.sha256 for clip in clips}
    sung = {singer_name(clip.singer_id) for clip in clips if clip.singer_id}
    lost = [name for name in names if os.path.normpath(name) not in by_path and name.lower() not in by_content]
    lost += [f"singer {singer}" for singer in singers if singer_name(singer) not in sung]
    if lost:
        raise DataError(
            f"{len(lost)} of {len(names) + len(singers)} are not in {folder} ({shorten(lost)}): nothing was removed. "
            f"Name recordings as the table's audio_file does."
        )
    chosen = [
        clip
        for clip in clips
        if os.path.normpath(clip.audio_file) in paths
        or clip.sha256 in contents
        or (clip.singer_id and singer_name(clip.singer_id) in voices)
    ]
    same_content = {clip.sha256 for clip in chosen} - {None}
    same_file = {os.path.normpath(clip.audio_file) for clip in chosen}
    return [clip for clip in clips if clip.sha256 in same_content or os.path.normpath(clip.audio_file) in same_file]


def _withdraw(folder: Path, clips: Sequence[Clip], day: str, before: Mapping[str, Withdrawn]) -> dict[str, Withdrawn]:
    """What to remember of recordings, by their SHA-256; what is remembered already, as after a kill, stays."""
    is_lost = any(not (folder / clip.audio_file).is_file() for clip in clips)
    recorded = _recorded(folder) if is_lost else {}
    told = {clip.sha256: Withdrawn(day, recorded.get(clip.audio_file)) for clip in clips if clip.sha256}
    for path in {folder / clip.audio_file for clip in clips}:
        if path.is_file():
            with path.open("rb") as handle:
                md5 = hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            told[sha256_of(path)] = Withdrawn(day, md5, path.stat().st_size)
    return {content: one for content, one in told.items() if content not in before or not before[content].md5}


def _recorded(folder: Path) -> dict[str, str]:
    """DVC's MD5 of the folder's recorded files: those of recordings that are not there any more."""
    with contextlib.suppress(DataError):  # nothing is recorded, or nowhere to be had: then there is nothing to purge
        return recorded_files(folder)
    return {}


def _delete(folder: Path, name: str) -> bool:
    """Delete a recording of the folder; False where it lies elsewhere."""
    path = folder / name
    if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder)):
        return False
    path.unlink(missing_ok=True)
    return True


def _leave_indexes(folder: Path, gone: Collection[str]) -> None:
    for split in SPLITS:
        path = folder / "index" / f"{split}.json"
        if path.is_file():
            groups = read_index(path, resort=True)
            write_index(path, [[clip for clip in group if clip.audio_file not in gone] for group in groups])


ALGORITHMS = ("md5", "md5-dos2unix")  # DVC's name for content since version 3, and before
PATHS_A_COMMAND = 500


@dataclass(frozen=True)
class Purged:
    """What a purge removed, and what is left to do.

    `removed` counts objects by place: `cache`, or a remote's name. `failed` says why a remote could not be purged.
    `broken` lists the git commits whose `.dvc` file can no longer be pulled whole, newest first; `unknown` those whose
    list of files is nowhere to be had. `in_git` names remotes that lie inside the git repository and whose purged
    objects its history still holds.
    """

    removed: dict[str, int]
    failed: dict[str, str]
    broken: list[str]
    unknown: list[str]
    in_git: list[str]


def purge(md5s: Collection[str], folder: Path, remotes: Sequence[str] | None = None) -> Purged:
    """Remove content from the local cache and from the remotes named, or from every configured one.

    Other files of the versions that held it stay, and so do the versions' lists of names. A remote that cannot be
    reached is listed, and the rest is done; repeating it is safe. Raises DataError, before anything is removed, where
    what `<folder>.dvc` records now still holds any of it, or a remote is unknown.
    """
    unwanted = set(md5s)
    held = {name: md5 for name, md5 in recorded_files(folder).items() if md5 in unwanted}
    if held:
        raise DataError(
            f"{len(held)} files to purge are still part of {record_of(folder).name} "
            f"({shorten(sorted(held))}). Remove them from {folder}, and record it, first."
        )
    with open_repository(folder) as repository, locked(repository):
        names = list(repository.config["remote"]) if remotes is None else list(remotes)
        if strangers := sorted(set(names) - set(repository.config["remote"])):
            raise DataError(f"{folder}: DVC knows no remote {shorten(strangers)}. `dvc remote list` shows them.")
        broken, unknown = _versions_with(repository, folder, unwanted)  # while the lists can still be fetched
        removed = {
            "cache": sum(_remove(store, unwanted) for store in (repository.cache.local, repository.cache.legacy))
        }
        failed: dict[str, str] = {}
        for name in names:
            try:
                with explained(f"remote {name} was not purged", "Mend that, and purge again."):
                    removed[name] = sum(_remove(store, unwanted) for store in _stores(repository, name))
            except DataError as fault:
                failed[name] = str(fault)
        in_git = [name for name in names if name not in failed and _is_in_git(repository, folder, name, unwanted)]
    return Purged(removed, failed, broken, unknown, in_git)


def _stores(repository: "Repo", name: str) -> list[Any]:
    return [repository.cloud.get_remote_odb(name, "purge", hash_name=algorithm) for algorithm in ALGORITHMS]


def _remove(store: Any, md5s: Iterable[str]) -> int:
    """Delete those objects that a store holds; returns how many. Asks again afterwards, so that the count is true."""
    found = set(store.oids_exist(set(md5s)))
    for md5 in found:
        with contextlib.suppress(FileNotFoundError):
            store.delete(md5)
    if left := set(store.oids_exist(found)) if found else set():
        raise OSError(f"{len(left)} of {len(found)} objects are still there after their removal")
    return len(found)


def _versions_with(repository: "Repo", folder: Path, md5s: set[str]) -> tuple[list[str], list[str]]:
    """Git commits that changed the folder's `.dvc` file and whose version holds any of the contents; and unknown ones.

    A commit stands for those after it, up to the next that changes the file.
    """
    record = record_of(folder)
    broken: list[str] = []
    unknown: list[str] = []
    try:
        commits = (
            git(folder, "log", "--all", "--format=%H", "--diff-filter=AMRT", "--", f"./{record.name}").decode().split()
        )
    except DataError:  # no git, or no commit: there are no earlier versions to name
        return [], []
    for commit in commits:
        try:
            version = recorded_md5(git(folder, "show", f"{commit}:./{record.name}"), record.stem)
            if not md5s.isdisjoint(files_of(repository, folder, version).values()):
                broken.append(commit)
        except DataError:
            unknown.append(commit)
    return broken, unknown


def _is_in_git(repository: "Repo", folder: Path, name: str, md5s: set[str]) -> bool:
    """Whether git's history holds any of the contents as an object of a remote that lies inside its work tree."""
    store = repository.cloud.get_remote_odb(name, "purge")
    if store.fs.protocol != "local":
        return False
    paths = [str(store.oid_to_path(md5)) for md5 in sorted(md5s)]
    try:
        return any(
            git(folder, "log", "--all", "-1", "--format=%H", "--", *paths[start : start + PATHS_A_COMMAND])
            for start in range(0, len(paths), PATHS_A_COMMAND)
        )
    except DataError:  # the remote lies outside the repository
        return False
