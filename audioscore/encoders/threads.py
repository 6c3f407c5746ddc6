"""How torch's own threads are used on a CPU."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Let each operation of torch run in the thread that called it.

    The small matrices of one clip are done before several threads have agreed to share them, and on a busy machine
    they wait for each other at every operation: clips side by side, one thread each, are several times faster.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def wait_asleep() -> None:
    """Let torch's threads sleep while they wait for each other, unless OMP_WAIT_POLICY says what they do.

    Without it they spin, which keeps from its core whatever they wait for where others use the machine: a recording
    alone took 1.8 times as long beside one busy process. It does nothing once torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def cores() -> int:
    """How many cores this process may use, which may be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """What each task gives, in order: one thread a core, each with one of torch's; a task alone has all of torch's."""
    workers = min(cores(), len(tasks))
    if workers <= 1:
        return [task() for task in tasks]
    with one_torch_thread(), ThreadPoolExecutor(workers, thread_name_prefix="hear") as pool:
        return list(pool.map(lambda task: task(), tasks))
