"""Record versions of a data folder with DVC, push and pull them, and read files of earlier versions.

A SIGKILL at any moment must lose no file and must not prevent the next run. DVC 3.67 does not guarantee this:

- `dvc add` finally links the workspace to its cache again. If the cache uses links (`cache.type` hardlink or symlink)
  or a file has other hard links (as linked recordings do), DVC removes the file before it restores it from the cache:
  a kill in between loses the file. Here, nothing is relinked: files are only read, and copied (by reflink where the
  file system supports it) into the cache under a temporary name first.
- It writes `<folder>.dvc` in place, so a kill leaves it empty. Here, it is replaced atomically once the cache is
  complete.
- The repository lock is released by the kernel when its owner dies. The list of busy paths, `.dvc/tmp/rwlock`, is not:
  it is written in place and names its owners by process numbers, which may be in use again. It is repaired before use.
"""

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audioscore.data.versions.dvc import await_remote, dvc_errors, locked, open_repository, repair_rwlock
from audioscore.data.versions.revision import data_files, data_revision, folder_digest, recorded_md5
from audioscore.errors import DataError, shorten
from audioscore.files import write_text

if TYPE_CHECKING:
    from dvc.repo import Repo


@dataclass(frozen=True)
class Version:
    """A recorded state of a folder: DVC's MD5 (`<md5>.dir`), its files and bytes, and whether the record is new."""

    md5: str
    files: int
    bytes: int
    changed: bool


def record_of(folder: Path) -> Path:
    """Return the path of the `.dvc` file that records a folder.

    >>> record_of(Path("/srv/songs/data")).as_posix()
    '/srv/songs/data.dvc'
    """
    folder = Path(os.path.abspath(folder))
    return folder.with_name(f"{folder.name}.dvc")


# --- record ---


def commit(folder: Path) -> Version:
    """Record a folder with DVC: copy its content to the cache and write its MD5 to `<folder>.dvc`.

    Does nothing when the record is correct and the cache is complete. Files are only read, never moved or linked.

    Raises DataError when the folder does not exist, is empty, has no DVC repository around it, is tracked by git, is
    part of another record, is locked by another DVC process, or changes during the call.
    """
    folder = Path(os.path.abspath(folder))
    sizes = [path.stat().st_size for path in data_files(folder).values() if path.exists()]
    if not sizes:
        raise DataError(f"{folder}: holds no files, so there is nothing to record. Add recordings first.")
    with open_repository(folder) as repository:
        digest = folder_digest(folder)
        record = record_of(folder)
        if record.is_file() and not record.read_text(encoding="utf-8").strip():
            record.unlink()  # left by a killed `dvc add`, which recorded nothing
        if data_revision(folder) == digest and _is_cached(repository, digest):
            return Version(digest, len(sizes), sum(sizes), changed=False)
        with dvc_errors(f"{folder}: cannot be recorded", "Correct this, and run the command again."):
            _add(repository, folder, record)
    if (recorded := data_revision(folder)) != digest:
        raise DataError(
            f"{folder}: DVC recorded {recorded}, but the digest of the files is {digest}: a file changed during the "
            f"call, or a .dvcignore excludes some. Run the command again, or correct the .dvcignore."
        )
    return Version(digest, len(sizes), sum(sizes), changed=True)


def _add(repository: "Repo", folder: Path, record: Path) -> None:
    """Do what `dvc add --no-relink` does, but write the record atomically."""
    from dvc.repo.add import get_or_create_stage
    from dvc.stage.serialize import to_single_stage_file
    from dvc.utils.serialize import dumps_yaml

    repair_rwlock(Path(repository.tmp_dir))
    with locked(repository), repository.scm_context(quiet=True):
        if _is_in_git(folder):
            raise DataError(f"{folder}: is tracked by git. Run `git rm -r -q --cached {folder.name}` first.")
        stage = get_or_create_stage(repository, str(folder)).stage
        if Path(stage.path) != record:
            raise DataError(f"{folder}: is part of the folder that {stage.path} records. Record that folder instead.")
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


