import io
import logging
import subprocess
import sys
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from audioscore.training.callbacks import ProgressBar, following, progress_bars
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

    def on_end(self, error: BaseException | None) -> None:
        self.calls.append(("end", error))


def test_a_started_callback_gets_the_end_with_or_without_an_error() -> None:
    fine, failed, error = Recorder(), Recorder(), ValueError("boom")
    with following([fine], 2, 9):
        pass
    with pytest.raises(ValueError, match="boom"), following([failed], 0, 9):
        raise error
    assert fine.calls == [("start", 2, 9), ("end", None)]
    assert failed.calls == [("start", 0, 9), ("end", error)]


def test_a_callback_that_cannot_start_ends_only_the_started_ones() -> None:
    class Broken(Recorder):
        def on_start(self, step: int, steps: int) -> None:
            raise OSError("no database")

    first, broken, third = Recorder(), Broken(), Recorder()
    with pytest.raises(OSError, match="no database"), following([first, broken, third], 0, 1):
        raise AssertionError("the fit must not start")
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
    logger = logging.getLogger("audioscore.training")
    before = logger.level
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bars() as callbacks_for:
        (bar,) = callbacks_for("hybrid", 3)
        assert isinstance(bar, ProgressBar)
        assert not logger.isEnabledFor(logging.INFO)
    assert logger.level == before
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    with progress_bars() as callbacks_for:
        assert list(callbacks_for("hybrid", 3)) == []


def test_training_does_not_load_mlflow() -> None:
    """Not through accelerate either, whose trackers import-linter does not see."""
    code = """
import importlib, pkgutil, sys
import audioscore.training
for module in pkgutil.walk_packages(audioscore.training.__path__, "audioscore.training."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
sys.exit("mlflow" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
