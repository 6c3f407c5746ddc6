"""Fetch a data folder from its storage: another folder, an S3 prefix, or a git repository with DVC data."""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from audioscore.data.transfer.network import await_server
from audioscore.data.transfer.pool import Hooks, run_all
from audioscore.data.transfer.s3 import S3Object, connect, download_object, folders_of, list_objects, split_uri
from audioscore.data.versions.revision import data_files, data_revision, folder_digest
from audioscore.errors import DataError, shorten
from audioscore.files import atomic_folder, link_or_copy, lower_scheme, uri_to_path

DATA_URI_FORMS = "a folder, s3://BUCKET/PREFIX, or a git repository with DVC data: [git+]URL_OR_PATH@REV[#FOLDER]"
DATA_FOLDER = "data"  # default folder of a git repository
DOWNLOADS = 8  # concurrent
LONGEST_NAME = 255  # bytes
LARGEST_FILE = 1 << 40  # bytes: a data folder may hold other files than recordings
# The part of a repository's address that may contain @ signs: scheme://[user@]host, or [user@]host: as in ssh.
ADDRESS = re.compile(r"(?:[a-z+]+://[^/]*|[^/@]+@[^/:@#]+:)", re.IGNORECASE)


@dataclass(frozen=True)
class FetchReport:
    """What was fetched: the number of files, their bytes, and the git commit or DVC MD5 as `revision`, if any."""

    uri: str
    kind: str  # folder, s3 or git
    files: int
    bytes: int
    revision: str | None


def fetch(data_uri: str, target: Path) -> FetchReport:
    """Fetch the data folder at `data_uri` to `target`, completely or not at all.

    Files of a folder become hard links (copies on another file system). S3 objects are checked by size and checksum, a
    DVC folder by its recorded MD5. Nothing is written at the source. Files that a labels table names by absolute path
    or URI are not fetched. S3 uses the standard credential chain and AWS_ENDPOINT_URL.

    Raises DataError when the source does not exist, is empty, cannot be reached or arrives damaged, and when `target`
    already holds files.
    """
    data_uri = lower_scheme(data_uri)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target}: already holds files, which fetching would replace. Give a new or empty folder.")
    if data_uri.startswith("s3://"):
        return _fetch_s3(data_uri, target)
    if Path(data_uri).is_dir():
        return _fetch_folder(data_uri, target)
    repository, revision, folder = _split_git(data_uri)
    if revision:
        return _fetch_git(data_uri, target, repository, revision, folder)
    if data_uri.startswith("git+"):
        raise DataError(f"{data_uri}: names no revision. Add one: {data_uri.split('#')[0]}@main.")
    raise DataError(f"{data_uri}: no such folder. Give {DATA_URI_FORMS}.")


def _report(uri: str, kind: str, folder: Path, revision: str | None) -> FetchReport:
    sizes = [path.stat().st_size for path in data_files(folder).values()]
    return FetchReport(uri, kind, len(sizes), sum(sizes), revision)


def _fetch_folder(data_uri: str, target: Path) -> FetchReport:
    source = Path(data_uri).resolve()
    if target.resolve().is_relative_to(source):
        raise DataError(f"{target}: is inside {data_uri}, which would be copied into itself. Give another folder.")
    if not os.access(source, os.R_OK | os.X_OK):
        raise DataError(f"{data_uri}: cannot be read by user {os.getuid()}. Give that user read permission.")
    files = data_files(source)
    if not files:
        raise DataError(f"{data_uri}: is an empty folder. Give {DATA_URI_FORMS}.")
    if broken := [name for name, path in files.items() if not path.exists()]:
        raise DataError(
            f"{data_uri}: {len(broken)} of {len(files)} files are broken links ({shorten(broken)}). Repair them."
        )
    with atomic_folder(target) as temporary:
        for name, path in files.items():
            link_or_copy(path.resolve(), temporary / name)
    return _report(data_uri, "folder", target, data_revision(source))


# --- git and DVC ---


def local_repository(data_uri: str) -> Path | None:
    """Return the local git repository of a data URI; None if the URI is not of that kind.

    >>> local_repository("git+file:///srv/songs@v1#corpus"), local_repository("../songs@v1")
    (PosixPath('/srv/songs'), PosixPath('../songs'))
    >>> local_repository("git@host:team/songs@v1"), local_repository("s3://songs/a@b"), local_repository("/srv/songs")
    (None, None, None)
    """
    data_uri = lower_scheme(data_uri)
    if data_uri.startswith("s3://") or Path(data_uri).is_dir():
        return None
    repository, revision, _ = _split_git(data_uri)
    if revision and (path := uri_to_path(repository)):
        return path
    return Path(repository) if revision and not ADDRESS.match(repository) else None


def _split_git(data_uri: str) -> tuple[str, str, str]:
    """Split a data URI into repository, revision ("" without one) and folder.

    >>> _split_git("git+https://me@host/songs@v1#corpus")
    ('https://me@host/songs', 'v1', 'corpus')
    >>> _split_git("git@host:team/songs")
    ('git@host:team/songs', '', 'data')
    """
    text = data_uri.removeprefix("git+")
    path, at, rest = text.rpartition("@")
    match = ADDRESS.match(text)
    if at and not match and Path(path).is_dir():  # its name may contain # as well
        revision, _, folder = rest.partition("#")
        return path, revision, folder.strip("/") or DATA_FOLDER
    whole, _, folder = text.partition("#")
    address = match[0] if match else ""
    path, _, revision = whole[len(address) :].rpartition("@")
    return (address + path if path else whole), (revision if path else ""), folder.strip("/") or DATA_FOLDER


