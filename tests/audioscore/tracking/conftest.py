import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from audioscore.tracking.connection import connect, initialise

if TYPE_CHECKING:
    from mlflow import MlflowClient


@pytest.fixture(scope="session")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with nothing but an experiment; making one takes seconds, so tests copy it."""
    folder = tmp_path_factory.mktemp("mlflow")
    initialise(f"sqlite:///{folder / 'mlflow.db'}", "singers", folder / "artifacts")
    return folder / "mlflow.db"


@pytest.fixture
def tracking_uri(new_database: Path, tmp_path: Path) -> str:
    """A database of the test's own."""
    shutil.copyfile(new_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def client(tracking_uri: str, tmp_path: Path) -> "MlflowClient":
    """A registry with three versions of `singers`, none of them with an alias."""
    client = connect(tracking_uri)
    client.create_registered_model("singers")
    for number in (1, 2, 3):
        source = tmp_path / f"model-{number}"
        source.mkdir()
        client.create_model_version("singers", source.as_uri(), tags={"plan": f"plan {number}"})
    return client