def _is_cached(repository: "Repo", md5: str) -> bool:
    """Whether the local cache holds a recorded folder: its list of files, and each file."""
    cache = repository.cache.local
    listing = Path(cache.oid_to_path(md5))
    if not listing.is_file():
        return False
    content = {str(entry["md5"]) for entry in json.loads(listing.read_bytes())}
    return all(os.path.exists(cache.oid_to_path(one)) for one in content)


# --- push and pull ---


def push(folders: Sequence[Path], remote: str | None = None) -> int:
    """Send what the folders' `.dvc` files record to a DVC remote and return the number of objects sent.

    Each object is looked up on the remote, so an interrupted push is completed by running it again.

    Raises DataError when a folder has no record, when content is neither in the cache nor on the remote, and when the
    remote is not configured, cannot be reached, or refuses the data.
    """
    return sum(_push(folder, remote) for folder in folders)


def _push(folder: Path, remote: str | None) -> int:
    record, md5 = record_of(folder), data_revision(Path(os.path.abspath(folder)))
    if md5 is None:
        raise DataError(
            f"{folder}: has no version yet ({record.name} is missing). Record one: `dvc add --no-relink {folder}`."
        )
    fix = "Check `dvc remote list`, your credentials and AWS_ENDPOINT_URL, and push again; sent files are not repeated."
    with open_repository(folder) as repository, locked(repository):
        name = remote or repository.config["core"].get("remote") or "(not configured)"
        with dvc_errors(f"{record.name}: cannot be pushed to remote {name}", fix):
            await_remote(repository, remote)
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
        # Without DVC's index of remotes, which regards a version as complete if its list is there, purged or not.
        wanted = {HashInfo("md5", md5)}
        options = {"shallow": False, "cache_odb": cache, "validate_status": refuse_missing, "callback": callback}
        result = transfer(cache, store, wanted, **options)
    if result.failed:
        raise OSError(f"{len(result.failed)} of {len(result.failed) + len(result.transferred)} files were not sent")
    return len(result.transferred)


def _missing(folder: Path, objects: list[str]) -> DataError:
    return DataError(
        f"{folder}: {len(objects)} objects of its version are neither in DVC's cache nor on the remote "
        f"({shorten(sorted(objects))}). Record the folder again: `dvc add --no-relink {folder.name}`."
    )


def pull(records: Sequence[Path], remote: str | None = None) -> int:
    """Pull what `.dvc` files record into the working tree and return the number of files written.

    Files that differ from the record are never overwritten, and nothing changes before a version is completely
    fetched: DVC itself deletes a folder before it notices that the new one is incomplete.

    Raises DataError when the remote lacks something or a local change is in the way.
    """
    names = ", ".join(record.name for record in records)
    fix = (
        "Check `dvc remote list`, push the version where it was made (`audioscore data push`), and save or remove "
        "local changes first."
    )
    with dvc_errors(f"{names}: cannot be pulled", fix), open_repository(records[0]) as repository:
        targets = [os.path.abspath(record) for record in records]
        await_remote(repository, remote)
        repository.fetch(targets=targets, remote=remote)
        for record in records:
            md5 = recorded_md5(record.read_bytes(), record.stem)
            if md5.endswith(".dir") and not _is_cached(repository, md5):
                raise OSError(f"version {md5} is incomplete on the remote")
        stats = repository.pull(targets=targets, remote=remote)["stats"]
    return int(stats["added"]) + int(stats["modified"])


def pull_missing(path: Path, report: Callable[[str], object]) -> None:
    """Pull `path` if it does not exist and a `.dvc` file records it or a folder above it.

    An existing path that differs from its record is not changed; `report` gets a note about it.
    """
    for folder in (path, *path.parents):
        if not folder.name:
            return  # the root of the file system or of a relative path: it has no record
        record = folder.with_name(f"{folder.name}.dvc")
        if not record.is_file():
            continue
        if not path.exists():
            report(f"pulling {folder.name} from the DVC remote")
            pull([record])
        elif folder_digest(folder) != data_revision(folder):
            report(f"note: {folder.name} differs from {record.name}; run `audioscore data pull`")
        return


