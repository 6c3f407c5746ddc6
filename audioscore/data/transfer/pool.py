"""Run many transfers in threads, and repeat those that fail for a transient reason."""

import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from audioscore.errors import AudioError, ServerUnreachable

T = TypeVar("T")
JOIN_SECONDS = 2.0  # how long to wait for threads that are blocked by a server; afterwards they end with the process
TRIES = 5  # consecutive attempts without a new byte
MOST_TRIES = 100  # attempts in total, for a server that closes every connection after a few bytes
PATIENCE = 25.0  # seconds without an answer after which no further attempt is started
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds; doubled after each failure, shortened at random by up to a half


class Stopped(Exception):
    """Raised inside a task when another task failed or the caller stopped all tasks."""


@dataclass(frozen=True)
class Hooks:
    """Functions that a task calls, so that it can be stopped: both raise Stopped.

    `received` takes the size of each piece in bytes, `sleep` a duration in seconds.
    """

    received: Callable[[int], None]
    sleep: Callable[[float], None]


@dataclass(frozen=True)
class _Done(Generic[T]):
    index: int
    result: T


@dataclass(frozen=True)
class _Failed:
    error: BaseException


def run_all(
    tasks: Sequence[Callable[[Hooks], T]], *, workers: int, progress: Callable[[int, int], object] | None = None
) -> list[T]:
    """Run tasks in threads and return their results in the order of the tasks.

    The first exception of a task stops the other tasks and is raised here, as is KeyboardInterrupt. `progress` gets
    (finished tasks, all tasks), in the caller's thread.
    """
    pending: queue.SimpleQueue[int] = queue.SimpleQueue()
    events: queue.SimpleQueue[_Done[T] | _Failed] = queue.SimpleQueue()
    stop = threading.Event()
    for index in range(len(tasks)):
        pending.put(index)

    def received(size: int) -> None:
        if stop.is_set():
            raise Stopped

    def sleep(seconds: float) -> None:
        if stop.wait(seconds):
            raise Stopped

    def work() -> None:
        while not stop.is_set() and (event := _run_next(pending, tasks, hooks)) is not None:
            if isinstance(event, _Failed):
                stop.set()
            events.put(event)

    hooks = Hooks(received, sleep)
    # Daemon threads: a thread that waits for a server cannot be interrupted, and must not keep the process running.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, len(tasks)))]
    for thread in threads:
        thread.start()
    try:
        return _collect(events, len(tasks), progress)
    finally:
        stop.set()
        for thread in threads:
            thread.join(JOIN_SECONDS / len(threads))


def _run_next(
    pending: "queue.SimpleQueue[int]", tasks: Sequence[Callable[[Hooks], T]], hooks: Hooks
) -> _Done[T] | _Failed | None:
    """Run the next pending task; None when no task is pending or the task was stopped."""
    try:
        index = pending.get_nowait()
        return _Done(index, tasks[index](hooks))
    except (queue.Empty, Stopped):
        return None
    except BaseException as error:  # raised again in the caller's thread
        return _Failed(error)


def _collect(
    events: "queue.SimpleQueue[_Done[T] | _Failed]", count: int, progress: Callable[[int, int], object] | None
) -> list[T]:
    results: dict[int, T] = {}
    while len(results) < count:
        event = events.get()
        if isinstance(event, _Failed):
            raise event.error
        results[event.index] = event.result
        if progress is not None:
            progress(len(results), count)
    return [results[index] for index in range(count)]


class TransientError(Exception):
    """An error that may not occur again on a retry.

    `after` is the pause that the server requested, in seconds; `unreachable` means that the server did not answer.
    """

    def __init__(self, reason: str, *, after: float | None = None, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.after = after
        self.unreachable = unreachable


def with_retries(
    attempt: Callable[[], None], received: Callable[[], int], name: str, sleep: Callable[[float], object]
) -> None:
    """Call `attempt` until it succeeds, with a pause after each TransientError.

    `received` returns the number of bytes received so far: an attempt that increases it resets the count of failures.
    Raises AudioError after TRIES consecutive failures, MOST_TRIES attempts, or PATIENCE without an answer.
    """
    failures, best, answered = 0, received(), time.monotonic()
    for tried in range(1, MOST_TRIES + 1):
        try:
            attempt()
            return
        except TransientError as error:
            failures = 1 if received() > best else failures + 1
            best = max(best, received())
            if not error.unreachable:
                answered = time.monotonic()
            if failures >= TRIES or tried == MOST_TRIES or time.monotonic() - answered > PATIENCE:
                kind = ServerUnreachable if error.unreachable else AudioError
                raise kind(
                    f"{name}: {error}, in {tried} tries ({received()} bytes arrived). Try again later."
                ) from error
            sleep(pause(failures, error.after))


def pause(failures: int, after: float | None) -> float:
    """Compute the seconds to wait before a retry: as the server requests, within bounds, or exponential with jitter.

    >>> pause(1, 7.0), pause(1, 3600.0)
    (7.0, 60.0)
    >>> 2.0 <= pause(4, None) <= 4.0
    True
    """
    if after is not None:
        return min(max(after, 0.0), LONGEST_PAUSE)
    most: float = min(FIRST_PAUSE * 2 ** (failures - 1), LONGEST_PAUSE)
    return most * random.uniform(0.5, 1.0)  # jitter, so that transfers that failed together do not retry together
