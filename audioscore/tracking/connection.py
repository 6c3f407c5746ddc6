"""One way to MLflow: quiet, without telemetry, and with its database set up once before anything races for it."""

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

PATIENCE = 40.0  # seconds: a server that starts again, with its database, takes as long


def connect(tracking_uri: str) -> "MlflowClient":
    """A client, with MLflow's global settings pointed at the same place.

    Raises ModelError where it is a server's address and nothing answers there for PATIENCE seconds.
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


@cache  # where one answered, MLflow's client rides out what comes later
def _await_server(address: str) -> None:
    """MLflow's client tries for minutes, and tells each try in a line of its own."""
    import requests

    until = time.monotonic() + PATIENCE
    while True:
        try:
            requests.get(address, timeout=PATIENCE / 4).close()
        except (requests.exceptions.SSLError, requests.exceptions.ProxyError):
            return  # something is there; MLflow has settings for these
        except requests.RequestException as fault:
            if time.monotonic() > until:
                raise ModelError(
                    f"{address}: no MLflow server answers there. Start it, or mend MLFLOW_TRACKING_URI."
                ) from fault
            log.warning("waiting for the MLflow server at %s", address)
            time.sleep(PATIENCE / 4)
        else:
            return


def initialise(tracking_uri: str, experiment: str, artifacts: Path) -> str:
    """Create MLflow's tables and the experiment where they do not exist yet; return the experiment's id.

    Called once before a pipeline starts: parallel first uses of a new database race.
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
    """The file of a SQLite store; None for a server.

    >>> database_file("sqlite:////var/lib/audioscore/mlflow.db")
    PosixPath('/var/lib/audioscore/mlflow.db')
    >>> database_file("http://mlflow:5000") is None
    True
    """
    if not tracking_uri.startswith("sqlite:"):
        return None
    return Path(urlsplit(tracking_uri).path[1:])


def require_database(tracking_uri: str) -> None:
    """Raise ModelError where a SQLite store does not exist yet: reading must not create an empty one."""
    database = database_file(tracking_uri)
    if database is not None and not database.is_file():
        raise ModelError(
            f"{database.parent}: no model has been registered there yet. Run `audioscore run`, or `audioscore demo`, "
            "whose model is models:/audioscore-demo@champion."
        )