# --- earlier versions ---


def recorded_version(folder: Path, revision: str | None = None) -> str | None:
    """Read the MD5 that `<folder>.dvc` records, now or at a git revision; None without such a file.

    Raises DataError when git has no such revision, or the file records no MD5.
    """
    record = record_of(folder)
    if revision is None:
        return recorded_md5(record.read_bytes(), record.stem) if record.is_file() else None
    git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if not git(folder, "ls-tree", "--name-only", "--end-of-options", revision, "--", f"./{record.name}"):
        return None
    return recorded_md5(git(folder, "show", f"{revision}:./{record.name}"), record.stem)


def recorded_files(folder: Path, revision: str | None = None, remote: str | None = None) -> dict[str, str]:
    """Return the MD5 of every file of a recorded version, by relative name; empty without a record.

    The list is read from DVC's cache, or fetched from a remote into it. Raises DataError when neither has it.
    """
    md5 = recorded_version(folder, revision)
    if md5 is None:
        return {}
    with open_repository(folder) as repository:
        return files_of(repository, folder, md5, remote)


def recorded_file(folder: Path, name: str, revision: str | None = None, remote: str | None = None) -> bytes | None:
    """Return the bytes of one file of a recorded version; None when the version has no such file."""
    md5 = recorded_version(folder, revision)
    if md5 is None:
        return None
    with open_repository(folder) as repository:
        content = files_of(repository, folder, md5, remote).get(name)
        return None if content is None else _read_object(repository, folder, content, remote)


def files_of(repository: "Repo", folder: Path, md5: str, remote: str | None = None) -> dict[str, str]:
    """Return the MD5 of every file of the version with a folder's MD5, by relative name."""
    entries = json.loads(_read_object(repository, folder, md5, remote))
    return {str(entry["relpath"]): str(entry["md5"]) for entry in entries}


def _read_object(repository: "Repo", folder: Path, md5: str, remote: str | None) -> bytes:
    """Read the content with an MD5 from DVC's cache, or fetch it from a remote into the cache."""
    cache = repository.cache.local
    path = Path(cache.oid_to_path(md5))
    if not path.is_file():
        fix = "Push it from a machine that has it, or name the remote that holds it."
        with locked(repository), dvc_errors(f"{folder}: {md5} of its history cannot be fetched", fix):
            await_remote(repository, remote)
            _fetch(repository, cache, md5, remote)
    return path.read_bytes()


def _fetch(repository: "Repo", cache: Any, md5: str, remote: str | None) -> None:
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.transfer import transfer

    store = repository.cloud.get_remote_odb(remote, "fetch")
    if not store.oids_exist([md5]):
        raise FileNotFoundError(f"not found in the cache and on {f'remote {remote}' if remote else 'the remote'}")
    if transfer(store, cache, {HashInfo("md5", md5)}, shallow=True, cache_odb=cache).failed:
        raise OSError("the transfer failed")


def git(folder: Path, *arguments: str) -> bytes:
    """Run a git command beside a data folder and return its output. Raises DataError when it fails."""
    above = record_of(folder).parent
    try:
        return subprocess.run(["git", "-C", str(above), *arguments], check=True, capture_output=True).stdout
    except FileNotFoundError as error:
        raise DataError(f"{above}: git is not installed, so earlier versions cannot be read. Install git.") from error
    except subprocess.CalledProcessError as error:
        text = error.stderr.decode(errors="replace").strip().splitlines()
        revision = arguments[-1].removesuffix("^{commit}")
        reason = text[0].removeprefix("fatal: ") if text else f"git has no revision {revision}"
        raise DataError(f"{above}: {reason}. Give a branch, tag or commit of its repository.") from error
