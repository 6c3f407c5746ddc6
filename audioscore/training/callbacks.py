"""What may follow a fit while it runs: a progress bar, curves in MLflow."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from audioscore.config import Plan
from audioscore.home import Home

if TYPE_CHECKING:
    from accelerate.tracking import MLflowTracker
    from rich.progress import Progress


class Callback(Protocol):
    """Called by the process that trains; under torchrun, by the main one only."""

    def on_start(self, step: int, steps: int) -> None:
        """Before the first step that is taken: how many are done, and how many there are at most."""

    def on_step(self, step: int) -> None:
        """After each step: how many are done."""

    def on_epoch(self, entry: dict[str, float]) -> None:
        """After each epoch: its line of the learning curve."""

    def on_end(self, fault: BaseException | None) -> None:
        """After the last epoch, or where the fit ended by a fault."""


Listen = Callable[[Plan, int], Sequence[Callback]]  # what follows the fit of a plan and a seed


@contextlib.contextmanager
def following(callbacks: Sequence[Callback], step: int, steps: int) -> Iterator[None]:
    """Tell callbacks that a fit starts, and, however it ends, that it has ended."""
    started: list[Callback] = []
    fault: BaseException | None = None
    try:
        for callback in callbacks:
            callback.on_start(step, steps)
            started.append(callback)
        yield
    except BaseException as reason:
        fault = reason
        raise
    finally:
        for callback in started:
            callback.on_end(fault)


class ProgressBar:
    """Steps of one fit as a bar; its line says how well the last epoch ranked the validation clips."""

    def __init__(self, bars: "Progress", name: str) -> None:
        self._bars, self._name = bars, name
        self._bar = bars.add_task(name, total=None)

    def on_start(self, step: int, steps: int) -> None:
        self._bars.update(self._bar, completed=step, total=steps)

    def on_step(self, step: int) -> None:
        self._bars.update(self._bar, completed=step)

    def on_epoch(self, entry: dict[str, float]) -> None:
        figures = f"epoch {entry['epoch']:.0f}, validation Spearman {entry['val_spearman']:.3f}"
        self._bars.update(self._bar, description=f"{self._name}: {figures}, {entry['clips_per_second']:.0f} clips/s")

    def on_end(self, fault: BaseException | None) -> None:
        self._bars.remove_task(self._bar)


class MlflowCurves:
    """Every figure of the learning curve, throughput included, as metrics of an MLflow run of its own.

    The server or file is MLflow's own setting, MLFLOW_TRACKING_URI. A fit that ends by a fault is a failed run.
    `artifacts`: where an experiment that does not exist yet shall keep files; MLflow's choice by default.
    """

    def __init__(self, experiment: str, name: str, tags: dict[str, str], artifacts: str | None = None) -> None:
        self._experiment, self._name, self._tags, self._artifacts = experiment, name, tags, artifacts
        self._tracker: MLflowTracker | None = None

    def on_start(self, step: int, steps: int) -> None:
        from accelerate.tracking import MLflowTracker

        logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells at length how a database is made
        self._tracker = MLflowTracker(self._experiment, self._artifacts, run_name=self._name, tags=self._tags)
        self._tracker.start()
        self._tracker.store_init_configuration({"steps": steps, "first_step": step, **self._tags})

    def on_step(self, step: int) -> None:
        pass

    def on_epoch(self, entry: dict[str, float]) -> None:
        if self._tracker is not None:
            self._tracker.log({name: value for name, value in entry.items() if name != "epoch"}, int(entry["epoch"]))

    def on_end(self, fault: BaseException | None) -> None:
        if self._tracker is not None:
            # Not the tracker's own finish(), by which every run is a success.
            self._tracker.tracker.__exit__(None if fault is None else type(fault), fault, None)


@contextlib.contextmanager
def listeners(experiment: str | None = None, place: Home | None = None) -> Iterator[Listen]:
    """What follows each fit: a bar where a person is watching, and with `experiment` its curves in MLflow.

    Unless MLFLOW_TRACKING_URI says where that is, it is the database of `place`.
    """
    artifacts = None
    if experiment is not None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        if place is not None and "MLFLOW_TRACKING_URI" not in os.environ:
            place.folder.mkdir(parents=True, exist_ok=True)
            os.environ["MLFLOW_TRACKING_URI"] = place.tracking_uri
            artifacts = (place.artifacts / experiment).as_uri()
    with contextlib.ExitStack() as stack:
        bars = stack.enter_context(_bars()) if sys.stderr.isatty() else None

        def listen(plan: Plan, seed: int) -> list[Callback]:
            name = f"{plan}, seed {seed}"
            found: list[Callback] = [] if bars is None else [ProgressBar(bars, name)]
            if experiment is not None:
                found.append(MlflowCurves(experiment, name, {"plan": plan, "seed": str(seed)}, artifacts))
            return found

        yield listen


@contextlib.contextmanager
def _bars() -> "Iterator[Progress]":
    """Bars on standard error; the lines that say the same would tear them."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    lines = logging.getLogger("audioscore.training")
    before = lines.level
    lines.setLevel(logging.WARNING)
    try:
        with Progress(*columns, console=Console(stderr=True)) as bars:
            yield bars
    finally:
        lines.setLevel(before)
