"""The number format a frozen encoder computes in: fp32 on a CPU; on a GPU a lower one, where that is asked for."""

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, get_args

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
