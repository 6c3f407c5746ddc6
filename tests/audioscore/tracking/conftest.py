import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import mlflow
import pytest
from mlflow import MlflowClient

from audioscore.tracking.connection import connect, initialise


@contextlib.contextmanager
def process_settings_restored() -> Iterator[None]:
    """Reset what `connect` sets for the whole process: environment, logging levels and MLflow's addresses."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    levels = [logger.level for logger in loggers]
    with patch.dict(os.environ):
        yield
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def _process_settings() -> Iterator[None]:
    with process_settings_restored():
        yield


@pytest.fixture(scope="session")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with one experiment; creating it takes seconds, so tests copy it."""
    folder = tmp_path_factory.mktemp("mlflow")
    with process_settings_restored():
        initialise(f"sqlite:///{folder / 'mlflow.db'}", "singers", folder / "artifacts")
    return folder / "mlflow.db"


@pytest.fixture
def tracking_uri(new_database: Path, tmp_path: Path) -> str:
    """A database of the test's own."""
    shutil.copyfile(new_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def client(tracking_uri: str, tmp_path: Path) -> MlflowClient:
    """A registry with three versions of `singers`, none of them with an alias."""
    client = connect(tracking_uri)
    client.create_registered_model("singers")
    for number in (1, 2, 3):
        source = tmp_path / f"model-{number}"
        source.mkdir()
        client.create_model_version("singers", source.as_uri(), tags={"plan": f"plan {number}"})
    return client
