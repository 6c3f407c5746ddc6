"""The connection to MLflow: without telemetry, and with the database initialised once before concurrent use."""

import logging
import os
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from audioscore.errors import ModelError

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

SERVER_TIMEOUT = 40.0  # seconds; a server that restarts with its database takes as long


def connect(tracking_uri: str) -> "MlflowClient":
    """Return a client, and set MLflow's global tracking and registry URIs.

    Raises:
        ModelError: the URI is a server's address and no server responds within SERVER_TIMEOUT.
    """
    if tracking_uri.startswith(("http://", "https://")):
        _await_server(tracking_uri)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    return mlflow.MlflowClient(tracking_uri, tracking_uri)


@cache  # once a server has responded, MLflow's own retries are sufficient
def _await_server(address: str) -> None:
    """Wait for the server. MLflow's own client would retry for minutes, with a log line for each attempt."""
    import requests

    until = time.monotonic() + SERVER_TIMEOUT
    while True:
        try:
            requests.get(address, timeout=SERVER_TIMEOUT / 4).close()
        except (requests.exceptions.SSLError, requests.exceptions.ProxyError):
            return  # a server exists; MLflow has settings for TLS and proxies
        except requests.RequestException as error:
            if time.monotonic() > until:
                raise ModelError(
                    f"{address}: no MLflow server responds. Start it, or correct MLFLOW_TRACKING_URI."
                ) from error
            log.warning("waiting for the MLflow server at %s", address)
            time.sleep(SERVER_TIMEOUT / 4)
        else:
            return


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
    location = (artifacts / experiment).resolve().as_uri() if database is not None else None
    return str(client.create_experiment(experiment, artifact_location=location))


def database_file(tracking_uri: str) -> Path | None:
    """Return the file of a SQLite store; None for a server.

    >>> database_file("sqlite:////var/lib/audioscore/mlflow.db")
    PosixPath('/var/lib/audioscore/mlflow.db')
    >>> database_file("http://mlflow:5000") is None
    True
    """
    if not tracking_uri.startswith("sqlite:"):
        return None
    return Path(urlsplit(tracking_uri).path[1:])


def require_database(tracking_uri: str) -> None:
    """Raise ModelError if a SQLite store does not exist: reading must not create an empty one."""
    database = database_file(tracking_uri)
    if database is not None and not database.is_file():
        raise ModelError(
            f"{database.parent}: no model is registered yet. Run `audioscore run`, or `audioscore demo` (it registers "
            "models:/audioscore-demo@champion)."
        )
