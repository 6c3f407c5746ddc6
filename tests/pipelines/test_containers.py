"""Steps in containers, without an engine: their settings, their logs and their ends."""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from audioscore.errors import UsageError
from audioscore.platforms import ContainersSection
from pipelines import containers
from pipelines.containers import LABEL, Containers, docker_runner, follow_log, run_container
from pipelines.steplog import KILLED, OUT_OF_MEMORY


def test_a_step_has_the_home_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, data = tmp_path / "home", tmp_path / "data"
    for folder in (home, home / "own", data):
        folder.mkdir()
    monkeypatch.setattr(containers, "_change_owner", lambda *_: None)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    monkeypatch.setenv("AWS_CA_BUNDLE", "/here/alone.pem")
    monkeypatch.setenv("MY_PASSWORD", "secret")
    section = ContainersSection(memory="4g", gpus=True)
    settings = docker_runner(Containers(section, home, (data, data, home / "own")), "owner").container_run_args
    mounts = [(mount["Source"], mount.get("ReadOnly", False)) for mount in settings["mounts"]]
    assert mounts == [(str(home), False), (str(data), True)]
    assert settings["environment"]["AWS_ENDPOINT_URL"] == "http://127.0.0.1:9000"
    assert settings["environment"]["AUDIOSCORE_HOME"] == str(home)
    assert not {"MY_PASSWORD", "AWS_CA_BUNDLE", "PATH"} & set(settings["environment"])
    assert settings["labels"] == {LABEL: "owner"}
    assert settings["cap_drop"] == ["ALL"]
    assert settings["security_opt"] == ["no-new-privileges", "label=disable"]
    assert settings["mem_limit"] == "4g"
    assert settings["device_requests"][0]["Capabilities"] == [["gpu"]]
    assert not settings["user"].startswith("0:")


class Engine:
    """A client with one container, which prints two lines in three pieces and ends with a code."""

    def __init__(
        self, code: int, error: Exception | None = None, *, unstartable: Exception | None = None, starved: bool = False
    ) -> None:
        self.code, self.error, self.unstartable, self.starved = code, error, unstartable, starved
        self.removed = 0
        self.containers = SimpleNamespace(create=self.create)

    def create(self, **settings: Any) -> Any:
        if self.error is not None:
            raise self.error
        return SimpleNamespace(
            start=self.start, logs=self.logs, wait=self.wait, remove=self.remove, reload=lambda: None,
            attrs={"State": {"OOMKilled": self.starved}},
        )  # fmt: skip

    def start(self) -> None:
        if self.unstartable is not None:
            raise self.unstartable

    def logs(self, *, stream: bool = False, follow: bool = False) -> Any:
        assert stream == follow
        chunks = (b"first\nsec", b"ond\n", b"\xff")
        return iter(chunks) if stream else b"".join(chunks)

    def wait(self) -> dict[str, int]:
        assert not self.removed
        return {"StatusCode": self.code}

    def remove(self, *, v: bool, force: bool) -> None:
        assert v
        assert force
        self.removed += 1


@pytest.mark.parametrize(
    ("code", "starved", "ending"),
    [(0, False, None), (1, False, None), (1, True, None), (137, True, OUT_OF_MEMORY), (137, False, KILLED)],
)
def test_a_container_from_start_to_end(
    code: int, starved: bool, ending: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    client = Engine(code, starved=starved)
    assert run_container(client, "image", ["true"], {}) == code
    out = capsys.readouterr().out
    assert out.startswith("first\nsecond\n")
    assert [one for one in (OUT_OF_MEMORY, KILLED) if out.endswith(f"\n{one}\n")] == ([ending] if ending else [])
    assert client.removed == 1


@pytest.mark.parametrize("when", ["created", "started"])
def test_a_container_that_cannot_start(when: str, capsys: pytest.CaptureFixture[str]) -> None:
    from docker.errors import APIError

    error = APIError("500", explanation="no such\n  device")
    client = Engine(0, error if when == "created" else None, unstartable=error if when == "started" else None)
    with pytest.raises(UsageError, match=rf"image: .*\b{when} \(no such device\)") as raised:
        run_container(client, "image", ["true"], {})
    assert capsys.readouterr().out == f"audioscore.errors.UsageError: {raised.value}\n"
    assert client.removed == (when == "started")


def test_a_container_that_an_interrupt_has_removed_is_no_error() -> None:
    from docker.errors import NotFound

    class Removed(Engine):
        def remove(self, *, v: bool, force: bool) -> None:
            raise NotFound("no such container")

    assert run_container(Removed(0), "image", ["true"], {}) == 0


class Endless:
    """A stream that yields its chunks and then blocks until it is closed."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks, self.closed = chunks, threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        yield from self.chunks
        assert self.closed.wait(30)

    def close(self) -> None:
        self.closed.set()


class LoggingContainer:
    """A container with a stored log and a stream of it."""

    def __init__(self, log: bytes, stream: Any, waits: Exception | None = None) -> None:
        self.log, self.stream, self.waits = log, stream, waits

    def logs(self, *, stream: bool = False, follow: bool = False) -> Any:
        return self.stream if stream and follow else self.log

    def wait(self) -> dict[str, int]:
        if self.waits is not None and threading.current_thread() is not threading.main_thread():
            raise self.waits
        return {"StatusCode": 0}


@pytest.fixture
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "LOG_GRACE", 0.05)


@pytest.mark.usefixtures("_short_grace")
def test_an_endless_stream_is_closed_after_its_container(capsys: pytest.CaptureFixture[str]) -> None:
    stream = Endless(b"first\n")
    follow_log(LoggingContainer(b"first\nsecond\n", stream))
    assert capsys.readouterr().out == "first\nsecond\n"
    assert stream.closed.is_set()


def test_a_log_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    follow_log(LoggingContainer(b"first\nsecond\n", iter((b"first\n", b"second\n"))))
    assert capsys.readouterr().out == "first\nsecond\n"


@pytest.mark.usefixtures("_short_grace")
def test_an_error_while_waiting_for_the_end_is_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    follow_log(LoggingContainer(b"all", Endless(b"a"), OSError("gone")))
    assert capsys.readouterr().out == "all"
