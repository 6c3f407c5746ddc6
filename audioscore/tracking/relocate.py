"""Artifact locations of a home that was moved, copied, restored, or mounted elsewhere.

MLflow stores absolute locations in its database. Those that pointed into the home are rewritten when its database is
opened, except those of files that are not in the home: they may be elsewhere, or be copied later. Where the database
cannot be written, `present_location` is applied to the location of each model instead.
"""

import contextlib
import functools
import logging
import os
import sqlite3
from pathlib import Path

from audioscore.errors import ModelError, shorten
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
    # Unlike Path.exists, os.path.exists is False for what this user cannot read, such as another user's home.
    present = next((path for path in found if os.path.exists(path)), None)
    if present is None and found and not os.path.exists(recorded):
        present = found[-1]
    return path_to_uri(present) if present else location


def relocate(database: Path) -> None:
    """Rewrite the artifact locations of a moved home in one transaction. Nothing is written where they are right.

    A warning names the folders whose files were not moved with the home.

    Raises ModelError for a file that is not a database, is damaged, or is locked by another process.
    """
    if not database.exists():
        return
    try:
        with _opened(database, "ro") as connection:
            changes, left = _changes(connection, database)
        if left:
            _warn_left(database.with_name(ARTIFACTS), tuple(sorted(left)))
        if not changes:
            return
        with _opened(database, "rw") as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            for table, column, present, recorded in _changes(connection, database)[0]:
                connection.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (present, recorded))
        if not left:
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


def _changes(connection: sqlite3.Connection, database: Path) -> tuple[list[tuple[str, str, str, str]], set[Path]]:
    """Find what to rewrite: table, column, present and recorded location; and the folders of files that are not here.

    Experiments and runs may have no files, but a registered version has. An experiment's location is only that of its
    future files. A run whose files may be missing keeps its location.
    """
    root = database.with_name(ARTIFACTS).resolve()
    changes, without_files, left = [], [], set()
    for table, column in LOCATIONS:
        for location in _recorded_elsewhere(connection, table, column, root):
            present, folder = present_location(location, database), _artifacts_folder(location, root)
            if folder is None:
                continue
            change = (table, column, present, location)
            if present != location and (table == "experiments" or os.path.exists(uri_to_path(present) or "")):
                changes.append(change)
            elif present == location or table == "model_versions" or not root.is_dir():
                left.add(folder)
            else:
                without_files.append(change)
    return changes + ([] if left else without_files), left


def _recorded_elsewhere(connection: sqlite3.Connection, table: str, column: str, root: Path) -> list[str]:
    """Distinct locations of a column that do not start with that of `root`; most homes have none, so this is fast."""
    inside = f"{path_to_uri(root)}/"
    query = f"SELECT DISTINCT {column} FROM {table} WHERE {column} LIKE 'file:%' AND substr({column}, 1, ?) <> ?"
    return [location for (location,) in connection.execute(query, (len(inside), inside))]


def _artifacts_folder(location: str, root: Path) -> Path | None:
    """The artifacts of another home that a location is in; None for a location in `root` or in no home.

    >>> _artifacts_folder("file:///old/mlartifacts/audioscore/models/m-1", Path("/new/mlartifacts"))
    PosixPath('/old/mlartifacts')
    """
    path = uri_to_path(location)
    if path is None or path.is_relative_to(root):
        return None
    return next((one for one in (path, *path.parents) if one.name == ARTIFACTS), None)


@functools.cache  # a command opens the database several times
def _warn_left(root: Path, left: tuple[Path, ...]) -> None:
    folders = shorten([str(folder) for folder in left])
    log.warning(
        "%s: files that mlflow.db lists are missing, so their locations in %s were kept. Copy that folder to %s, too.",
        root, folders, root.parent,
    )  # fmt: skip
