"""Putting a data folder in place, from wherever it is kept."""

import hashlib
import logging
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from audioscore.data.versioning import data_files, data_revision, folder_digest
from audioscore.errors import DataError, shorten
from audioscore.files import atomic_folder, place

if TYPE_CHECKING:
    from botocore.client import BaseClient

ACCEPTED = "a folder, s3://BUCKET/PREFIX, or a git repository with DVC data: [git+]URL_OR_PATH@REV[#FOLDER]"
DATA_FOLDER = "data"  # what a git repository calls its data unless told
DOWNLOADS = 8  # at once
# A repository's address up to where its own @ signs end: scheme://[user@]host, or [user@]host: as ssh writes it.
ADDRESS = re.compile(r"(?:[a-z+]+://[^/]*|[^/@]+@[^/:@]+:)", re.IGNORECASE)


@dataclass(frozen=True)
class FetchReport:
    """What was put in place: how many files and bytes, from where; `revision` is a git commit or a DVC MD5, if any."""

    uri: str
    kind: str  # folder, s3 or git
    files: int
    bytes: int
    revision: str | None


@dataclass(frozen=True)
class _Object:
    """One object of a bucket, and where it goes."""

    key: str
    name: str
    size: int
    etag: str


def fetch(data_uri: str, target: Path) -> FetchReport:
    """Put the data folder that `data_uri` names at `target`, whole or not at all.

    A folder's files become hard links (copies on another file system); objects of a bucket are checked against their
    size and checksum; a DVC folder against its recorded MD5. Nothing is written at the source. Files that a labels
    table names by absolute path or URI are left where they are.

    S3 uses the standard credential chain and AWS_ENDPOINT_URL. Raises DataError where the source does not exist, is
    empty, cannot be reached or arrives damaged, and where `target` already holds files.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target} already holds files, and fetching would replace them. Give a new or empty folder.")
    if data_uri.startswith("s3://"):
        return _fetch_s3(data_uri, target)
    if Path(data_uri).is_dir():
        return _fetch_folder(data_uri, target)
    repository, revision, folder = _split_git(data_uri)
    if revision:
        return _fetch_git(data_uri, target, repository, revision, folder)
    if data_uri.startswith("git+"):
        raise DataError(f"{data_uri} names no revision. Add one: {data_uri.split('#')[0]}@main.")
    raise DataError(f"{data_uri}: no such folder. Give {ACCEPTED}.")


def _report(uri: str, kind: str, folder: Path, revision: str | None) -> FetchReport:
    sizes = [path.stat().st_size for path in data_files(folder).values()]
    return FetchReport(uri, kind, len(sizes), sum(sizes), revision)


def _fetch_folder(data_uri: str, target: Path) -> FetchReport:
    source = Path(data_uri).resolve()
    if target.resolve().is_relative_to(source):
        raise DataError(f"{target} lies inside {data_uri}, which it would copy into itself. Give another folder.")
    files = data_files(source)
    if not files:
        raise DataError(f"{data_uri} is an empty folder. Give {ACCEPTED}.")
    if broken := [name for name, path in files.items() if not path.exists()]:
        raise DataError(
            f"{data_uri}: {len(broken)} of {len(files)} files are links to nothing ({shorten(broken)}). Mend them."
        )
    with atomic_folder(target) as temporary:
        for name, path in files.items():
            place(path.resolve(), temporary / name)
    return _report(data_uri, "folder", target, data_revision(source))


# --- git and DVC ---


def _split_git(data_uri: str) -> tuple[str, str, str]:
    """Repository, revision ("" where none is named) and folder.

    >>> _split_git("git+https://me@host/songs@v1#corpus")
    ('https://me@host/songs', 'v1', 'corpus')
    >>> _split_git("git@host:team/songs")
    ('git@host:team/songs', '', 'data')
    """
    whole, _, folder = data_uri.removeprefix("git+").partition("#")
    address = match[0] if (match := ADDRESS.match(whole)) else ""
    path, _, revision = whole[len(address) :].rpartition("@")
    return (address + path if path else whole), (revision if path else ""), folder.strip("/") or DATA_FOLDER


def _fetch_git(data_uri: str, target: Path, repository: str, revision: str, folder: str) -> FetchReport:
    is_local = not ADDRESS.match(repository)
    if is_local and not Path(repository).is_dir():
        raise DataError(f"{repository}: no such folder or repository. Give {ACCEPTED}.")
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import CloneError, RevError
    from dvc_data.index import DataIndexError

    try:
        files = DVCFileSystem(str(Path(repository).resolve()) if is_local else repository, rev=revision)
        if not files.isdir(f"/{folder}"):
            raise DataError(f"{repository} has no folder {folder} at {revision}. Name one: ...@{revision}#FOLDER.")
        recorded = files.info(f"/{folder}").get("md5")
        commit = str(files.repo.get_rev())
        with atomic_folder(target) as temporary:
            temporary.rmdir()  # where it exists, DVC would put the folder inside it
            files.get(f"/{folder}", str(temporary), recursive=True)
            _check_digest(data_uri, temporary, recorded)
    except RevError as fault:
        raise DataError(f"{repository} has no revision {revision}. Give a branch, tag or commit of it.") from fault
    except CloneError as fault:
        raise DataError(f"{repository} cannot be cloned ({fault}). Check its address and your access.") from fault
    except (DvcException, DataIndexError, OSError) as fault:
        raise DataError(
            f"{data_uri}: DVC cannot bring {folder} ({fault}). Check that `dvc push` put it in a remote you can reach."
        ) from fault
    return _report(data_uri, "git", target, commit)


def _check_digest(data_uri: str, folder: Path, recorded: str | None) -> None:
    if recorded and recorded.endswith(".dir") and (found := folder_digest(folder)) != recorded:
        raise DataError(
            f"{data_uri}: arrived with MD5 {found}, but DVC records {recorded}. Push it to the remote again."
        )


# --- S3 ---


def _fetch_s3(data_uri: str, target: Path) -> FetchReport:
    import boto3
    from boto3.exceptions import Boto3Error
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = data_uri.removeprefix("s3://").partition("/")
    prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    if not bucket:
        raise DataError(f"{data_uri} names no bucket. Give {ACCEPTED}.")
    try:
        config = Config(max_pool_connections=2 * DOWNLOADS, retries={"mode": "standard", "max_attempts": 5})
        client = boto3.session.Session().client("s3", config=config)  # of its own: the default one is not thread-safe
        objects = _list_objects(client, data_uri, bucket, prefix)
        with atomic_folder(target) as temporary, ThreadPoolExecutor(DOWNLOADS) as pool:
            jobs = [pool.submit(_download, client, bucket, item, temporary / item.name) for item in objects]
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    except (BotoCoreError, ClientError, Boto3Error, ValueError) as fault:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
        raise DataError(
            f"{data_uri} cannot be fetched from {endpoint} ({fault}). Check the bucket's name, your credentials and "
            f"AWS_ENDPOINT_URL."
        ) from fault
    logging.getLogger(__name__).info("%s: %d objects", data_uri, len(objects))
    return FetchReport(data_uri, "s3", len(objects), sum(item.size for item in objects), None)


def _list_objects(client: "BaseClient", data_uri: str, bucket: str, prefix: str) -> list[_Object]:
    """Every object under a prefix; keys that only stand for a folder are none."""
    objects: list[_Object] = []
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", []):
            name = item["Key"].removeprefix(prefix)
            if name and not name.endswith("/"):
                objects.append(_Object(item["Key"], name, item["Size"], item["ETag"].strip('"')))
    if not objects:
        raise DataError(f"{data_uri} holds no objects. Check the prefix; a data folder has a labels table and audio.")
    # A key may hold any name; one that would land outside the folder, or under another name, is refused.
    if bad := [item.key for item in objects if not _is_plain(item.name)]:
        raise DataError(
            f"{data_uri}: {len(bad)} of {len(objects)} keys are no file names ({shorten(bad)}). Rename them."
        )
    return objects


def _is_plain(name: str) -> bool:
    return PurePosixPath(name).as_posix() == name and not name.startswith("/") and ".." not in name.split("/")


def _download(client: Any, bucket: str, item: _Object, target: Path) -> None:
    from boto3.s3.transfer import TransferConfig

    target.parent.mkdir(parents=True, exist_ok=True)
    # Retries broken streams, and puts the file in place only when it is whole; the pool is ours, so no threads in it.
    client.download_file(bucket, item.key, str(target), Config=TransferConfig(use_threads=False))
    size = target.stat().st_size
    if size != item.size:
        raise DataError(f"s3://{bucket}/{item.key} arrived with {size} of {item.size} bytes. Fetch again.")
    if re.fullmatch(r"[0-9a-f]{32}", item.etag):  # else it was uploaded in parts, and is no MD5
        with target.open("rb") as handle:
            found = hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != item.etag and not _is_sealed(client, bucket, item.key):
            raise DataError(f"s3://{bucket}/{item.key} arrived with MD5 {found}, not {item.etag}. Fetch again.")


def _is_sealed(client: Any, bucket: str, key: str) -> bool:
    """Whether an object is encrypted with a key of its own, so that its ETag is no MD5 of its content."""
    head = client.head_object(Bucket=bucket, Key=key)
    return "kms" in head.get("ServerSideEncryption", "") or "SSECustomerAlgorithm" in head
