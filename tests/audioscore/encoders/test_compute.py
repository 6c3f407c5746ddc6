import contextlib
import logging
import os
import subprocess
import sys
import warnings
from typing import Any, cast

import pytest
import torch

from audioscore.encoders.compute import (
    Precision,
    as_fp32,
    choose_device,
    precision_context,
    precision_on,
    quiet_imports,
    set_passive_waiting,
)  # fmt: skip
from audioscore.errors import ModelError, UsageError

COMMAND = """
import sys
from typer.testing import CliRunner
from audioscore.cli.app import app
from audioscore.encoders import compute

compute.set_passive_waiting = lambda: print("torch" in sys.modules)
print(CliRunner().invoke(app, sys.argv[1:]).stdout)
"""


@pytest.mark.parametrize("requested", ["fp32", "bf16", "fp16"])
def test_a_cpu_computes_in_fp32_and_logs_it(requested: Precision, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "audioscore")
    assert [precision_on(device, requested) for device in ("cuda", "cuda:1", "xpu")] == [requested] * 3
    assert caplog.messages == []
    assert precision_on("cpu", requested) == "fp32"
    assert ["fp32" in message and requested in message for message in caplog.messages] == [True] * (requested != "fp32")


@pytest.mark.parametrize("requested", ["float16", "", None])
def test_an_unknown_precision_is_refused(requested: object) -> None:
    with pytest.raises(UsageError, match=rf"{requested!r}.*fp32, bf16, fp16"):
        precision_on("cuda", cast(Any, requested))


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_matrices_are_multiplied_in_the_precision(precision: Precision, dtype: torch.dtype) -> None:
    for outer in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=outer), precision_context(precision, "cpu"):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert not torch.is_autocast_enabled("cpu")


def test_autocast_is_entered_for_the_device_type(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[tuple[str, torch.dtype, bool]] = []

    def enter(kind: str, *, dtype: torch.dtype, enabled: bool) -> contextlib.AbstractContextManager[None]:
        entered.append((kind, dtype, enabled))
        return contextlib.nullcontext()

    monkeypatch.setattr(torch, "autocast", enter)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    cases: list[tuple[Precision, str, bool]] = [
        ("bf16", "cuda:1", True),
        ("fp16", "cuda", True),
        ("fp32", "cuda", False),
    ]
    for precision, device, tf32 in cases:
        with precision_context(precision, device):
            assert torch.backends.cudnn.allow_tf32 == tf32
    assert entered == [("cuda", torch.bfloat16, True), ("cuda", torch.float16, True), ("cuda", torch.bfloat16, False)]
    assert torch.backends.cudnn.allow_tf32


def test_overflow_is_an_error() -> None:
    assert as_fp32(torch.ones(3, dtype=torch.float16), "fp16").dtype == torch.float32
    with pytest.raises(ModelError, match=r"\bfp16\b"):
        as_fp32(torch.tensor([70_000.0]).half(), "fp16")


@pytest.mark.parametrize(
    ("device", "gpus", "chosen", "refused"),
    [
        ("cpu", 2, "cpu", ""), ("auto", 0, "cpu", ""), ("auto", 2, "cuda:1", ""), ("cuda", 2, "cuda:1", ""),
        ("cuda:0", 2, "cuda:0", ""), ("tpu", 2, "", "auto, cpu, cuda.*cuda:N"),
        ("cuda:x", 2, "", "auto, cpu, cuda.*cuda:N"), ("cuda:", 2, "", "auto, cpu, cuda.*cuda:N"),
        ("cuda", 0, "", r"\b0 GPUs"), ("cuda:2", 2, "", r"\b2 GPUs"),
    ],
)  # fmt: skip
def test_choose_device(device: str, gpus: int, chosen: str, refused: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    if chosen:
        assert choose_device(device) == chosen
    else:
        with pytest.raises(UsageError, match=rf"^device {device}: .*{refused}"):
            choose_device(device)


def test_threads_wait_passively_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    set_passive_waiting()
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    set_passive_waiting()
    policy = os.environ.pop("OMP_WAIT_POLICY")  # set outside monkeypatch
    assert policy == "passive"


@pytest.mark.parametrize("command", [["score", "gone.wav", "--model", "nowhere"], ["serve", "--model", "nowhere"]])
def test_the_policy_is_set_before_torch_is_imported(command: list[str]) -> None:
    run = subprocess.run([sys.executable, "-c", COMMAND, *command], check=True, capture_output=True, text=True)
    assert run.stdout.split()[0] == "False"


def test_warnings_are_silent_inside_and_errors_again_after() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quiet_imports():
            warnings.warn("a warning of a dependency", DeprecationWarning, stacklevel=1)
        with pytest.raises(DeprecationWarning, match="ours"):
            warnings.warn("ours", DeprecationWarning, stacklevel=1)


def test_an_import_error_is_raised() -> None:
    with pytest.raises(ModuleNotFoundError), quiet_imports():
        raise ModuleNotFoundError("muq")
