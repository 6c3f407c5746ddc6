import os
from pathlib import Path

import mlflow
import pytest

from audioscore.errors import UsageError
from audioscore.home import Home
from audioscore.tracking.curves import mlflow_curves

ENTRY = {"epoch": 3.0, "train_loss": 0.25, "val_spearman": 0.7512, "clips_per_second": 1234.5}


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home of its own, and no MLflow settings in the environment."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_LOGGING_LEVEL", "MLFLOW_DISABLE_TELEMETRY", "GIT_PYTHON_REFRESH"):
        monkeypatch.delenv(name, raising=False)
    mlflow.set_tracking_uri(None)
    return Home(tmp_path / "home")


def test_curves_throughput_and_the_end_of_each_fit_reach_mlflow(database: Home) -> None:
    callbacks_for = mlflow_curves("trials", database)
    for seed, error in ((1, None), (2, RuntimeError("boom"))):
        (curves,) = callbacks_for("hybrid", seed)
        curves.on_start(2, 40)
        for epoch in (1.0, 2.0):
            curves.on_step(3)
            curves.on_epoch({**ENTRY, "epoch": epoch, "train_loss": 1 / epoch})
        curves.on_end(error)
    assert os.environ["MLFLOW_TRACKING_URI"] == database.tracking_uri
    client = mlflow.MlflowClient(database.tracking_uri)
    experiment = client.get_experiment_by_name("trials")
    assert experiment.artifact_location == (database.artifacts / "trials").as_uri()
    runs = {run.data.tags["seed"]: run for run in client.search_runs([experiment.experiment_id])}
    assert {seed: run.info.status for seed, run in runs.items()} == {"1": "FINISHED", "2": "FAILED"}
    assert runs["1"].info.run_name == "hybrid, seed 1"
    assert runs["1"].data.params == {"steps": "40", "first_step": "2", "plan": "hybrid", "seed": "1"}
    for name, wanted in (("train_loss", [(1, 1.0), (2, 0.5)]), ("clips_per_second", [(1, 1234.5), (2, 1234.5)])):
        history = client.get_metric_history(runs["1"].info.run_id, name)
        assert [(one.step, one.value) for one in history] == wanted
    assert set(runs["1"].data.metrics) == set(ENTRY) - {"epoch"}


def test_a_tracking_uri_of_the_environment_is_kept(database: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////elsewhere/mlflow.db")
    mlflow_curves("trials", database)
    assert os.environ["MLFLOW_TRACKING_URI"] == "sqlite:////elsewhere/mlflow.db"
    assert not database.folder.exists()


@pytest.mark.parametrize("name", ["", " ", "x" * 501, "../x", "a//b", "/a"])
def test_a_name_that_mlflow_refuses_as_an_experiment(database: Home, name: str) -> None:
    with pytest.raises(UsageError, match=r"^--mlflow .*\b500\b"):
        mlflow_curves(name, database)
    assert not database.folder.exists()


def test_curves_in_a_home_with_any_name(tmp_path: Path, database: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "C#proj 新 %20?x '\""
    folder.mkdir()
    monkeypatch.chdir(folder)
    (curves,) = mlflow_curves("trials", Home(folder / "home"))("hybrid", 1)
    curves.on_start(0, 4)
    curves.on_epoch(ENTRY)
    curves.on_end(None)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["mlflow.db"]
