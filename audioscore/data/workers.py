"""Processes that work side by side, and end with the one that started them."""

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor


def start_workers(count: int) -> ProcessPoolExecutor:
    """A pool of processes, spawned: forking a process with threads (torch's, Arrow's) can hang.

    Were the one that starts them killed, they would wait for its next word for ever.
    """
    spawned = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=spawned, initializer=_end_with_parent)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a worker"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
