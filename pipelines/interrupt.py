"""Ctrl-C, or a request to end, ends a run: what runs is ended, and nothing begins after it.

KFP's local runner learns of an interrupt in its main thread alone. There it waits for the threads of a loop, which
finish the step at hand and begin the next ones; and a step in a container hears no interrupt of the terminal at all.
"""

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

EVERY_SECONDS = 0.3  # a step may be about to begin when it is looked for; it is found the next time


SIGNALS = (signal.SIGINT, signal.SIGTERM)  # of the terminal; of `kill`, `timeout`, and whoever shuts a machine down


class Signalled(KeyboardInterrupt):
    """A signal asks the program to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupted(Signalled):
    """A run whose steps had begun is interrupted; where this arrives, none of them runs any more."""


@dataclass
class Interruption:
    """The first signal that interrupted the run, if any has."""

    number: int | None = None

    @property
    def happened(self) -> bool:
        """Whether the run is to end."""
        return self.number is not None


@contextlib.contextmanager
def interruptible(end: Callable[[], object]) -> Iterator[Interruption]:
    """While this holds, each of SIGNALS makes `end` end the steps that run, keeps others from beginning, and is raised
    as Interrupted.

    `end` is called from another thread until this is left, and once more then: whatever came of the interrupt, no step
    of the run outlives it. A second interrupt changes nothing, since the first is being carried out.
    """
    from kfp.local import task_dispatcher

    interruption, left = Interruption(), threading.Event()
    begin = task_dispatcher.run_single_task_implementation

    def begin_unless_interrupted(*positional: Any, **named: Any) -> Any:
        if interruption.happened:
            raise KeyboardInterrupt
        return begin(*positional, **named)

    def interrupt(number: int, _frame: object) -> None:
        if not interruption.happened:
            interruption.number = number  # a plain value: a lock might be held by what is interrupted
            raise Interrupted(number)

    def sweep() -> None:
        while not left.wait(EVERY_SECONDS):
            if interruption.happened:
                with contextlib.suppress(Exception):  # the last try, below, tells
                    end()

    sweeper = threading.Thread(target=sweep, daemon=True)
    task_dispatcher.run_single_task_implementation = begin_unless_interrupted
    sweeper.start()
    with _on_signals(SIGNALS, interrupt):
        try:
            yield interruption
        finally:
            left.set()
            sweeper.join()
            task_dispatcher.run_single_task_implementation = begin
            if interruption.happened:
                _end_last(end)


def _end_last(end: Callable[[], object]) -> None:
    try:
        end()
    except Exception as fault:  # of the container engine, say: the run is broken off all the same
        log.warning("a step of the interrupted run may still be running (%s); --resume ends it first", fault)


@contextlib.contextmanager
def asked_to_end() -> Iterator[None]:
    """While this holds, SIGTERM is raised as Signalled, so that what was opened, an engine for instance, is closed."""

    def end(number: int, _frame: object) -> None:
        raise Signalled(number)

    with _on_signals((signal.SIGTERM,), end):
        yield


@contextlib.contextmanager
def _on_signals(numbers: Sequence[signal.Signals], handler: Callable[..., None]) -> Iterator[None]:
    """Handle these so; Python allows it in the main thread alone, and delivers them nowhere else."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    finally:
        for number, own in zip(numbers, before, strict=True):
            signal.signal(number, own)
