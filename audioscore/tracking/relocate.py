"""Artifact locations of a home that was moved, copied, restored, or mounted elsewhere.

MLflow stores absolute locations in its database. Those that pointed into the home are rewritten when its database is
opened. Where the database cannot be written, `present_location` is applied to the location of each model instead.
"""

import contextlib
import logging
import sqlite3
from pathlib import Path

from audioscore.errors import ModelError
from audioscore.files import path_to_uri, uri_to_path
from audioscore.home import ARTIFACTS

log = logging.getLogger(__name__)

LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)
EXPECTED = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_READONLY}  # no tables yet; a database that cannot be written
WAIT_SECONDS = 20.0  # for another process that writes to the database


def present_location(location: str, database: Path) -> str:
    """Return where an artifact is now: in the home of `database`, or as recorded if it exists only there.

    >>> present_location("file:///old/mlartifacts/audioscore/models/m-1", Path("/new/mlflow.db"))
    'file:///new/mlartifacts/audioscore/models/m-1'
    >>> present_location("s3://bucket/mlartifacts/m-1", Path("/new/mlflow.db"))
    's3://bucket/mlartifacts/m-1'
    """
    recorded, root = uri_to_path(location), database.with_name(ARTIFACTS).resolve()
    if recorded is None or recorded.is_relative_to(root):
        return location
    parts = recorded.parts
    found = [root.joinpath(*parts[depth:]) for depth, part in enumerate(parts, start=1) if part == ARTIFACTS]
    present = next((path for path in found if path.exists()), None)
    if present is None and found and not recorded.exists():
        present = found[-1]
    return path_to_uri(present) if present else location


def relocate(database: Path) -> None:
    """Rewrite the artifact locations of a moved home in one transaction. Nothing is written where they are right.

    Raises ModelError for a file that is not a database, is damaged, or is locked by another process.
    """
    if not database.exists():
        return
    try:
        with _opened(database, "ro") as connection:
            if not _moved(connection, *LOCATIONS[0], database):
                return
        with _opened(database, "rw") as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            for table, column in LOCATIONS:
                rows = _moved(connection, table, column, database)
                connection.executemany(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", rows)
        log.warning("%s: the home was moved, so the locations of its artifacts were corrected", database.parent)
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in EXPECTED:  # the other bits are details of the same error
            return
        raise ModelError(
            f"{database}: cannot be used ({error}). Wait for other processes that use it, or restore it from a backup."
        ) from error


def _opened(database: Path, mode: str) -> contextlib.closing[sqlite3.Connection]:
    address = f"{path_to_uri(database)}?mode={mode}"
    return contextlib.closing(sqlite3.connect(address, uri=True, timeout=WAIT_SECONDS))


def _moved(connection: sqlite3.Connection, table: str, column: str, database: Path) -> list[tuple[str, str]]:
    """Present and recorded location of each value of a column that has to change."""
    recorded = connection.execute(f"SELECT DISTINCT {column} FROM {table} WHERE {column} LIKE 'file:%'").fetchall()
    pairs = [(present_location(location, database), location) for (location,) in recorded]
    return [pair for pair in pairs if pair[0] != pair[1]]
