"""Interrupts, with KFP's own local runner and steps that do not end by themselves."""

import contextlib
import gc
import io
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from kfp import dsl
from rich.console import Console

from components.base import component
from pipelines import local_run, scorer_pipeline
from pipelines.interrupt import Interrupted, interruptible
from pipelines.resume import OWNER


@component()
def linger(name: str, folder: str) -> None:
    """Report the start by a file, then sleep."""
    import pathlib
    import time

    (pathlib.Path(folder) / name).touch()
    time.sleep(600)


@dsl.pipeline(name="loop")
def in_a_loop(folder: str) -> None:
    """Three steps, one after another."""
    with dsl.ParallelFor(items=["1", "2", "3"], parallelism=1) as name:
        linger(name=name, folder=folder).set_caching_options(False)


@dsl.pipeline(name="line")
def in_a_line(folder: str) -> None:
    """Two steps, one after another."""
    first = linger(name="1", folder=folder).set_caching_options(False)
    linger(name="2", folder=folder).set_caching_options(False).after(first)


@contextlib.contextmanager
def interrupted_when(ready: Callable[[], bool], number: int = signal.SIGINT, times: int = 1) -> Iterator[None]:
    """Interrupt this process only, as `kill` does; the steps receive no signal."""
    original = signal.getsignal(number)

    def interrupt() -> None:
        while not ready():
            time.sleep(0.05)
        for _ in range(times):
            if signal.getsignal(number) is original:
                break  # the run has ended; another signal would end the tests
            os.kill(os.getpid(), number)
            time.sleep(0.02)  # all signals arrive before the steps have ended

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    yield
    thread.join()


def running(folder: Path) -> list[int]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(OWNER) == str(folder):
                found.append(process.pid)
    return found


# After an interrupt, Python waits 0.25 s for a process before KFP's handle of it is released.
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
@pytest.mark.parametrize(
    ("pipeline", "number", "times"),
    [
        (in_a_loop, signal.SIGINT, 1), (in_a_loop, signal.SIGTERM, 3),
        (in_a_line, signal.SIGINT, 3), (in_a_line, signal.SIGTERM, 1),
    ],
)  # fmt: skip
def test_after_an_interrupt_no_step_starts_or_runs(
    pipeline: Callable[..., object], number: int, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer_pipeline, "build", lambda platform: pipeline)
    started, run = tmp_path / "started", tmp_path / "run"
    started.mkdir()
    screen = io.StringIO()
    handler = signal.getsignal(number)
    with (
        interrupted_when(lambda: bool(list(started.iterdir())), number, times),
        pytest.raises(Interrupted) as interrupted,
    ):
        local_run.run_steps({"folder": str(started)}, run, Console(file=screen, width=120))
    assert interrupted.value.number == number
    assert [path.name for path in started.iterdir()] == ["1"]
    assert running(run) == []
    assert re.search(r"stopped +linger", screen.getvalue())
    assert "failed" not in screen.getvalue()
    assert signal.getsignal(number) is handler
    gc.collect()  # release the handle within this test


def test_a_step_that_cannot_be_ended_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[float] = []
    tried = threading.Event()

    def end() -> None:
        calls.append(time.monotonic())
        tried.set()
        raise ConnectionError("the engine is gone")

    inside = threading.Event()

    def run() -> None:
        with interruptible(end) as interruption:
            inside.set()
            try:
                time.sleep(600)
            finally:
                assert interruption.happened
                assert tried.wait(60)

    with caplog.at_level(logging.WARNING), interrupted_when(inside.is_set), pytest.raises(KeyboardInterrupt):
        run()
    assert len(calls) >= 2
    assert "(the engine is gone)" in caplog.text
    assert "--resume" in caplog.text


def test_without_a_signal_no_step_is_ended() -> None:
    with interruptible(lambda: pytest.fail("ended")) as interruption:
        pass
    assert not interruption.happened


def test_outside_the_main_thread_no_handler_is_installed() -> None:
    handlers: list[object] = []

    def run() -> None:
        with interruptible(lambda: None):
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]
