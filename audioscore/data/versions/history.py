"""What earlier versions of a data folder held: their lists of files, and single files, without checking them out."""

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audioscore.data.versions.dvc import explained, locked, open_repository
from audioscore.data.versions.repository import record_of
from audioscore.data.versions.revision import recorded_md5
from audioscore.errors import DataError

if TYPE_CHECKING:
    from dvc.repo import Repo


def recorded_version(folder: Path, revision: str | None = None) -> str | None:
    """The MD5 that `<folder>.dvc` records: now, or at a git revision. None where there is no such file.

    Raises DataError where git knows no such revision, or the file records no MD5.
    """
    record = record_of(folder)
    if revision is None:
        return recorded_md5(record.read_bytes(), record.stem) if record.is_file() else None
    git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if not git(folder, "ls-tree", "--name-only", "--end-of-options", revision, "--", f"./{record.name}"):
        return None
    return recorded_md5(git(folder, "show", f"{revision}:./{record.name}"), record.stem)


def recorded_files(folder: Path, revision: str | None = None, remote: str | None = None) -> dict[str, str]:
    """MD5 of every file of a recorded version, by name relative to the folder; empty where none is recorded.

    Read from DVC's cache, else fetched from a remote into it. Raises DataError where neither has it.
    """
    md5 = recorded_version(folder, revision)
    if md5 is None:
        return {}
    with open_repository(folder) as repository:
        return files_of(repository, folder, md5, remote)


def recorded_file(folder: Path, name: str, revision: str | None = None, remote: str | None = None) -> bytes | None:
    """The bytes of one file as a recorded version holds it; None where that version has no such file."""
    md5 = recorded_version(folder, revision)
    if md5 is None:
        return None
    with open_repository(folder) as repository:
        content = files_of(repository, folder, md5, remote).get(name)
        return None if content is None else read_object(repository, folder, content, remote)


def files_of(repository: "Repo", folder: Path, md5: str, remote: str | None = None) -> dict[str, str]:
    """The list of files that a folder's MD5 stands for."""
    entries = json.loads(read_object(repository, folder, md5, remote))
    return {str(entry["relpath"]): str(entry["md5"]) for entry in entries}


def read_object(repository: "Repo", folder: Path, md5: str, remote: str | None = None) -> bytes:
    """The bytes behind an MD5, from DVC's cache, else fetched from a remote into it."""
    cache = repository.cache.local
    path = Path(cache.oid_to_path(md5))
    if not path.is_file():
        advice = "Push it from a machine that has it, or name the remote that holds it."
        with locked(repository), explained(f"{folder}: {md5} of its history cannot be fetched", advice):
            _fetch(repository, cache, md5, remote)
    return path.read_bytes()


def _fetch(repository: "Repo", cache: Any, md5: str, remote: str | None) -> None:
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.transfer import transfer

    store = repository.cloud.get_remote_odb(remote, "fetch")
    store_has_it = store.oids_exist([md5])
    if not store_has_it:
        raise FileNotFoundError(f"neither the cache nor the remote {remote or ''} has it".replace("  ", " "))
    if transfer(store, cache, {HashInfo("md5", md5)}, shallow=True, cache_odb=cache).failed:
        raise OSError("the transfer failed")


def git(folder: Path, *arguments: str) -> bytes:
    """What a git command says in the folder that holds a data folder; DataError where it fails."""
    above = record_of(folder).parent
    try:
        return subprocess.run(["git", "-C", str(above), *arguments], check=True, capture_output=True).stdout
    except FileNotFoundError as fault:
        raise DataError(f"{above}: git is not installed, so earlier versions cannot be told. Install it.") from fault
    except subprocess.CalledProcessError as fault:
        told = fault.stderr.decode(errors="replace").strip().splitlines()
        reason = told[0].removeprefix("fatal: ") if told else f"git knows no {arguments[-1].removesuffix('^{commit}')}"
        raise DataError(f"{above}: {reason}. Give a branch, tag or commit of its repository.") from fault
