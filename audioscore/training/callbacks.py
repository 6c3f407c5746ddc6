"""Callbacks of a fit: the interface, and a progress bar on a terminal."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from audioscore.config import Plan

if TYPE_CHECKING:
    from rich.progress import Progress


class Callback(Protocol):
    """Follows one fit; called only by the main process. `tracking.curves` logs learning curves through it."""

    def on_start(self, step: int, steps: int) -> None:
        """Called before the first step, with the number of steps done and the largest number there can be."""

    def on_step(self, step: int) -> None:
        """Called after each step, with the number of steps done."""

    def on_epoch(self, entry: dict[str, float]) -> None:
        """Called after each epoch, with its entry of the learning curve."""

    def on_end(self, error: BaseException | None) -> None:
        """Called after the last epoch, or with the exception that ended the fit."""


CallbackFactory = Callable[[Plan, int], Sequence[Callback]]  # the callbacks for the fit of a plan and a seed


@contextlib.contextmanager
def following(callbacks: Sequence[Callback], step: int, steps: int) -> Iterator[None]:
    """Start the callbacks, and end every one that started, with the exception if the fit raised one."""
    started: list[Callback] = []
    error = None
    try:
        for callback in callbacks:
            callback.on_start(step, steps)
            started.append(callback)
        yield
    except BaseException as reason:
        error = reason
        raise
    finally:
        for callback in started:
            callback.on_end(error)


class ProgressBar:
    """Shows the steps of one fit as a bar, with the validation Spearman of the last epoch."""

    def __init__(self, progress: "Progress", name: str) -> None:
        self._progress, self._name = progress, name
        self._task = progress.add_task(name, total=None)

    def on_start(self, step: int, steps: int) -> None:
        self._progress.update(self._task, completed=step, total=steps)

    def on_step(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def on_epoch(self, entry: dict[str, float]) -> None:
        figures = f"epoch {entry['epoch']:.0f}, validation Spearman {entry['val_spearman']:.3f}"
        text = f"{self._name}: {figures}, {entry['clips_per_second']:.0f} clips/s"
        self._progress.update(self._task, description=text)

    def on_end(self, error: BaseException | None) -> None:
        self._progress.remove_task(self._task)


@contextlib.contextmanager
def progress_bars() -> Iterator[CallbackFactory]:
    """Yield a factory of progress bars on standard error, or of no callbacks if that is not a terminal.

    The log lines with the same figures are turned off meanwhile, since they would break the bars.
    """
    if not sys.stderr.isatty():
        yield lambda plan, seed: []
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    logger = logging.getLogger("audioscore.training")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            yield lambda plan, seed: [ProgressBar(progress, f"{plan}, seed {seed}")]
    finally:
        logger.setLevel(before)
