"""Versions of a data folder: recording them with DVC, pushing and pulling them.

A SIGKILL at any moment may lose no file, and must not stop the next run. What DVC 3.67 does, and what follows:

- `dvc add` ends by linking the workspace to its cache again. Where the cache links (`cache.type` hardlink or symlink)
  or a file has other hard links, as recordings that were placed by link do, DVC first removes the file and then puts
  the cached one back: a kill in between leaves a hole. We never relink. Files are only read, and copied (by reflink,
  where the file system can) into the cache, each under a temporary name first.
- It writes `<folder>.dvc` in place: a kill leaves it empty. We write it in one step, after the cache holds all of it.
- Its repository lock is the kernel's and dies with its owner. Its list of busy paths, `.dvc/tmp/rwlock`, does not: it
  is written in place, and names owners by numbers that other processes may have by then. It is mended before use.
"""

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audioscore.data.versions.dvc import explained, locked, mend_rwlock, open_repository
from audioscore.data.versions.revision import data_files, data_revision, folder_digest, recorded_md5
from audioscore.errors import DataError, shorten
from audioscore.files import write_text

if TYPE_CHECKING:
    from dvc.repo import Repo


@dataclass(frozen=True)
class Version:
    """A recorded state of a folder: DVC's MD5 (`<md5>.dir`), its files and bytes, and whether it is a new record."""

    md5: str
    files: int
    bytes: int
    changed: bool


def record_of(folder: Path) -> Path:
    """The `.dvc` file that records a folder.

    >>> record_of(Path("/srv/songs/data")).as_posix()
    '/srv/songs/data.dvc'
    """
    folder = Path(os.path.abspath(folder))
    return folder.with_name(f"{folder.name}.dvc")


def commit(folder: Path) -> Version:
    """Record a folder with DVC: its content goes into the cache, its MD5 into `<folder>.dvc`.

    Does nothing where the record is right and the cache holds all of it. Files are only read, never moved or linked.
    Raises DataError where there is no folder, no file in it or no DVC repository around it, where git tracks it or
    another record holds it, where another DVC process keeps the repository, and where a file changes meanwhile.
    """
    folder = Path(os.path.abspath(folder))
    sizes = [path.stat().st_size for path in data_files(folder).values() if path.exists()]
    if not sizes:
        raise DataError(f"{folder} holds no files, so there is nothing to record. Add recordings first.")
    with open_repository(folder) as repository:
        digest = folder_digest(folder)
        record = record_of(folder)
        if record.is_file() and not record.read_text(encoding="utf-8").strip():
            record.unlink()  # what a killed `dvc add` leaves behind: it recorded nothing
        if data_revision(folder) == digest and is_cached(repository, digest):
            return Version(digest, len(sizes), sum(sizes), changed=False)
        with explained(f"{folder} cannot be recorded", "Mend that, and run the command again."):
            _add(repository, folder, record)
    if (recorded := data_revision(folder)) != digest:
        raise DataError(
            f"{folder}: DVC recorded {recorded}, but the folder's files make {digest}: some changed meanwhile, or a "
            f".dvcignore leaves them out. Run the command again, or mend the .dvcignore."
        )
    return Version(digest, len(sizes), sum(sizes), changed=True)


def push(folders: Sequence[Path], remote: str | None = None) -> int:
    """Send what the folders' `.dvc` files record to a DVC remote; returns how many objects that sent.

    What the remote holds is asked of it, object by object, so a push that was cut is completed by running it again.
    Raises DataError where a folder has no record, where content is neither in the cache nor on the remote, and where
    the remote is unknown, cannot be reached, or refuses.
    """
    return sum(_push(folder, remote) for folder in folders)


def pull(records: Sequence[Path], remote: str | None = None) -> int:
    """Pull what `.dvc` files record into the working tree; returns how many files that put in place.

    Files that differ from the record are never overwritten, and nothing is touched before all of a version is at hand:
    DVC itself takes a folder away before it notices that it cannot put the new one there. Raises DataError where the
    remote lacks something or a local change is in the way.
    """
    names = ", ".join(record.name for record in records)
    advice = (
        "Check `dvc remote list`, that the version was pushed where it was made (`audioscore data push`), and keep or "
        "remove local changes first."
    )
    with explained(f"{names}: cannot be pulled", advice), open_repository(records[0]) as repository:
        targets = [os.path.abspath(record) for record in records]
        repository.fetch(targets=targets, remote=remote)
        for record in records:
            md5 = recorded_md5(record.read_bytes(), record.stem)
            if md5.endswith(".dir") and not is_cached(repository, md5):
                raise OSError(f"version {md5} is not whole on the remote")
        stats = repository.pull(targets=targets, remote=remote)["stats"]
    return int(stats["added"]) + int(stats["modified"])


