"""One way to MLflow: quiet, without telemetry, and with its database set up once before anything races for it."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from audioscore.errors import ModelError

if TYPE_CHECKING:
    from mlflow import MlflowClient


def connect(tracking_uri: str) -> "MlflowClient":
    """A client, with MLflow's global settings pointed at the same place."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    return mlflow.MlflowClient(tracking_uri, tracking_uri)


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
            f"{database.parent}: no model has been registered there yet. Run `audioscore demo`, or `audioscore run`."
        )
