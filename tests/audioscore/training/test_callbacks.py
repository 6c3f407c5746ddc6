import io
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from audioscore.home import Home
from audioscore.training.callbacks import MlflowCurves, ProgressBar, following, listeners

ENTRY = {"epoch": 3.0, "train_loss": 0.25, "val_spearman": 0.7512, "clips_per_second": 1234.5}


class Heard:
    """Remembers what a callback is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def on_start(self, step: int, steps: int) -> None:
        self.told.append(("start", step, steps))

    def on_step(self, step: int) -> None:
        self.told.append(step)

    def on_epoch(self, entry: dict[str, float]) -> None:
        self.told.append(entry["epoch"])

    def on_end(self, fault: BaseException | None) -> None:
        self.told.append(("end", fault))


def test_a_callback_that_was_told_of_a_start_is_told_of_the_end_however_it_came() -> None:
    fine, failed, fault = Heard(), Heard(), ValueError("boom")
    with following([fine], 2, 9):
        pass
    with pytest.raises(ValueError, match="boom"), following([failed], 0, 9):
        raise fault
    assert fine.told == [("start", 2, 9), ("end", None)]
    assert failed.told == [("start", 0, 9), ("end", fault)]


def test_one_that_cannot_start_ends_those_that_have_and_no_other() -> None:
    class Broken(Heard):
        def on_start(self, step: int, steps: int) -> None:
            raise OSError("no database")

    first, broken, third = Heard(), Broken(), Heard()
    with pytest.raises(OSError, match="no database"), following([first, broken, third], 0, 1):
        raise AssertionError("the fit must not begin")
    assert [type(told) for told in (first.told[-1][1],)] == [OSError]
    assert broken.told == third.told == []


def test_a_fit_tells_its_steps_and_epochs(toys: Any) -> None:
    from audioscore.training.fold import fit_statistics
    from audioscore.training.loop import fit_network

    heard, network = Heard(), toys.network()
    fit_statistics(network, toys.train.features)
    settings = toys.settings(epochs=2, batch_clips=32)
    fit_network(network, toys.train, toys.val, settings, seed=1, callbacks=[heard], device="cpu")
    assert heard.told == [("start", 0, 4), 1, 2, 1.0, 3, 4, 2.0, ("end", None)]


def test_the_bar_counts_steps_and_says_how_well_the_last_epoch_ranked() -> None:
    from rich.console import Console
    from rich.progress import Progress

    screen = io.StringIO()
    with Progress(console=Console(file=screen, force_terminal=True, width=200), auto_refresh=False) as bars:
        bar = ProgressBar(bars, "hybrid, seed 2")
        bar.on_start(5, 40)
        bar.on_step(10)
        assert (bars.tasks[0].completed, bars.tasks[0].total) == (10, 40)
        bar.on_epoch(ENTRY)
        bars.refresh()
        assert "hybrid, seed 2: epoch 3, validation Spearman 0.751, 1234 clips/s" in screen.getvalue()
        assert "25%" in screen.getvalue()
        bar.on_end(None)
        assert bars.tasks == []


def test_where_a_person_watches_the_bar_stands_in_for_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = logging.getLogger("audioscore.training")
    before = lines.level
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with listeners() as listen:
        (bar,) = listen("hybrid", 3)
        assert isinstance(bar, ProgressBar)
        assert not lines.isEnabledFor(logging.INFO)
    assert lines.level == before


def test_where_nobody_watches_there_is_nothing_to_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    with listeners() as listen:
        assert list(listen("hybrid", 3)) == []


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tests' own home, and nothing in the environment that says where MLflow is."""
    mlflow = pytest.importorskip("mlflow")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_LOGGING_LEVEL", "MLFLOW_DISABLE_TELEMETRY", "GIT_PYTHON_REFRESH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(None)
    yield Home(tmp_path / "home")
    mlflow.set_tracking_uri(before)


def test_curves_and_throughput_reach_a_real_mlflow_and_say_how_each_fit_ended(database: Home) -> None:
    import mlflow

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