def pull_missing(path: Path, say: Callable[[str], object]) -> None:
    """Pull `path` where it is not there, but it or a folder above it is recorded in a `.dvc` file.

    What is there but differs from its record is left alone, and that is said.
    """
    for folder in (path, *path.parents):
        if not folder.name:
            return  # the root of the file system, or of a relative path: it has no record
        record = folder.with_name(f"{folder.name}.dvc")
        if not record.is_file():
            continue
        if not path.exists():
            say(f"pulling {folder.name} from the DVC remote")
            pull([record])
        elif folder_digest(folder) != data_revision(folder):
            say(f"note: {folder.name} is not what {record.name} records; `audioscore data pull` fetches that")
        return


# --- commit ---


def _add(repository: "Repo", folder: Path, record: Path) -> None:
    """What `dvc add --no-relink` does, with the record written in one step."""
    from dvc.repo.add import get_or_create_stage
    from dvc.stage.serialize import to_single_stage_file
    from dvc.utils.serialize import dumps_yaml

    mend_rwlock(Path(repository.tmp_dir))
    with locked(repository), repository.scm_context(quiet=True):
        if _is_in_git(folder):
            raise DataError(f"{folder} is tracked by git. Give it to DVC: `git rm -r -q --cached {folder.name}` first.")
        stage = get_or_create_stage(repository, str(folder)).stage
        if Path(stage.path) != record:
            raise DataError(f"{folder} is part of what {stage.path} records. Record that folder as a whole instead.")
        repository.check_graph(stages=[stage])
        stage.add_outs(relink=False)
        write_text(record, dumps_yaml(to_single_stage_file(stage)))
        repository.scm_context.track_file(os.path.relpath(record))


def _is_in_git(folder: Path) -> bool:
    """Whether git tracks any file of a folder; False without git."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "-C", str(folder), "ls-files", "-z", "--", "."]
        return bool(subprocess.run(command, check=True, capture_output=True).stdout)
    return False


def is_cached(repository: "Repo", md5: str) -> bool:
    """Whether the local cache holds a recorded folder: its list of files, and each of them."""
    cache = repository.cache.local
    listing = Path(cache.oid_to_path(md5))
    if not listing.is_file():
        return False
    content = {str(entry["md5"]) for entry in json.loads(listing.read_bytes())}
    return all(os.path.exists(cache.oid_to_path(one)) for one in content)


# --- push ---


def _push(folder: Path, remote: str | None) -> int:
    record, md5 = record_of(folder), data_revision(Path(os.path.abspath(folder)))
    if md5 is None:
        raise DataError(
            f"{folder} has no version yet ({record.name} is missing). Record one: `dvc add --no-relink {folder}`."
        )
    advice = "Check `dvc remote list`, your credentials and AWS_ENDPOINT_URL, and push again: only the rest is sent."
    with open_repository(folder) as repository, locked(repository):
        name = remote or repository.config["core"].get("remote") or "(none is set)"
        with explained(f"{record.name} cannot be pushed to remote {name}", advice):
            return _send(repository, folder, md5, remote)


def _send(repository: "Repo", folder: Path, md5: str, remote: str | None) -> int:
    from dvc.fs.callbacks import TqdmCallback
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.transfer import transfer

    def refuse_missing(status: Any) -> None:
        if status.missing:
            raise _missing(folder, [one.value for one in status.missing])

    cache, store = repository.cache.local, repository.cloud.get_remote_odb(remote, "push")
    if not cache.exists(md5):
        raise _missing(folder, [md5])
    with TqdmCallback(desc=f"Pushing {folder.name}", unit="file") as callback:
        # Without DVC's index of remotes: it takes a version for complete whose list is there, purged or not.
        wanted = {HashInfo("md5", md5)}
        options = {"shallow": False, "cache_odb": cache, "validate_status": refuse_missing, "callback": callback}
        result = transfer(cache, store, wanted, **options)
    if result.failed:
        raise OSError(f"{len(result.failed)} of {len(result.failed) + len(result.transferred)} files were not sent")
    return len(result.transferred)


def _missing(folder: Path, objects: list[str]) -> DataError:
    return DataError(
        f"{folder}: its version cannot be pushed whole; neither DVC's cache nor the remote holds {len(objects)} of its "
        f"objects ({shorten(sorted(objects))}). Record the folder again: `dvc add --no-relink {folder.name}`."
    )
