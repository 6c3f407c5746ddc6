"""Download many links concurrently. Received files are kept, and a failed link does not stop the others."""

import errno
import hashlib
import queue
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from audioscore.data.transfer.http import download_http, new_session
from audioscore.data.transfer.network import proxy_of, redact
from audioscore.data.transfer.partial import discard, missing_bytes, partial_path
from audioscore.data.transfer.pool import Hooks, run_all
from audioscore.data.transfer.s3 import connect, download_object, split_uri
from audioscore.errors import AudioscoreError, DataError, ServerUnreachable, describe_os_error

if TYPE_CHECKING:
    from botocore.client import BaseClient
    from requests import Session

WORKERS = 8
GIVE_UP_AFTER = 8  # consecutive links of one server without a response; its other links then fail at once
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
SUFFIX = re.compile(r"\.[a-z0-9]{1,5}")


class FailedDownload(NamedTuple):
    """A link that could not be downloaded, and the reason."""

    uri: str
    reason: str


@dataclass(frozen=True)
class Downloaded:
    """The file of a link. `reused` means that an earlier call downloaded it."""

    uri: str
    path: Path
    size: int  # bytes
    reused: bool


def download_all(
    jobs: Sequence[str], folder: Path, *, workers: int = WORKERS, progress: Callable[[int, int], object] | None = None
) -> list[Downloaded | FailedDownload]:
    """Download `http(s)://` and `s3://` links into `folder` and return a result for each job, in their order.

    The file of a link is `folder / <first 24 hex digits of the link's SHA-256><suffix>`. Complete files are reused and
    partial files resumed: after a kill, an interrupt or a full disk, repeat the call. A repeated link is downloaded
    once. Only one process at a time may use a folder.

    Args:
        progress: Gets (finished links, all links), in the caller's thread.

    Raises DataError when the folder cannot be written or its disk is full.
    """
    links = list(dict.fromkeys(jobs))
    clients = _Clients(workers)
    tasks = [partial(_download, uri, file_of(uri, folder), clients) for uri in links]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        results = run_all(tasks, workers=workers, progress=progress)
    except OSError as error:
        raise _disk_error(error, folder, links) from error
    finally:
        clients.close()
    found = dict(zip(links, results, strict=True))
    return [found[uri] for uri in jobs]


def file_of(uri: str, folder: Path) -> Path:
    """Return the path of the file for a link. A suffix with unusual characters is left out.

    >>> file_of("https://host/%E6%AD%8C.M4A?key=1", Path("in")).as_posix()
    'in/f1814941fdcc73da6acfcb1f.m4a'
    """
    path = uri.partition("://")[2].partition("/")[2]
    suffix = PurePosixPath(path if uri.startswith("s3:") else unquote(re.split("[?#]", path)[0])).suffix.lower()
    name = hashlib.sha256(uri.encode(errors="surrogatepass")).hexdigest()[:24]
    return folder / (name + (suffix if SUFFIX.fullmatch(suffix) else ""))


class _Clients:
    """State that the threads share: idle HTTP sessions, one S3 client, and failures to connect by server."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._sessions: queue.SimpleQueue[Session] = queue.SimpleQueue()
        self._client: BaseClient | None = None
        self._no_s3: AudioscoreError | None = None
        self._lock = threading.Lock()
        self._unreachable: Counter[str] = Counter()

    def download(self, uri: str, target: Path, hooks: Hooks) -> None:
        """Download one link, unless its server did not respond to GIVE_UP_AFTER links before."""
        # A proxy that does not respond fails the links of all servers behind it.
        server = redact(uri).split("/")[2] if uri.startswith("http") else "S3"
        if uri.startswith("http") and (proxy := proxy_of(uri)):
            server = f"the proxy in {proxy[0]}"
        if self._unreachable[server] >= GIVE_UP_AFTER:
            raise ServerUnreachable(
                f"{redact(uri)}: {server} did not respond to {GIVE_UP_AFTER} earlier links. Run again later."
            )
        try:
            self._fetch(uri, target, hooks)
        except ServerUnreachable:
            with self._lock:
                self._unreachable[server] += 1
            raise
        except AudioscoreError:  # the server responded
            self._unreachable[server] = 0
            raise
        self._unreachable[server] = 0

    def _fetch(self, uri: str, target: Path, hooks: Hooks) -> None:
        part = partial_path(target)
        if uri.startswith("s3://"):
            bucket, key = split_uri(uri)
            download_object(self._s3(), bucket, key, target, partial=part, sleep=hooks.sleep, progress=hooks.received)
            return
        try:
            session = self._sessions.get_nowait()
        except queue.Empty:
            session = new_session()
        try:
            download_http(uri, target, partial=part, session=session, sleep=hooks.sleep, progress=hooks.received)
        finally:
            self._sessions.put(session)

    def _s3(self) -> "BaseClient":
        with self._lock:
            if self._no_s3 is not None:  # the other threads do not wait for the same server again
                raise type(self._no_s3)(str(self._no_s3))
            try:
                self._client = self._client or connect(2 * self.workers)
            except AudioscoreError as error:
                self._no_s3 = error
                raise
            return self._client

    def close(self) -> None:
        """Close the S3 client and the sessions that no thread uses."""
        while not self._sessions.empty():
            self._sessions.get_nowait().close()
        if self._client is not None:
            self._client.close()


def _download(uri: str, target: Path, clients: _Clients, hooks: Hooks) -> Downloaded | FailedDownload:
    try:
        reused = target.is_file()
        if reused:
            discard(partial_path(target))  # a kill right after the file was complete leaves its note
        else:
            clients.download(uri, target, hooks)
        return Downloaded(uri, target, target.stat().st_size, reused)
    except AudioscoreError as error:
        return FailedDownload(uri, str(error))


def _disk_error(error: OSError, folder: Path, links: Sequence[str]) -> DataError:
    if error.errno not in DISK_FULL:
        return DataError(describe_os_error(error))
    complete = sum(file_of(uri, folder).is_file() for uri in links)
    return DataError(
        f"{folder}: the disk is full ({error.strerror}) after {complete} of {len(links)} downloads; started downloads "
        f"still need {missing_bytes(folder) / 1e6:.1f} MB. Free space and run again; received files are kept."
    )
