"""The connection to MLflow: without telemetry, and with the database initialised once before concurrent use."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from audioscore.data.transfer.network import await_server, exempt_loopback, network_settings, redact
from audioscore.errors import AudioscoreError, ModelError, describe_os_error, first_line
from audioscore.files import path_to_uri, uri_to_path
from audioscore.home import ARTIFACTS
from audioscore.terminal import describe_encode_error
from audioscore.tracking.relocate import relocate

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACT_ROOT = "_MLFLOW_SERVER_ARTIFACT_ROOT"  # set by `mlflow server --default-artifact-root`
VARIABLE = "MLFLOW_TRACKING_URI"
SQLITE_HEADER = b"SQLite format 3\0"  # first bytes of a database: https://www.sqlite.org/fileformat.html
PATIENCE = 20.0  # seconds to wait for a server that restarts with its database
# Error codes of MLflow for connection, access and load; all others are errors in the request.
REFUSALS = {
    "INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED",
    "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED", "ENDPOINT_NOT_FOUND",
}  # fmt: skip


def connect(tracking_uri: str) -> "MlflowClient":
    """Return a client, and set MLflow's global tracking and registry URIs.

    Raises:
        AudioscoreError: the URI is a server's address, and no server responds or the proxy is not valid.
        ModelError: the file of a SQLite store is not a database, or cannot be used.
    """
    database_exists(tracking_uri)  # before MLflow, which overwrites a file of one byte
    exempt_loopback()
    if tracking_uri.startswith(("http://", "https://")):
        await_server(tracking_uri, VARIABLE, patience=PATIENCE)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    with _artifacts_of(database_file(tracking_uri)):
        return mlflow.MlflowClient(tracking_uri, tracking_uri)


@contextlib.contextmanager
def _artifacts_of(database: Path | None) -> Iterator[None]:
    """Correct the locations of a moved database, and keep the files of a new one's default experiment beside it.

    MLflow would keep them in the working folder, whose name it writes into SQL without quoting.
    """
    if database is None or ARTIFACT_ROOT in os.environ:
        yield
        return
    relocate(database)
    os.environ[ARTIFACT_ROOT] = path_to_uri(database.with_name(ARTIFACTS))
    try:
        yield
    finally:
        os.environ.pop(ARTIFACT_ROOT, None)


def describe_error(error: Exception) -> str | None:
    """Describe on one line an error that the user can correct; None for a fault of the program."""
    if isinstance(error, AudioscoreError):
        return str(error)
    if isinstance(error, OSError):
        return describe_os_error(error)
    return describe_encode_error(error) or _describe_mlflow_error(error)


def _describe_mlflow_error(error: Exception) -> str | None:
    """Describe on one line why the MLflow server cannot be used; None for other errors."""
    address = os.environ.get(VARIABLE, "")
    if getattr(error, "error_code", None) not in REFUSALS or not address.startswith("http"):
        return None
    reason = first_line(error).rstrip(".")
    return f"{redact(address)}: MLflow's client fails ({reason}). Check {network_settings(address, VARIABLE)}."


def initialise(tracking_uri: str, experiment: str, artifacts: Path) -> str:
    """Create MLflow's tables and the experiment if they do not exist. Returns the experiment's id.

    Call it once before a pipeline starts: concurrent first uses of a new database conflict.
    """
    database = database_file(tracking_uri)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    client = connect(tracking_uri)
    found = client.get_experiment_by_name(experiment)
    if found is not None:
        return str(found.experiment_id)
    location = path_to_uri((artifacts / experiment).resolve()) if database is not None else None
    return str(client.create_experiment(experiment, artifact_location=location))


def database_file(tracking_uri: str) -> Path | None:
    """Return the file of a SQLite store; None for a server.

    >>> database_file("sqlite:////var/lib/audioscore/mlflow.db")
    PosixPath('/var/lib/audioscore/mlflow.db')
    >>> database_file("http://mlflow:5000") is None
    True
    """
    return uri_to_path(tracking_uri) if tracking_uri.startswith("sqlite") else None


def database_exists(tracking_uri: str) -> bool:
    """Return whether there is a store to read: a server, or a SQLite file that is not empty. Creates none.

    Raises ModelError for a file or folder that is not a SQLite database.
    """
    database = database_file(tracking_uri)
    if database is None:
        return True
    if not database.exists():
        return False
    header = b""
    if database.is_file():
        with database.open("rb") as handle:
            header = handle.read(len(SQLITE_HEADER))
        if not header:  # SQLite creates its tables in an empty file
            return False
    if header != SQLITE_HEADER:
        raise ModelError(
            f"{database}: is not a SQLite database. Restore it from a backup, or move it elsewhere to start a new one."
        )
    return True


def require_database(tracking_uri: str) -> None:
    """Raise ModelError if a SQLite store does not exist: reading must not create an empty one."""
    database = database_file(tracking_uri)
    if database is not None and not database_exists(tracking_uri):
        raise ModelError(
            f"{database.parent}: no model is registered yet. Run `audioscore run`, or `audioscore demo` (it registers "
            "models:/audioscore-demo@champion)."
        )
