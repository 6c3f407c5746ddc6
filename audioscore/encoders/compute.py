"""How encoders are run: device, number format and threads."""

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
T = TypeVar("T")


def choose_device(device: str) -> str:
    """Resolve a device name: "auto" is a GPU where there is one.

    Raises: UsageError for an unknown name and for a GPU that does not exist.
    """
    if device == "cpu":
        return device
    name, _, number = device.partition(":")
    if device != "auto" and (name != "cuda" or not (number.isdecimal() or device == "cuda")):
        raise UsageError(f"device {device}: unknown. Use auto, cpu, cuda, or cuda:N for GPU N.")
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto" and count == 0:
        return "cpu"
    if count <= int(number or 0):
        raise UsageError(f"device {device}: torch finds {count} GPUs on this machine. Use auto or cpu.")
    # By number: each new thread has a current device of its own.
    return device if number else f"cuda:{torch.cuda.current_device()}"


def precision_on(device: str, requested: Precision) -> Precision:
    """Return the precision used on a device: fp32 on every CPU, so that features do not depend on the machine.

    >>> precision_on("cpu", "bf16"), precision_on("cuda:0", "bf16")
    ('fp32', 'bf16')

    Raises: UsageError for an unknown format.
    """
    import torch

    if requested not in get_args(Precision):
        raise UsageError(
            f"precision {requested!r}: unknown number format. Use one of {', '.join(get_args(Precision))}."
        )
    if requested != "fp32" and torch.device(device).type == "cpu":
        log.info("encoders compute in fp32 on a CPU; %s is for GPUs", requested)
        return "fp32"
    return requested


@contextlib.contextmanager
def precision_context(precision: Precision, device: str) -> Iterator[None]:
    """Let torch compute in a number format; fp32 also overrides a caller's autocast.

    Weights keep their format: autocast computes products in the lower one, and norms and exponentials in fp32. In
    fp32, cuDNN must not use TF32, which keeps 10 of 23 mantissa bits: features would differ from a CPU's.
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


def as_fp32(output: "Tensor", precision: Precision) -> "Tensor":
    """Convert an encoder's output to float32.

    Raises: ModelError where a lower format overflowed: fp16 ends at 65 504.
    """
    if precision != "fp32" and not output.isfinite().all():
        raise ModelError(f"precision {precision}: an encoder's output overflows. Use bf16 or fp32.")
    return output.float()


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Run each torch operation in the thread that calls it.

    The matrices of one clip are so small that sharing them between threads costs more than it saves, above all on a
    busy machine. Clips in parallel, one thread each, are several times as fast.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def set_passive_waiting() -> None:
    """Let torch's threads sleep while they wait for each other, unless OMP_WAIT_POLICY is set.

    By default they spin and take the core from other programs: next to one busy process, a recording took 1.8 times as
    long. Call it before torch is imported; afterwards it has no effect.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def cores() -> int:
    """Count the cores that this process may use; the machine may have more."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_in_threads(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Run tasks in parallel, one thread and one torch thread per core; a single task uses all torch threads.

    Returns: the results, in the tasks' order.
    """
    workers = min(cores(), len(tasks))
    if workers <= 1:
        return [task() for task in tasks]
    with one_torch_thread(), ThreadPoolExecutor(workers, thread_name_prefix="encode") as pool:
        return list(pool.map(lambda task: task(), tasks))


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Silence the deprecation warnings that muq's and modelscope's dependencies raise on import.

    Users cannot act on them, and with warnings as errors they would stop a program.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
