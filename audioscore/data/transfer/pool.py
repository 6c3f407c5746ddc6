"""Some threads for many downloads, which stop at once when the user or the disk says so."""

import queue
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from audioscore.errors import AudioError

T = TypeVar("T")
LEAVE_SECONDS = 2.0  # how long threads that wait for a server are waited for; then they end with the process


class Stopped(Exception):
    """Raised inside a task when the others have been stopped."""


@dataclass(frozen=True)
class Hooks:
    """What a task calls: `received` with each piece's size, `sleep` with seconds. Both raise Stopped to stop it."""

    received: Callable[[int], None]
    sleep: Callable[[float], None]


@dataclass(frozen=True)
class _Done(Generic[T]):
    index: int
    result: T


@dataclass(frozen=True)
class _Failed:
    fault: BaseException


def run_all(
    tasks: Sequence[Callable[[Hooks], T]],
    *,
    workers: int,
    progress: Callable[[int, int], object] | None = None,
    bytes_progress: Callable[[int], object] | None = None,
) -> list[T]:
    """Run the tasks in threads; their results, in the tasks' order.

    The first exception of a task stops the others and is raised here, as is KeyboardInterrupt. `progress` gets (tasks
    done, tasks) and `bytes_progress` the size of each piece, both in the caller's thread.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    said: queue.SimpleQueue[int | _Done[T] | _Failed] = queue.SimpleQueue()
    stop = threading.Event()
    for index in range(len(tasks)):
        waiting.put(index)

    def received(size: int) -> None:
        said.put(size)
        if stop.is_set():
            raise Stopped

    def sleep(seconds: float) -> None:
        if stop.wait(seconds):
            raise Stopped

    def work() -> None:
        while not stop.is_set() and (event := _work_off(waiting, tasks, hooks)) is not None:
            if isinstance(event, _Failed):
                stop.set()
            said.put(event)

    hooks = Hooks(received, sleep)
    # Daemons, since a thread that waits for a server cannot be woken, and must not keep the process alive.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, len(tasks)))]
    for thread in threads:
        thread.start()
    try:
        return _collect(said, len(tasks), progress, bytes_progress)
    finally:
        stop.set()
        for thread in threads:
            thread.join(LEAVE_SECONDS / len(threads))


def _work_off(
    waiting: "queue.SimpleQueue[int]", tasks: Sequence[Callable[[Hooks], T]], hooks: Hooks
) -> _Done[T] | _Failed | None:
    """Do the next task that waits; None where there is none, or it was stopped."""
    try:
        index = waiting.get_nowait()
        return _Done(index, tasks[index](hooks))
    except (queue.Empty, Stopped):
        return None
    except BaseException as fault:  # raised again where the tasks were handed in
        return _Failed(fault)


def _collect(
    said: "queue.SimpleQueue[int | _Done[T] | _Failed]",
    count: int,
    progress: Callable[[int, int], object] | None,
    bytes_progress: Callable[[int], object] | None,
) -> list[T]:
    results: dict[int, T] = {}
    while len(results) < count:
        event = said.get()
        if isinstance(event, int):
            if bytes_progress is not None:
                bytes_progress(event)
            continue
        if isinstance(event, _Failed):
            raise event.fault
        results[event.index] = event.result
        if progress is not None:
            progress(len(results), count)
    return [results[index] for index in range(count)]


TRIES = 5  # in a row without a new byte
MOST_TRIES = 100  # in all, for a server that drops every connection after a few bytes
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds; doubled each time, and up to half of it left out by chance


class TryAgain(Exception):
    """A fault that may pass. `after` is how many seconds the server asks to wait; `unreachable`: it never answered."""

    def __init__(self, reason: str, *, after: float | None = None, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.after = after
        self.unreachable = unreachable


class Unreachable(AudioError):
    """A server that was asked several times and never answered."""


def persist(
    attempt: Callable[[], None], received: Callable[[], int], name: str, sleep: Callable[[float], object]
) -> None:
    """Call `attempt` until it returns; TryAgain is answered by a pause, and by AudioError after TRIES in vain.

    `received` says how many bytes there are: an attempt that brings more than any before begins the count anew.
    """
    failures, best = 0, received()
    for tried in range(1, MOST_TRIES + 1):
        try:
            attempt()
            return
        except TryAgain as fault:
            failures = 1 if received() > best else failures + 1
            best = max(best, received())
            if failures >= TRIES or tried == MOST_TRIES:
                kind = Unreachable if fault.unreachable else AudioError
                raise kind(
                    f"{name}: {fault}, in {tried} tries ({received()} bytes arrived). Try again later."
                ) from fault
            sleep(pause(failures, fault.after))


def pause(failures: int, after: float | None) -> float:
    """Seconds to wait: what the server asks for, within bounds, or twice as long as before, less chance.

    >>> pause(1, 7.0), pause(1, 3600.0)
    (7.0, 60.0)
    >>> 2.0 <= pause(4, None) <= 4.0
    True
    """
    if after is not None:
        return min(max(after, 0.0), LONGEST_PAUSE)
    most: float = min(FIRST_PAUSE * 2 ** (failures - 1), LONGEST_PAUSE)
    return most * random.uniform(0.5, 1.0)  # so that many that failed at once do not come back at once
