"""The number format a frozen encoder computes in: fp32 on a CPU; on a GPU a lower one, where that is asked for."""

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from audioscore.errors import ModelError, UsageError

if TYPE_CHECKING:
    from torch import Tensor


log = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "fp16"]


def precision_on(device: str, asked: Precision) -> Precision:
    """What is used of what is asked for: on a CPU always fp32, so that a recording has the same features on each.

    >>> precision_on("cpu", "bf16"), precision_on("cuda:0", "bf16")
    ('fp32', 'bf16')

    Raises UsageError for a format that does not exist.
    """
    import torch

    if asked not in get_args(Precision):
        raise UsageError(f"precision {asked!r}: no such number format. Give one of {', '.join(get_args(Precision))}.")
    if asked != "fp32" and torch.device(device).type == "cpu":
        log.info("encoders compute in fp32 on a CPU; %s is for GPUs", asked)
        return "fp32"
    return asked


@contextlib.contextmanager
def computing_in(precision: Precision, device: str) -> Iterator[None]:
    """Torch computes so in the block; fp32 also holds within a caller's autocast. Lower ones never ran on a GPU.

    Weights stay as they are: what gains by it is computed lower, what suffers (norms, exponentials) is not. In fp32,
    cuDNN's convolutions may not use TF32 either, which keeps 10 bits of a number's 23: features would not be a CPU's.
    """
    import torch

    dtype, cudnn = torch.float16 if precision == "fp16" else torch.bfloat16, torch.backends.cudnn
    before = cudnn.allow_tf32
    cudnn.allow_tf32 = before and precision != "fp32"
    try:
        with torch.autocast(torch.device(device).type, dtype=dtype, enabled=precision != "fp32"):
            yield
    finally:
        cudnn.allow_tf32 = before


def as_fp32(made: "Tensor", precision: Precision) -> "Tensor":
    """What an encoder made, in float32, of any shape.

    Raises ModelError where numbers went beyond what a lower format holds: fp16 ends at 65 504.
    """
    if precision != "fp32" and not made.isfinite().all():
        raise ModelError(f"an encoder gives numbers that {precision} does not hold. Use bf16 or fp32.")
    return made.float()


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


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Silence the deprecation notices that muq's and modelscope's own dependencies print on import.

    They concern those packages, not their users, and with warnings as errors they would stop a program.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
