import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pipelines import container_log
from pipelines.container_log import follow_log


class Endless:
    """A stream that yields its chunks and then blocks until it is closed."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks, self.closed = chunks, threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        yield from self.chunks
        assert self.closed.wait(30)

    def close(self) -> None:
        self.closed.set()


class Container:
    """A container with a whole log and a stream of it."""

    def __init__(self, log: bytes, stream: Any, waits: Exception | None = None) -> None:
        self.log, self.stream, self.waits = log, stream, waits

    def logs(self, *, stream: bool = False, follow: bool = False) -> Any:
        return self.stream if stream and follow else self.log

    def wait(self) -> dict[str, int]:
        if self.waits is not None and threading.current_thread() is not threading.main_thread():
            raise self.waits
        return {"StatusCode": 0}


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_log, "GRACE", 0.05)


def test_a_stream_that_never_ends_ends_with_its_container(capsys: pytest.CaptureFixture[str]) -> None:
    stream = Endless(b"first\n")
    follow_log(Container(b"first\nsecond\n", stream))
    assert capsys.readouterr().out == "first\nsecond\n"
    assert stream.closed.is_set()


def test_a_stream_that_ends_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    follow_log(Container(b"first\nsecond\n", iter((b"first\n", b"second\n"))))
    assert capsys.readouterr().out == "first\nsecond\n"


def test_what_the_wait_beside_it_meets_hurts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    follow_log(Container(b"all", Endless(b"a"), OSError("gone")))
    assert capsys.readouterr().out == "all"
