"""Interrupts of a run: running steps are ended, and no further step starts.

KFP's local runner notices an interrupt only in its main thread. There it waits for the threads of a loop, which finish
the current step and start the next ones. A step in a container does not receive the terminal's interrupt at all.
"""

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

EVERY_SECONDS = 0.3  # between two searches for running steps: a step may start just after one search
SIGNALS = (signal.SIGINT, signal.SIGTERM)  # from the terminal; from `kill`, `timeout` and a service manager


class Signalled(KeyboardInterrupt):
    """A signal asks the program to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupted(Signalled):
    """A run was interrupted after its steps had started; where this is caught, no step is running any more."""


@dataclass
class Interruption:
    """The first signal that interrupted the run, if there was one."""

    number: int | None = None

    @property
    def happened(self) -> bool:
        """Whether the run is being ended."""
        return self.number is not None


@contextlib.contextmanager
def interruptible(end: Callable[[], object]) -> Iterator[Interruption]:
    """End the running steps on SIGNALS, start no others, and raise Interrupted.

    After a signal, `end` is called repeatedly from another thread and once more on exit, so that no step outlives the
    run. Further signals have no effect.

    Args:
        end: ends the steps that are running now.
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
            interruption.number = number  # a plain value: the interrupted code might hold a lock
            raise Interrupted(number)

    def end_repeatedly() -> None:
        while not left.wait(EVERY_SECONDS):
            if interruption.happened:
                with contextlib.suppress(Exception):  # the last call, on exit, reports its error
                    end()

    thread = threading.Thread(target=end_repeatedly, daemon=True)
    task_dispatcher.run_single_task_implementation = begin_unless_interrupted
    thread.start()
    with _handle(SIGNALS, interrupt):
        try:
            yield interruption
        finally:
            left.set()
            thread.join()
            task_dispatcher.run_single_task_implementation = begin
            if interruption.happened:
                _end_last(end)


def _end_last(end: Callable[[], object]) -> None:
    try:
        end()
    except Exception as error:  # for example of the container engine; the run ends nevertheless
        log.warning("a step of the interrupted run may still be running (%s); --resume ends it first", error)


@contextlib.contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Raise SIGTERM as Signalled, so that open resources, for instance a container engine, are closed."""

    def end(number: int, _frame: object) -> None:
        raise Signalled(number)

    with _handle((signal.SIGTERM,), end):
        yield


@contextlib.contextmanager
def _handle(signals: Sequence[signal.Signals], handler: Callable[..., None]) -> Iterator[None]:
    """Install a handler; only in the main thread, since Python refuses it in others and never calls it there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [signal.signal(number, handler) for number in signals]
    try:
        yield
    finally:
        for number, original in zip(signals, before, strict=True):
            signal.signal(number, original)
