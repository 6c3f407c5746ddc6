"""Features in a bucket that the machines of a cluster share, and the copies of them on this one.

Each machine fetches a feature once, into `$AUDIOSCORE_HOME/features-cache`, up to $AUDIOSCORE_FEATURES_CACHE_GB there.
What comes first stays; what no longer fits is fetched each time it is read: going round the clips in turns, as training
does, a cache of what came last would never be hit.
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

from audioscore.data.transfer.partial import partial_of
from audioscore.data.transfer.pool import Hooks, run_all
from audioscore.data.transfer.s3 import connect, download_object, endpoint, list_objects, split_uri, upload_object
from audioscore.errors import DataError, ModelError, UsageError
from audioscore.home import home

log = logging.getLogger(__name__)

T = TypeVar("T")
TRANSFERS = 8  # at once
CACHE = "features-cache"
LIMIT = "AUDIOSCORE_FEATURES_CACHE_GB"
DEFAULT_GB = 20.0  # 54 hours of singing as MuQ-large hears it: 25 frames/s of 1024 values of 4 bytes


class FeatureBucket:
    """Objects by name under `s3://BUCKET/PREFIX`, by the standard credential chain and AWS_ENDPOINT_URL.

    `folder` holds the copies. A name is `<encoder key>/…`. Threads may share it.
    """

    def __init__(self, uri: str) -> None:
        self._bucket, prefix = split_uri(uri)
        self._prefix = prefix.strip("/")
        self.uri = f"s3://{self._bucket}/{self._prefix}".rstrip("/")
        place = hashlib.sha256(f"{endpoint()} {self.uri}".encode()).hexdigest()[:16]  # servers may have equal buckets
        self.folder = home().folder / CACHE / place
        self._limit = _limit()
        self._held: int | None = None  # bytes of all copies, once they were counted
        self._opened: Any = None
        self._listed: dict[str, dict[str, int]] = {}  # encoder key -> name -> bytes
        self._lock = threading.RLock()

    def has(self, name: str) -> bool:
        """Whether an object is there, as far as the encoder's objects were listed when they were first asked for."""
        return name in self._listing(name.partition("/")[0])

    def put(self, name: str, source: Path) -> None:
        """Store a file as an object, whole or not at all; it stays here as its copy where there is room.

        Raises ModelError where that cannot be done, or the server got other bytes than were sent.
        """
        size = _as_model_errors(upload_object)(self._client(), self._bucket, self._key(name), source)
        with self._lock:
            if name.partition("/")[0] in self._listed:
                self._listed[name.partition("/")[0]][name] = size
            if self._take_room(size):
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(source, self.folder / name)

    def read(self, name: str, read: Callable[[Path, str], T]) -> T | None:
        """`read` of a copy and the object's URI; None where there is no such object.

        A copy that `read` refuses by ModelError is fetched again, since the object may be whole.
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
                self._drop(copy)  # whoever mends the object shall not be answered with this
                raise
        with TemporaryDirectory() as folder:
            once = Path(folder) / copy.name
            run_all([partial(self._download, name, once)], workers=1)
            return read(once, uri)

    def fetch(self, names: Iterable[str]) -> None:
        """Copy those objects here that are not yet, as far as there is room; names without an object are passed over.

        One process of a machine fetches at a time, so that those of one training do not all fetch the same.
        """
        wanted = [name for name in dict.fromkeys(names) if not (self.folder / name).is_file() and self.has(name)]
        if not wanted:
            return
        with self._alone():
            wanted = [name for name in wanted if not (self.folder / name).is_file()]
            if len(wanted) > 1:
                self._held = None  # others may have fetched since
            chosen = [name for name in wanted if self._take_room(self._size(name))]
            run_all([partial(self._download, name, self.folder / name) for name in chosen], workers=TRANSFERS)
        if len(wanted) > 1:
            self._tell(wanted, chosen)

    def _tell(self, wanted: Sequence[str], chosen: Sequence[str]) -> None:
        size = sum(map(self._size, chosen)) / 1e6
        log.info("features: %d fetched from %s, %.1f MB", len(chosen), self.uri, size)
        if len(chosen) < len(wanted):
            log.warning(
                "%d of %d features do not fit the %g GB of %s and are fetched each time they are read; set %s higher",
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

    def _take_room(self, size: int) -> bool:
        """Count so many bytes more, if they fit."""
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
            partial=partial_of(target), sleep=hooks.sleep, progress=hooks.received,
        )  # fmt: skip

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the copies' lock, which the system frees when its holder ends, however it ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("wb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _as_model_errors(call: Callable[..., T]) -> Callable[..., T]:
    """A feature that cannot be had is no fault of a recording or of the data, which these errors would say."""

    def called(*positional: Any, **named: Any) -> T:
        try:
            return call(*positional, **named)
        except DataError as fault:
            raise ModelError(str(fault)) from fault

    return called


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # another process has just removed it
        return 0


def _limit() -> int:
    text = os.environ.get(LIMIT, "").strip() or str(DEFAULT_GB)
    try:
        value = float(text)
        if not 0 <= value < float("inf"):
            raise ValueError
    except ValueError as fault:
        raise UsageError(f"{LIMIT} is {text!r}; give a number of gigabytes, 0 to keep no copies.") from fault
    return round(value * 1e9)
