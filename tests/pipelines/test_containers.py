"""Steps in containers, without an engine: what a step gets, and what is said where none answers."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from audioscore.errors import UsageError
from audioscore.platforms import ContainersSection
from pipelines import containers
from pipelines.causes import OUT_OF_MEMORY, WAS_KILLED
from pipelines.containers import LABEL, Containers, ImageCode, code_in, engine, run_container, runner


@pytest.fixture
def no_docker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(containers, "DOCKER_SOCKET", tmp_path / "docker.sock")
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("no_docker")
def test_no_engine_is_an_error() -> None:
    with pytest.raises(UsageError, match="DOCKER_HOST"), engine():
        pass


@pytest.mark.usefixtures("no_docker")
def test_an_engine_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///gone.sock")
    with pytest.raises(UsageError, match=r"unix:///gone\.sock"), engine():
        pass


@pytest.mark.usefixtures("no_docker")
def test_the_reason_why_podman_does_not_start_is_given(tmp_path: Path) -> None:
    podman = tmp_path / "podman"
    podman.write_text("#!/bin/sh\necho cannot clone: Operation not permitted >&2\nexit 125\n", encoding="utf-8")
    podman.chmod(0o755)
    with pytest.raises(UsageError, match=r"\(cannot clone: Operation not permitted\)"), engine():
        pass
    assert "DOCKER_HOST" not in os.environ


def test_a_step_gets_the_home_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, data = tmp_path / "home", tmp_path / "data"
    for folder in (home, home / "own", data):
        folder.mkdir()
    monkeypatch.setattr(containers, "_give", lambda *_: None)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    monkeypatch.setenv("AWS_CA_BUNDLE", "/here/alone.pem")
    monkeypatch.setenv("MY_PASSWORD", "secret")
    section = ContainersSection(memory="4g", gpus=True)
    settings = runner(Containers(section, home, (data, data, home / "own")), "owner").container_run_args
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
        self, code: int, fault: Exception | None = None, *, unstartable: Exception | None = None, starved: bool = False
    ) -> None:
        self.code, self.fault, self.unstartable, self.starved = code, fault, unstartable, starved
        self.removed = 0
        self.containers = SimpleNamespace(create=self.create)

    def create(self, **settings: Any) -> Any:
        if self.fault is not None:
            raise self.fault
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
    [(0, False, None), (1, False, None), (1, True, None), (137, True, OUT_OF_MEMORY), (137, False, WAS_KILLED)],
)
def test_a_container_from_start_to_end(
    code: int, starved: bool, ending: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    client = Engine(code, starved=starved)
    assert run_container(client, "image", ["true"], {}) == code
    out = capsys.readouterr().out
    assert out.startswith("first\nsecond\n")
    assert [one for one in (OUT_OF_MEMORY, WAS_KILLED) if out.endswith(f"\n{one}\n")] == ([ending] if ending else [])
    assert client.removed == 1


@pytest.mark.parametrize("when", ["made", "started"])
def test_a_container_that_cannot_start(when: str, capsys: pytest.CaptureFixture[str]) -> None:
    from docker.errors import APIError

    fault = APIError("500", explanation="no such\n  device")
    client = Engine(0, fault if when == "made" else None, unstartable=fault if when == "started" else None)
    with pytest.raises(UsageError, match=rf"image .*\b{when} \(no such device\)") as told:
        run_container(client, "image", ["true"], {})
    assert capsys.readouterr().out == f"audioscore.errors.UsageError: {told.value}\n"
    assert client.removed == (when == "started")


def test_a_container_that_an_interrupt_has_removed_is_no_fault() -> None:
    from docker.errors import NotFound

    class Swept(Engine):
        def remove(self, *, v: bool, force: bool) -> None:
            raise NotFound("no such container")

    assert run_container(Swept(0), "image", ["true"], {}) == 0


@pytest.mark.parametrize(
    ("labels", "revision"),
    [
        ({"org.opencontainers.image.revision": "12ab"}, "12ab"),
        ({"org.opencontainers.image.revision": "unknown"}, "unknown-image-0123456789ab"),
        (None, "unknown-image-0123456789ab"),
    ],
)
def test_the_code_in_an_image(labels: dict[str, str] | None, revision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import docker

    image = SimpleNamespace(id="sha256:0123456789abcdef", labels=labels)
    client = SimpleNamespace(images=SimpleNamespace(get=lambda name: image), close=lambda: None)
    monkeypatch.setattr(docker, "from_env", lambda: client)
    assert code_in("python:1") == ImageCode("python:1 0123456789ab", revision)
