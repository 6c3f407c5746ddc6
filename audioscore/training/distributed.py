"""One process or many: accelerate says which this is, and on which device it computes."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, broadcast, broadcast_object_list
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from audioscore.errors import UsageError

T = TypeVar("T")

LONGEST_WAIT = timedelta(hours=12)  # of processes for each other
BOARD_WAIT = timedelta(seconds=10)  # for the notice board of torchrun, which answers at once where it is alive


def start(device: str, precision: str = "fp32") -> Accelerator:
    """Accelerate, on this process's device; "auto" takes a GPU where there is one. A CPU computes in fp32.

    Raises UsageError where a GPU is asked for and none is there.
    """
    on_cpu = _on_cpu(device)
    # What one process trained before, by another precision or elsewhere, does not bind what it trains now.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    patient = InitProcessGroupKwargs(timeout=LONGEST_WAIT)  # for the one that extracts, or writes, longest
    mixed = "no" if on_cpu or precision == "fp32" else precision
    return Accelerator(cpu=on_cpu, mixed_precision=mixed, kwargs_handlers=[patient])


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Leave the group of processes at the end, if torchrun made one."""
    try:
        yield
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def in_turns(work: Callable[[tuple[int, int]], None], device: str = "auto") -> None:
    """Let every process of torchrun do its share, (which, of how many), and wait for the others."""
    state = PartialState(cpu=_on_cpu(device), timeout=LONGEST_WAIT) if count() > 1 else PartialState(_on_cpu(device))
    work((state.process_index, state.num_processes))
    state.wait_for_everyone()


def _on_cpu(device: str) -> bool:
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda: this machine has no GPU that torch can use. Train with device auto or cpu.")
    if device == "cpu" or not torch.cuda.is_available():
        return True
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if here > torch.cuda.device_count():
        raise UsageError(
            f"{here} processes, and this machine has {torch.cuda.device_count()} GPUs: each process needs its own. "
            f"Set training.processes, or torchrun's --nproc_per_node, to their number."
        )
    return False


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def once(work: Callable[[], T]) -> T:
    """What the main process makes of some work, for every process; the others wait for it, on an open `start`."""
    made: list[T] = broadcast_object_list([work() if is_main() else None])
    return made[0]


def share(tensors: Iterable[Tensor]) -> None:
    """Give every process the main one's values of tensors, in place."""
    for tensor in tensors:
        broadcast(tensor)


def count() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first_to_fail() -> bool:
    """Whether no other process has said what went wrong: where one fails, others often do, of it or for want of it.

    They meet on torchrun's own notice board, which outlives each of them.
    """
    if count() == 1:
        return True
    try:
        board, _, _ = next(rendezvous("env://", timeout=BOARD_WAIT))
        return int(board.add("audioscore/failed", 1)) == 1
    except (RuntimeError, ValueError):
        return is_main()  # there is no board: better twice than never
