import io
import logging
import os
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
from rich.console import Console
from rich.progress import Progress

from audioscore.home import Home
from audioscore.training.callbacks import MlflowCurves, ProgressBar, following, listeners
from audioscore.training.data import fit_statistics
from audioscore.training.loop import fit_network

ENTRY = {"epoch": 3.0, "train_loss": 0.25, "val_spearman": 0.7512, "clips_per_second": 1234.5}


class Recorder:
    """Collects the calls of a callback."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def on_start(self, step: int, steps: int) -> None:
        self.calls.append(("start", step, steps))

    def on_step(self, step: int) -> None:
        self.calls.append(step)

    def on_epoch(self, entry: dict[str, float]) -> None:
        self.calls.append(entry["epoch"])

    def on_end(self, fault: BaseException | None) -> None:
        self.calls.append(("end", fault))


def test_a_started_callback_gets_the_end_with_or_without_a_fault() -> None:
    fine, failed, fault = Recorder(), Recorder(), ValueError("boom")
    with following([fine], 2, 9):
        pass
    with pytest.raises(ValueError, match="boom"), following([failed], 0, 9):
        raise fault
    assert fine.calls == [("start", 2, 9), ("end", None)]
    assert failed.calls == [("start", 0, 9), ("end", fault)]


def test_a_callback_that_cannot_start_ends_only_the_started_ones() -> None:
    class Broken(Recorder):
        def on_start(self, step: int, steps: int) -> None:
            raise OSError("no database")

    first, broken, third = Recorder(), Broken(), Recorder()
    with pytest.raises(OSError, match="no database"), following([first, broken, third], 0, 1):
        raise AssertionError("the fit must not begin")
    assert isinstance(first.calls[-1][1], OSError)
    assert broken.calls == third.calls == []


def test_a_fit_reports_its_steps_and_epochs(toys: Any) -> None:
    recorder, network = Recorder(), toys.network()
    fit_statistics(network, toys.train.features)
    settings = toys.settings(epochs=2, batch_clips=32)
    fit_network(network, toys.train, toys.val, settings, seed=1, callbacks=[recorder], device="cpu")
    assert recorder.calls == [("start", 0, 4), 1, 2, 1.0, 3, 4, 2.0, ("end", None)]


def test_the_bar_shows_steps_and_the_figures_of_the_last_epoch() -> None:
    screen = io.StringIO()
    with Progress(console=Console(file=screen, force_terminal=True, width=200), auto_refresh=False) as bars:
        bar = ProgressBar(bars, "hybrid, seed 2")
        bar.on_start(5, 40)
        bar.on_step(10)
        assert (bars.tasks[0].completed, bars.tasks[0].total) == (10, 40)
        bar.on_epoch(ENTRY)
        bars.refresh()
        for shown in ("hybrid, seed 2", "epoch 3", "0.751", "1234", "25%"):
            assert shown in screen.getvalue()
        bar.on_end(None)
        assert bars.tasks == []


def test_on_a_terminal_a_bar_replaces_the_log_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = logging.getLogger("audioscore.training")
    before = lines.level
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with listeners() as listen:
        (bar,) = listen("hybrid", 3)
        assert isinstance(bar, ProgressBar)
        assert not lines.isEnabledFor(logging.INFO)
    assert lines.level == before
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    with listeners() as listen:
        assert list(listen("hybrid", 3)) == []


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home of its own, and no MLflow settings in the environment."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_LOGGING_LEVEL", "MLFLOW_DISABLE_TELEMETRY", "GIT_PYTHON_REFRESH"):
        monkeypatch.delenv(name, raising=False)
    mlflow.set_tracking_uri(None)
    return Home(tmp_path / "home")


def test_curves_throughput_and_the_end_of_each_fit_reach_mlflow(database: Home) -> None:
    with listeners("trials", database) as listen:
        for seed, fault in ((1, None), (2, RuntimeError("boom"))):
            (curves,) = [one for one in listen("hybrid", seed) if isinstance(one, MlflowCurves)]
            curves.on_start(2, 40)
            for epoch in (1.0, 2.0):
                curves.on_step(3)
                curves.on_epoch({**ENTRY, "epoch": epoch, "train_loss": 1 / epoch})
            curves.on_end(fault)
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


def test_an_address_of_ones_own_is_kept(database: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////elsewhere/mlflow.db")
    with listeners("trials", database) as listen:
        assert [type(one) for one in listen("hybrid", 1)][-1] is MlflowCurves
        assert os.environ["MLFLOW_TRACKING_URI"] == "sqlite:////elsewhere/mlflow.db"
    assert not database.folder.exists()