def _fetch_git(data_uri: str, target: Path, repository: str, revision: str, folder: str) -> FetchReport:
    if (path := uri_to_path(repository)) and path.is_dir():
        repository = str(path)  # DVC would not unquote it
    is_local = not ADDRESS.match(repository)
    if is_local and not Path(repository).is_dir():
        raise DataError(f"{repository}: no such folder or repository. Give {DATA_URI_FORMS}.")
    if repository.startswith(("http://", "https://")):
        await_server(repository, "its address")  # git waits without a limit
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import CloneError, RevError
    from dvc_data.index import DataIndexError

    try:
        files = DVCFileSystem(str(Path(repository).resolve()) if is_local else repository, rev=revision)
        if not files.isdir(f"/{folder}"):
            raise DataError(f"{repository}: has no folder {folder} at {revision}. Name one: ...@{revision}#FOLDER.")
        recorded = files.info(f"/{folder}").get("md5")
        commit = str(files.repo.get_rev())
        with atomic_folder(target) as temporary:
            temporary.rmdir()  # DVC would put the folder inside an existing one
            files.get(f"/{folder}", str(temporary), recursive=True)
            _check_digest(data_uri, temporary, recorded)
    except RevError as error:
        raise DataError(f"{repository}: has no revision {revision}. Give a branch, tag or commit of it.") from error
    except CloneError as error:
        raise DataError(f"{repository}: cannot be cloned ({error}). Check its address and your permissions.") from error
    except (DvcException, DataIndexError, OSError) as error:
        raise DataError(
            f"{data_uri}: DVC cannot fetch {folder} ({error}). Check that `dvc push` sent it to a remote you can reach."
        ) from error
    return _report(data_uri, "git", target, commit)


def _check_digest(data_uri: str, folder: Path, recorded: str | None) -> None:
    if recorded and recorded.endswith(".dir") and (found := folder_digest(folder)) != recorded:
        raise DataError(f"{data_uri}: the fetched files have MD5 {found}, but DVC records {recorded}. Push them again.")


# --- S3 ---


def _fetch_s3(data_uri: str, target: Path) -> FetchReport:
    bucket = split_uri(data_uri)[0]
    client = connect(2 * DOWNLOADS)
    objects = list_objects(client, data_uri)
    if not objects:
        raise DataError(f"{data_uri}: holds no objects. Check the prefix; a data folder has a labels table and audio.")
    # Keys may contain any characters: refuse those whose path would be outside the folder or have another name.
    if bad := [item.key for item in objects if not _is_plain(item.name)]:
        raise DataError(
            f"{data_uri}: {len(bad)} of {len(objects)} keys are not valid file names ({shorten(bad)}). Rename them."
        )
    _refuse_file_and_folder(data_uri, objects)
    with (
        atomic_folder(target) as temporary,
        TemporaryDirectory(prefix=".parts-", dir=target.parent, ignore_cleanup_errors=True) as parts,
    ):

        def download(number: int, hooks: Hooks) -> None:
            item, part = objects[number], Path(parts) / f"{number}.part"
            download_object(
                client, bucket, item.key, temporary / item.name,
                partial=part, sleep=hooks.sleep, progress=hooks.received, limit=LARGEST_FILE,
            )  # fmt: skip
            size = (temporary / item.name).stat().st_size
            if size != item.size:
                raise DataError(f"s3://{bucket}/{item.key}: changed from {item.size} to {size} bytes. Fetch again.")

        run_all([partial(download, number) for number in range(len(objects))], workers=DOWNLOADS)
        if (found := sum(path.is_file() for path in temporary.rglob("*"))) != len(objects):
            raise DataError(
                f"{data_uri}: {len(objects)} objects became {found} files, since keys differ only by case or Unicode "
                "form. Rename them."
            )
    logging.getLogger(__name__).info("%s: %d objects", data_uri, len(objects))
    return FetchReport(data_uri, "s3", len(objects), sum(item.size for item in objects), None)


def _refuse_file_and_folder(data_uri: str, objects: Sequence[S3Object]) -> None:
    """Raise DataError if a key is also the folder of other keys, which a file system does not allow."""
    inner: dict[str, str] = {}  # folder -> a key in it
    for item in objects:
        for folder in folders_of([item.name]):
            inner.setdefault(folder, item.key)
    if pairs := [f"{item.key} and {inner[item.name]}" for item in objects if item.name in inner]:
        raise DataError(
            f"{data_uri}: {len(pairs)} of {len(objects)} keys are a file and also the folder of another key "
            f"({shorten(pairs)}). Rename one of the two."
        )


def _is_plain(name: str) -> bool:
    parts = name.split("/")
    short = all(len(part.encode()) <= LONGEST_NAME for part in parts)
    return PurePosixPath(name).as_posix() == name and not name.startswith("/") and ".." not in parts and short
