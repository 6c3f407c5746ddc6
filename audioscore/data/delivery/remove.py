"""Remove recordings from a data folder, for example when a singer withdraws consent, and purge their stored copies.

After a kill, removing the same recordings again completes the removal.
"""

import contextlib
import copy
import datetime
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audioscore.data.clips import Clip
from audioscore.data.delivery.add import incoming_folder, remove_leftovers
from audioscore.data.delivery.folder_state import (
    FolderState,
    LabelsFile,
    Withdrawn,
    read_folder_state,
    read_labels_file,
    write_labels_file,
    write_order,
    write_withdrawn,
)
from audioscore.data.index import read_index, write_index
from audioscore.data.spelling import NamesOnDisk, file_key, id_key, path_on_disk
from audioscore.data.split.groups import SPLITS
from audioscore.data.versions.dvc import dvc_errors, locked, open_repository
from audioscore.data.versions.repository import files_of, git, record_of, recorded_files
from audioscore.data.versions.revision import recorded_md5
from audioscore.errors import DataError, UsageError, shorten
from audioscore.files import digest_of_file, sha256_of

if TYPE_CHECKING:
    from dvc.repo import Repo

ALGORITHMS = ("md5", "md5-dos2unix")  # DVC's hashes of content since version 3, and before
PATHS_PER_COMMAND = 500


@dataclass(frozen=True)
class RemoveResult:
    """Names of removed recordings; `kept` are files outside the data folder, which are not deleted."""

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
) -> RemoveResult:
    """Remove recordings by their names in the table (or SHA-256), or all recordings of a singer.

    Every row with the same content is removed, unusable rows included. The hashes are stored in withdrawn.json, so that
    a later delivery does not add the recordings again. `own_columns` and `own_singers` are the folder's `column_map`
    and `singer_from`.

    Raises DataError, before anything changes, for a name or singer that the folder does not have, and for a recording
    without file and hash: a later delivery could add it again.
    """
    if not names and not singers:
        raise UsageError("recordings: none given. Name them as the table does, or give --singer.")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Give the data folder that holds the recordings.")
    day = (today or datetime.date.today()).isoformat()
    with incoming_folder(folder):
        remove_leftovers(folder)
        table = read_labels_file(folder, own_columns)
        state = read_folder_state(folder, table, own_singers)
        chosen = _choose(folder, state, names, singers)
        removed = {clip.audio_file for clip in chosen}
        keys = {file_key(name) for name in removed}
        write_withdrawn(folder, state.withdrawn | _withdraw(folder, chosen, day, state.withdrawn))
        _keep_hashes(folder, table, state, keys)
        kept = [name for name in sorted(removed) if not _delete(folder, name)]
        _remove_from_indexes(folder, keys)
        write_order(folder, [_without(group, keys) for group in state.groups])
        table.remove({clip.row for clip in state.rows if clip.row and file_key(clip.audio_file) in keys})
        write_labels_file(folder, table)
    return RemoveResult(sorted(removed), kept)


