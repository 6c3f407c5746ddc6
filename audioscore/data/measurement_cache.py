"""A cache of audio measurements, keyed by file content, so that the same bytes are decoded only once.

The cache only saves time: if its file is damaged, locked or not writable, every recording is measured again, and one
warning is logged.
"""

import contextlib
import logging
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

log = logging.getLogger(__name__)

WAIT_SECONDS = 3.0  # for another process that is writing


class CachedMeasurement(NamedTuple):
    """One cache entry: the content key, the measurements as JSON, and the fingerprint."""

    key: str
    measured: str
    fingerprint: bytes | None


class MeasurementCache:
    """An SQLite file with one entry per content key and measurement version; without a path, it stores nothing.

    Several processes may use one file at the same time.

    Args:
        reads_only: For worker processes, which only look up entries. They log no warning when the file is unusable,
            because the parent process has logged it.
    """

    def __init__(self, path: Path | None, version: str, *, reads_only: bool = False) -> None:
        self.path = path
        self.version = version
        self.reads_only = reads_only
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> "MeasurementCache":
        if self.path is None:
            return self
        try:
            if not self.reads_only:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            mode = "?mode=ro" if self.reads_only else ""
            self._connection = sqlite3.connect(f"{self.path.absolute().as_uri()}{mode}", uri=True, timeout=WAIT_SECONDS)
            if not self.reads_only:
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS probes (key TEXT, version TEXT, measured TEXT, fingerprint BLOB,"
                    " PRIMARY KEY (key, version))"
                )
            self._connection.execute("SELECT key, version, measured, fingerprint FROM probes LIMIT 1").fetchone()
        except (sqlite3.Error, OSError) as error:
            self._disable(error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def get(self, key: str) -> CachedMeasurement | None:
        """Return the entry of a content key, or None."""
        if self._connection is None:
            return None
        try:
            row = self._connection.execute(
                "SELECT measured, fingerprint FROM probes WHERE key = ? AND version = ?", (key, self.version)
            ).fetchone()
        except sqlite3.Error as error:
            self._disable(error)
            return None
        return CachedMeasurement(key, *row) if row else None

    def put(self, entries: Sequence[CachedMeasurement]) -> None:
        """Store entries; an existing entry is not changed."""
        if self._connection is None or not entries:
            return
        rows = [(entry.key, self.version, entry.measured, entry.fingerprint) for entry in entries]
        try:
            with self._connection:
                self._connection.executemany("INSERT OR IGNORE INTO probes VALUES (?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            self._disable(error)

    def _disable(self, error: Exception) -> None:
        if not self.reads_only:
            log.warning(
                "%s: the measurement cache is unusable (%s), so every recording is decoded. "
                "Delete the file if this happens again.",
                self.path,
                error,
            )
            self.path = None  # so that worker processes do not try to open it
        self._close()

    def _close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
