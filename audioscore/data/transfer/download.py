"""Many recordings from links, at once: what has arrived stays, and a bad link is a fault of its own row."""

import errno
import hashlib
import queue
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial as bind
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from audioscore.data.transfer.http import download_http, new_session, shown
from audioscore.data.transfer.partial import LARGEST, discard, partial_of, still_missing
from audioscore.data.transfer.pool import Hooks, Unreachable, run_all
from audioscore.data.transfer.s3 import connect, download_object, split_uri
from audioscore.errors import AudioscoreError, DataError, describe_os_error

if TYPE_CHECKING:
    from botocore.client import BaseClient
    from requests import Session

WORKERS = 8
GIVE_UP_AFTER = 8  # links of one server that got no answer, with none answered: the others are not tried
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
SUFFIX = re.compile(r"\.[a-z0-9]{1,5}")


class Fault(NamedTuple):
    """A link whose file could not be had, and why."""

    uri: str
    reason: str


@dataclass(frozen=True)
class Downloaded:
    """A link's file. `reused`: an earlier call had put it there."""

    uri: str
    path: Path
    size: int  # bytes
    reused: bool


def download_all(
    jobs: Sequence[str],
    folder: Path,
    *,
    workers: int = WORKERS,
    progress: Callable[[int, int], object] | None = None,
    bytes_progress: Callable[[int], object] | None = None,
    limit: int = LARGEST,
) -> list[Downloaded | Fault]:
    """Download `http(s)://` and `s3://` links into `folder`, side by side; a result for each job, in their order.

    A link's file is `folder / <first 24 hex digits of the link's SHA-256><suffix>`. What is there already is used
    again, and what is there in part is completed: a call that was killed, interrupted or ran out of disk is simply
    repeated. A link that comes twice is downloaded once. Two processes may not share a folder at the same time.

    `progress` gets (links done, links) and `bytes_progress` the size of each piece as it arrives, both in the caller's
    thread. Raises DataError where the folder cannot be written or its disk is full.
    """
    links = list(dict.fromkeys(jobs))
    sources = _Sources(workers, limit)
    tasks = [bind(_download, uri, file_of(uri, folder), sources) for uri in links]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        results = run_all(tasks, workers=workers, progress=progress, bytes_progress=bytes_progress)
    except OSError as fault:
        raise _disk_fault(fault, folder, links) from fault
    finally:
        sources.close()
    found = dict(zip(links, results, strict=True))
    return [found[uri] for uri in jobs]


def file_of(uri: str, folder: Path) -> Path:
    """Where a link's file lands; what is no plain suffix is left out.

    >>> file_of("https://host/%E6%AD%8C.M4A?key=1", Path("in")).as_posix()
    'in/f1814941fdcc73da6acfcb1f.m4a'
    """
    path = uri.partition("://")[2].partition("/")[2]
    suffix = PurePosixPath(path if uri.startswith("s3:") else unquote(re.split("[?#]", path)[0])).suffix.lower()
    name = hashlib.sha256(uri.encode(errors="surrogatepass")).hexdigest()[:24]
    return folder / (name + (suffix if SUFFIX.fullmatch(suffix) else ""))


class _Sources:
    """What the threads share: idle sessions, one S3 client, and which servers do not answer."""

    def __init__(self, workers: int, limit: int) -> None:
        self.workers = workers
        self.limit = limit
        self._sessions: queue.SimpleQueue[Session] = queue.SimpleQueue()
        self._client: BaseClient | None = None
        self._lock = threading.Lock()
        self._silent: Counter[str] = Counter()

    def download(self, uri: str, target: Path, hooks: Hooks) -> None:
        """Download one link; its server's silence is remembered."""
        server = shown(uri).split("/")[2] if uri.startswith("http") else "S3"
        if self._silent[server] >= GIVE_UP_AFTER:
            raise Unreachable(f"{shown(uri)}: {server} answered none of {GIVE_UP_AFTER} links before. Run again later.")
        try:
            self._fetch(uri, target, hooks)
        except Unreachable:
            with self._lock:
                self._silent[server] += 1
            raise
        except AudioscoreError:  # it answered
            self._silent[server] = 0
            raise
        self._silent[server] = 0

    def _fetch(self, uri: str, target: Path, hooks: Hooks) -> None:
        partial = partial_of(target)
        if uri.startswith("s3://"):
            with self._lock:
                self._client = self._client or connect(2 * self.workers)
            bucket, key = split_uri(uri)
            download_object(
                self._client, bucket, key, target,
                partial=partial, limit=self.limit, sleep=hooks.sleep, progress=hooks.received,
            )  # fmt: skip
            return
        try:
            session = self._sessions.get_nowait()
        except queue.Empty:
            session = new_session()
        try:
            download_http(
                uri, target,
                partial=partial, session=session, limit=self.limit, sleep=hooks.sleep, progress=hooks.received,
            )  # fmt: skip
        finally:
            self._sessions.put(session)

    def close(self) -> None:
        """Close the sessions that no thread uses."""
        while not self._sessions.empty():
            self._sessions.get_nowait().close()
        if self._client is not None:
            self._client.close()


def _download(uri: str, target: Path, sources: _Sources, hooks: Hooks) -> Downloaded | Fault:
    try:
        reused = target.is_file()
        if reused:
            discard(partial_of(target))  # a kill right after the file was whole leaves the note of its beginning
        else:
            sources.download(uri, target, hooks)
        return Downloaded(uri, target, target.stat().st_size, reused)
    except AudioscoreError as fault:
        return Fault(uri, str(fault))


def _disk_fault(fault: OSError, folder: Path, links: Sequence[str]) -> DataError:
    if fault.errno not in DISK_FULL:
        return DataError(describe_os_error(fault))
    there = sum(file_of(uri, folder).is_file() for uri in links)
    return DataError(
        f"{folder}: the disk is full ({fault.strerror}) after {there} of {len(links)} downloads; those that were begun "
        f"lack {still_missing(folder) / 1e6:.1f} MB. Free space and run again: what arrived is kept."
    )