def delete_copies(home: Path, contents: Mapping[str, Withdrawn]) -> int:
    """Delete copies and features of removed recordings below a home folder, and return the number of files.

    `contents` are the recordings by SHA-256; files of another size are not read.
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


def _choose(folder: Path, state: FolderState, names: Sequence[str], singers: Sequence[str]) -> list[Clip]:
    """The named recordings and those of the singers, with every other row of the same file or content."""
    clips = [*state.rows, *state.ordered]
    on_disk = NamesOnDisk(folder)
    named = {name: file_key(on_disk.find(name)) for name in names}
    keys, contents = set(named.values()), {name.lower() for name in names}
    chosen_singers = {id_key(singer) for singer in singers}
    all_keys = {file_key(clip.audio_file) for clip in clips}
    by_content = {clip.sha256 for clip in clips}
    all_singers = {id_key(clip.singer_id) for clip in clips if clip.singer_id}
    unknown = [name for name in names if named[name] not in all_keys and name.lower() not in by_content]
    unknown += [f"singer {singer}" for singer in singers if id_key(singer) not in all_singers]
    if unknown:
        raise DataError(
            f"{folder}: {len(unknown)} of {len(names) + len(singers)} are not in it ({shorten(unknown)}); nothing was "
            f"removed. Name recordings as the table's audio_file does."
        )
    chosen = [
        clip
        for clip in clips
        if file_key(clip.audio_file) in keys
        or clip.sha256 in contents
        or (clip.singer_id and id_key(clip.singer_id) in chosen_singers)
    ]
    same_content = {clip.sha256 for clip in chosen} - {None}
    same_file = {file_key(clip.audio_file) for clip in chosen}
    chosen = [clip for clip in clips if clip.sha256 in same_content or file_key(clip.audio_file) in same_file]
    if lost := sorted({clip.audio_file for clip in chosen if not clip.sha256}):
        raise DataError(
            f"{folder}: {len(lost)} recordings have neither a file nor a hash ({shorten(lost)}); nothing was removed. "
            f"Correct their names in the tables, or delete their rows."
        )
    return chosen


def _keep_hashes(folder: Path, table: LabelsFile, state: FolderState, keys: Collection[str]) -> None:
    """Write the hashes of removed recordings into the tables: after a kill, their files may be deleted already."""
    hashed = copy.deepcopy(table)
    for clip in state.rows:
        if clip.row and clip.sha256 and file_key(clip.audio_file) in keys:
            hashed.update(clip.row, {"sha256": clip.sha256})
    write_labels_file(folder, hashed)
    write_order(folder, state.groups)


def _withdraw(folder: Path, clips: Sequence[Clip], day: str, before: Mapping[str, Withdrawn]) -> dict[str, Withdrawn]:
    """New entries of withdrawn.json by SHA-256; an existing entry, as after a kill, is kept."""
    md5s: dict[str, str] = {}
    paths = {clip.audio_file: path_on_disk(folder, clip.audio_file) for clip in clips}
    if not all(path.is_file() for path in paths.values()):
        with contextlib.suppress(DataError):  # without a readable record, there is nothing to purge
            md5s = recorded_files(folder)
    entries = {clip.sha256: Withdrawn(day, md5s.get(clip.audio_file)) for clip in clips if clip.sha256}
    for path in set(paths.values()):
        if path.is_file():
            entries[sha256_of(path)] = Withdrawn(day, digest_of_file(path, "md5"), path.stat().st_size)
    return {content: one for content, one in entries.items() if content not in before or not before[content].md5}


def _delete(folder: Path, name: str) -> bool:
    """Delete a recording of the folder; False if the file is outside the folder."""
    path = path_on_disk(folder, name)
    if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder)):
        return False
    path.unlink(missing_ok=True)
    return True


def _without(group: Sequence[Clip], keys: Collection[str]) -> list[Clip]:
    return [clip for clip in group if file_key(clip.audio_file) not in keys]


def _remove_from_indexes(folder: Path, keys: Collection[str]) -> None:
    for split in SPLITS:
        path = folder / "index" / f"{split}.json"
        if path.is_file():
            write_index(path, [_without(group, keys) for group in read_index(path, resort=True)])


# --- purge from DVC ---


@dataclass(frozen=True)
class PurgeResult:
    """What a purge removed, and what remains to be done.

    `removed` counts objects by store: `cache`, or a remote's name. `failed` gives the reason for each remote that was
    not purged. `broken` lists git commits whose version can no longer be pulled completely, newest first; `unknown`
    those whose list of files is not available. `in_git` names remotes inside the git repository, whose history still
    holds purged objects.
    """

    removed: dict[str, int]
    failed: dict[str, str]
    broken: list[str]
    unknown: list[str]
    in_git: list[str]


def purge(md5s: Collection[str], folder: Path, remotes: Sequence[str] | None = None) -> PurgeResult:
    """Delete content from DVC's local cache and from the named remotes, or from all configured ones.

    Other files of the versions that held it, and the versions' lists of names, are kept. An unreachable remote is
    listed and does not stop the others; a purge can be repeated safely.

    Raises DataError, before anything is removed, when `<folder>.dvc` still records some of the content, or a remote is
    not configured.
    """
    unwanted = set(md5s)
    held = {name: md5 for name, md5 in recorded_files(folder).items() if md5 in unwanted}
    if held:
        raise DataError(
            f"{record_of(folder).name}: still has {len(held)} files to purge ({shorten(sorted(held))}). Remove "
            f"them from {folder} and record it first."
        )
    with open_repository(folder) as repository, locked(repository):
        names = list(repository.config["remote"]) if remotes is None else list(remotes)
        if unknown_remotes := sorted(set(names) - set(repository.config["remote"])):
            raise DataError(f"{folder}: DVC has no remote {shorten(unknown_remotes)}. `dvc remote list` lists them.")
        broken, unknown = _versions_with(repository, folder, unwanted)  # while the lists can still be fetched
        removed = {
            "cache": sum(_remove(store, unwanted) for store in (repository.cache.local, repository.cache.legacy))
        }
        failed: dict[str, str] = {}
        for name in names:
            try:
                with dvc_errors(f"remote {name}: was not purged", "Correct this, and purge again."):
                    removed[name] = sum(_remove(store, unwanted) for store in _stores(repository, name))
            except DataError as error:
                failed[name] = str(error)
        in_git = [name for name in names if name not in failed and _is_in_git(repository, folder, name, unwanted)]
    return PurgeResult(removed, failed, broken, unknown, in_git)


def _stores(repository: "Repo", name: str) -> list[Any]:
    return [repository.cloud.get_remote_odb(name, "purge", hash_name=algorithm) for algorithm in ALGORITHMS]


def _remove(store: Any, md5s: Iterable[str]) -> int:
    """Delete objects from a store, verify the deletion, and return the number of objects that existed."""
    found = set(store.oids_exist(set(md5s)))
    for md5 in found:
        with contextlib.suppress(FileNotFoundError):
            store.delete(md5)
    if left := set(store.oids_exist(found)) if found else set():
        raise OSError(f"{len(left)} of {len(found)} objects still exist after their removal")
    return len(found)


def _versions_with(repository: "Repo", folder: Path, md5s: set[str]) -> tuple[list[str], list[str]]:
    """Git commits that changed the folder's `.dvc` file and whose version holds any of the contents; and unknown ones.

    A commit stands for the later ones, up to the next that changes the file.
    """
    record = record_of(folder)
    broken: list[str] = []
    unknown: list[str] = []
    try:
        log = git(folder, "log", "--all", "--format=%H", "--diff-filter=AMRT", "--", f"./{record.name}")
    except DataError:  # without git or commits, there are no earlier versions
        return [], []
    for commit in log.decode().split():
        try:
            version = recorded_md5(git(folder, "show", f"{commit}:./{record.name}"), record.stem)
            if not md5s.isdisjoint(files_of(repository, folder, version).values()):
                broken.append(commit)
        except DataError:
            unknown.append(commit)
    return broken, unknown


def _is_in_git(repository: "Repo", folder: Path, name: str, md5s: set[str]) -> bool:
    """Whether git's history holds any of the contents as an object of a remote inside the work tree."""
    store = repository.cloud.get_remote_odb(name, "purge")
    if store.fs.protocol != "local":
        return False
    paths = [str(store.oid_to_path(md5)) for md5 in sorted(md5s)]
    try:
        return any(
            git(folder, "log", "--all", "-1", "--format=%H", "--", *paths[start : start + PATHS_PER_COMMAND])
            for start in range(0, len(paths), PATHS_PER_COMMAND)
        )
    except DataError:  # the remote is outside the repository
        return False
