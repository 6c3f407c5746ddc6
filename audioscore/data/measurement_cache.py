"""What was measured of recordings, kept by their content, so that the same bytes are not decoded twice.

It saves time and nothing else: where the file is damaged, locked, or cannot be written, every recording is measured
again, and the log says so once.
"""

import contextlib
import logging
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

log = logging.getLogger(__name__)

WAIT_SECONDS = 3.0  # for another process that writes


class Entry(NamedTuple):
    """What is known of one content: its key, its measurements as JSON, and its fingerprint."""

    key: str
    measured: str
    fingerprint: bytes | None


class ProbeMemory:
    """An SQLite file of entries, one a content and probe version; without a path it knows nothing and keeps nothing.

    Several processes may use one file at once. `reads_only`: for the processes that measure, which only look up, and
    stay silent where they cannot, since the process that started them has said it.
    """

    def __init__(self, path: Path | None, version: str, *, reads_only: bool = False) -> None:
        self.path = path
        self.version = version
        self.reads_only = reads_only
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> "ProbeMemory":
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
        except (sqlite3.Error, OSError) as fault:
            self._give_up(fault)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def get(self, key: str) -> Entry | None:
        """What is known of a content, or None."""
        if self._connection is None:
            return None
        try:
            row = self._connection.execute(
                "SELECT measured, fingerprint FROM probes WHERE key = ? AND version = ?", (key, self.version)
            ).fetchone()
        except sqlite3.Error as fault:
            self._give_up(fault)
            return None
        return Entry(key, *row) if row else None

    def put(self, entries: Sequence[Entry]) -> None:
        """Keep entries; one that is known already stays as it is."""
        if self._connection is None or not entries:
            return
        rows = [(entry.key, self.version, entry.measured, entry.fingerprint) for entry in entries]
        try:
            with self._connection:
                self._connection.executemany("INSERT OR IGNORE INTO probes VALUES (?, ?, ?, ?)", rows)
        except sqlite3.Error as fault:
            self._give_up(fault)

    def _give_up(self, fault: Exception) -> None:
        if not self.reads_only:
            log.warning(
                "%s: what was measured before cannot be used (%s), so every recording is decoded. "
                "Delete the file if this stays.",
                self.path,
                fault,
            )
            self.path = None  # the processes that measure need not try
        self._close()

    def _close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
