"""Features in a bucket that the machines of a cluster share, and local copies of them.

Each machine downloads a feature once, into `$AUDIOSCORE_HOME/features-cache`, up to $AUDIOSCORE_FEATURES_CACHE_GB.
The first features stay; those that no longer fit are downloaded at each read. Training reads all clips in turn, so a
cache of the latest features would never hit.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from audioscore.data.transfer.partial import partial_path
from audioscore.data.transfer.pool import Hooks, run_all
from audioscore.data.transfer.s3 import connect, download_object, endpoint, list_objects, split_uri, upload_object
from audioscore.errors import DataError, ModelError, UsageError
from audioscore.home import home

log = logging.getLogger(__name__)

T = TypeVar("T")
TRANSFERS = 8  # at once
CACHE = "features-cache"
LIMIT = "AUDIOSCORE_FEATURES_CACHE_GB"
DEFAULT_GB = 20.0  # 54 hours of MuQ-large: 25 frames/s of 1024 values of 4 bytes


class FeatureBucket:
    """Objects by name (`<encoder key>/…`) under `s3://BUCKET/PREFIX`, with local copies in `folder`.

    Uses the standard credential chain and AWS_ENDPOINT_URL. Threads may share it.
    """

    def __init__(self, uri: str) -> None:
        self._bucket, prefix = split_uri(uri)
        self._prefix = prefix.strip("/")
        self.uri = f"s3://{self._bucket}/{self._prefix}".rstrip("/")
        name = hashlib.sha256(f"{endpoint()} {self.uri}".encode()).hexdigest()[:16]  # servers may have equal buckets
        self.folder = home().folder / CACHE / name
        self._limit = _limit()
        self._held: int | None = None  # bytes of all copies, once counted
        self._opened: Any = None
        self._listed: dict[str, dict[str, int]] = {}  # encoder key -> name -> bytes
        self._lock = threading.RLock()

    def has(self, name: str) -> bool:
        """Whether an object exists; an encoder's objects are listed once, at the first request."""
        return name in self._listing(name.partition("/")[0])

    def put(self, name: str, source: Path) -> None:
        """Upload a file atomically; it becomes the local copy if it fits.

        Raises: ModelError where the upload fails, or the server received other bytes.
        """
        size = _as_model_errors(upload_object)(self._client(), self._bucket, self._key(name), source)
        with self._lock:
            if name.partition("/")[0] in self._listed:
                self._listed[name.partition("/")[0]][name] = size
            if self._reserve(size):
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(source, self.folder / name)

    def read(self, name: str, read: Callable[[Path, str], T]) -> T | None:
        """Apply `read` to a local copy and the object's URI; None where the object does not exist.

        If `read` raises ModelError for a copy, the object is downloaded again, since it may be intact.
        """
        copy, uri = self.folder / name, f"{self.uri}/{name}"
        if copy.is_file():
            try:
                return read(copy, uri)
            except ModelError:
                self._drop(copy)
        if not self.has(name):
            return None
        self.fetch([name])
        if copy.is_file():
            try:
                return read(copy, uri)
            except ModelError:
                self._drop(copy)  # so that a repaired object is downloaded
                raise
        with TemporaryDirectory() as folder:
            once = Path(folder) / copy.name
            run_all([partial(self._download, name, once)], workers=1)
            return read(once, uri)

    def fetch(self, names: Iterable[str]) -> None:
        """Download the objects without a local copy, as far as they fit; names without an object are skipped.

        One process per machine downloads at a time, so that the processes of a training share the copies.
        """
        wanted = [name for name in dict.fromkeys(names) if not (self.folder / name).is_file() and self.has(name)]
        if not wanted:
            return
        with self._locked():
            wanted = [name for name in wanted if not (self.folder / name).is_file()]
            if len(wanted) > 1:
                self._held = None  # other processes may have downloaded since
            chosen = [name for name in wanted if self._reserve(self._size(name))]
            run_all([partial(self._download, name, self.folder / name) for name in chosen], workers=TRANSFERS)
        if len(wanted) > 1:
            self._log(wanted, chosen)

    def _log(self, wanted: Sequence[str], chosen: Sequence[str]) -> None:
        size = sum(map(self._size, chosen)) / 1e6
        log.info("features: %d downloaded from %s, %.1f MB", len(chosen), self.uri, size)
        if len(chosen) < len(wanted):
            log.warning(
                "%d of %d features do not fit into the %g GB of %s and are downloaded at each read; increase %s",
                len(wanted) - len(chosen), len(wanted), self._limit / 1e9, self.folder.parent, LIMIT,
            )  # fmt: skip

    def _size(self, name: str) -> int:
        return self._listing(name.partition("/")[0])[name]

    def _listing(self, key: str) -> dict[str, int]:
        with self._lock:
            if key not in self._listed:
                found = _as_model_errors(list_objects)(self._client(), f"{self.uri}/{key}")
                self._listed[key] = {f"{key}/{item.name}": item.size for item in found}
            return self._listed[key]

    def _reserve(self, size: int) -> bool:
        """Add `size` bytes to the total of all copies, if they fit."""
        with self._lock:
            if self._held is None:
                files = (Path(root) / name for root, _, names in os.walk(self.folder.parent) for name in names)
                self._held = sum(_bytes(path) for path in files)
            if self._held + size > self._limit:
                return False
            self._held += size
            return True

    def _drop(self, copy: Path) -> None:
        size = _bytes(copy)
        copy.unlink(missing_ok=True)
        with self._lock:
            self._held = None if self._held is None else self._held - size

    def _client(self) -> Any:
        with self._lock:
            if self._opened is None:
                self._opened = connect(2 * TRANSFERS)
                weakref.finalize(self, self._opened.close)
            return self._opened

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}".lstrip("/")

    def _download(self, name: str, target: Path, hooks: Hooks) -> None:
        _as_model_errors(download_object)(
            self._client(), self._bucket, self._key(name), target,
            partial=partial_path(target), sleep=hooks.sleep, progress=hooks.received,
        )  # fmt: skip

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the copies' lock, which the system releases even if the process is killed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("wb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _as_model_errors(call: Callable[..., T]) -> Callable[..., T]:
    """Turn DataError into ModelError: a failed transfer of a feature is not an error in the data."""

    def called(*positional: Any, **named: Any) -> T:
        try:
            return call(*positional, **named)
        except DataError as error:
            raise ModelError(str(error)) from error

    return called


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # another process removed it
        return 0


def _limit() -> int:
    text = os.environ.get(LIMIT, "").strip() or str(DEFAULT_GB)
    try:
        value = float(text)
        if not 0 <= value < float("inf"):
            raise ValueError
    except ValueError as error:
        raise UsageError(f"{LIMIT}: is {text!r}. Give a number of gigabytes, 0 to keep no copies.") from error
    return round(value * 1e9)
