"""Taking recordings out of DVC's cache and remotes, so that no version can bring them back."""

import contextlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audioscore.data.versions.dvc import explained, locked, open_repository
from audioscore.data.versions.history import files_of, git, recorded_files
from audioscore.data.versions.repository import record_of
from audioscore.data.versions.revision import recorded_md5
from audioscore.errors import DataError, shorten

if TYPE_CHECKING:
    from dvc.repo import Repo

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
