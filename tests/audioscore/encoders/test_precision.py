import contextlib
import logging
from typing import Any, cast

import pytest
import torch

from audioscore.encoders.precision import Precision, as_fp32, computing_in, precision_on
from audioscore.errors import ModelError, UsageError


@pytest.mark.parametrize("asked", ["fp32", "bf16", "fp16"])
def test_a_cpu_computes_in_fp32_and_anything_else_in_what_is_asked(asked: Precision) -> None:
    assert precision_on("cpu", asked) == "fp32"
    assert precision_on("cuda", asked) == precision_on("cuda:1", asked) == precision_on("xpu", asked) == asked


def test_that_a_lower_precision_is_not_used_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    precision_on("cpu", "fp32")
    precision_on("cuda", "bf16")
    assert caplog.messages == []
    precision_on("cpu", "bf16")
    assert caplog.messages == ["encoders compute in fp32 on a CPU; bf16 is for GPUs"]


@pytest.mark.parametrize("asked", ["float16", "", None])
def test_a_format_that_does_not_exist_is_refused(asked: object) -> None:
    with pytest.raises(UsageError) as caught:
        precision_on("cuda", cast(Any, asked))
    assert str(caught.value) == f"precision {asked!r}: no such number format. Give one of fp32, bf16, fp16."


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_matrices_are_multiplied_in_the_precision(precision: Precision, dtype: torch.dtype) -> None:
    for outer in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=outer), computing_in(precision, "cpu"):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert not torch.is_autocast_enabled("cpu")


def test_it_is_the_devices_kind_that_computes_so(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[tuple[str, torch.dtype, bool]] = []

    def enter(kind: str, *, dtype: torch.dtype, enabled: bool) -> contextlib.AbstractContextManager[None]:
        entered.append((kind, dtype, enabled))
        return contextlib.nullcontext()

    monkeypatch.setattr(torch, "autocast", enter)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    asked: list[tuple[Precision, str, bool]] = [
        ("bf16", "cuda:1", True),
        ("fp16", "cuda", True),
        ("fp32", "cuda", False),
    ]
    for precision, device, coarse in asked:
        with computing_in(precision, device):
            assert torch.backends.cudnn.allow_tf32 == coarse, "fp32 is fp32 in convolutions too"
    assert entered == [("cuda", torch.bfloat16, True), ("cuda", torch.float16, True), ("cuda", torch.bfloat16, False)]
    assert torch.backends.cudnn.allow_tf32


def test_numbers_beyond_a_lower_format_are_an_error_and_never_a_feature() -> None:
    assert as_fp32(torch.ones(3, dtype=torch.float16), "fp16").dtype == torch.float32
    with pytest.raises(ModelError, match=r"^an encoder gives numbers that fp16 does not hold\. Use bf16 or fp32\.$"):
        as_fp32(torch.tensor([70_000.0]).half(), "fp16")
