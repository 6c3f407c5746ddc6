import contextlib
import logging
from typing import Any, cast

import pytest
import torch

from audioscore.encoders.compute import Precision, as_fp32, computing_in, precision_on
from audioscore.errors import ModelError, UsageError


@pytest.mark.parametrize("asked", ["fp32", "bf16", "fp16"])
def test_a_cpu_computes_in_fp32_and_logs_it(asked: Precision, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "audioscore")
    assert [precision_on(device, asked) for device in ("cuda", "cuda:1", "xpu")] == [asked] * 3
    assert caplog.messages == []
    assert precision_on("cpu", asked) == "fp32"
    assert ["fp32" in message and asked in message for message in caplog.messages] == [True] * (asked != "fp32")


@pytest.mark.parametrize("asked", ["float16", "", None])
def test_an_unknown_precision_is_refused(asked: object) -> None:
    with pytest.raises(UsageError, match=rf"{asked!r}.*fp32, bf16, fp16"):
        precision_on("cuda", cast(Any, asked))


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_matrices_are_multiplied_in_the_precision(precision: Precision, dtype: torch.dtype) -> None:
    for outer in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=outer), computing_in(precision, "cpu"):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert not torch.is_autocast_enabled("cpu")


def test_autocast_is_entered_for_the_device_type(monkeypatch: pytest.MonkeyPatch) -> None:
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
    for precision, device, tf32 in asked:
        with computing_in(precision, device):
            assert torch.backends.cudnn.allow_tf32 == tf32
    assert entered == [("cuda", torch.bfloat16, True), ("cuda", torch.float16, True), ("cuda", torch.bfloat16, False)]
    assert torch.backends.cudnn.allow_tf32


def test_overflow_is_an_error() -> None:
    assert as_fp32(torch.ones(3, dtype=torch.float16), "fp16").dtype == torch.float32
    with pytest.raises(ModelError, match=r"\bfp16\b"):
        as_fp32(torch.tensor([70_000.0]).half(), "fp16")
