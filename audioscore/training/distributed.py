"""The processes of a training and their devices, by accelerate."""

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
STORE_TIMEOUT = timedelta(seconds=10)  # for torchrun's key-value store, which answers at once if it runs


def start(device: str, precision: str = "fp32") -> Accelerator:
    """Return an accelerator on this process's device; "auto" uses a GPU if there is one. A CPU computes in fp32.

    Raises: UsageError if "cuda" is asked for and there is no GPU.
    """
    on_cpu = _on_cpu(device)
    # An earlier training of this process may have used another precision or device.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    timeout = InitProcessGroupKwargs(timeout=LONGEST_WAIT)  # one process may extract or write for hours
    mixed = "no" if on_cpu or precision == "fp32" else precision
    return Accelerator(cpu=on_cpu, mixed_precision=mixed, kwargs_handlers=[timeout])


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Destroy the group of processes at the end, if torchrun made one."""
    try:
        yield
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def in_shares(work: Callable[[tuple[int, int]], object], device: str = "auto") -> None:
    """Call `work` in every process with its share, (index, number of processes), and wait for the others."""
    state = PartialState(cpu=_on_cpu(device), timeout=LONGEST_WAIT) if count() > 1 else PartialState(_on_cpu(device))
    work((state.process_index, state.num_processes))
    state.wait_for_everyone()


def _on_cpu(device: str) -> bool:
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda: torch finds no GPU on this machine. Train with device auto or cpu.")
    if device == "cpu" or not torch.cuda.is_available():
        return True
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if local > torch.cuda.device_count():
        raise UsageError(
            f"processes: {local}, but {torch.cuda.device_count()} GPUs; each process needs its own. "
            f"Set training.processes, or torchrun's --nproc_per_node, to the number of GPUs."
        )
    return False


def is_main() -> bool:
    """Whether this process is the one that writes files and logs."""
    return int(os.environ.get("RANK", "0")) == 0


def once(work: Callable[[], T]) -> T:
    """Call `work` in the main process only and return its result in every process; needs a group made by `start`."""
    made: list[T] = broadcast_object_list([work() if is_main() else None])
    return made[0]


def share(tensors: Iterable[Tensor]) -> None:
    """Copy the main process's values of tensors to every process, in place."""
    for tensor in tensors:
        broadcast(tensor)


def count() -> int:
    """Count the processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first_to_fail() -> bool:
    """Whether this process is the first to report an error: if one fails, the others usually fail as a consequence.

    The processes agree through torchrun's key-value store, which outlives each of them.
    """
    if count() == 1:
        return True
    try:
        store, _, _ = next(rendezvous("env://", timeout=STORE_TIMEOUT))
        return int(store.add("audioscore/failed", 1)) == 1
    except (RuntimeError, ValueError):
        return is_main()  # without a store: better two reports than none
