"""Asking again: what may pass is tried some times, with growing pauses, as long as it brings nothing new."""

import random
from collections.abc import Callable

from audioscore.errors import AudioError

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
