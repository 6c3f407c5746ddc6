"""The container engine: what is reported where none answers."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from audioscore.errors import UsageError
from pipelines import container_engine
from pipelines.container_engine import ImageCode, code_in, engine


@pytest.fixture
def no_docker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(container_engine, "DOCKER_SOCKET", tmp_path / "docker.sock")
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
def test_the_reason_for_a_failed_start_of_podman_is_reported(tmp_path: Path) -> None:
    podman = tmp_path / "podman"
    podman.write_text("#!/bin/sh\necho cannot clone: Operation not permitted >&2\nexit 125\n", encoding="utf-8")
    podman.chmod(0o755)
    with pytest.raises(UsageError, match=r"\(cannot clone: Operation not permitted\)"), engine():
        pass
    assert "DOCKER_HOST" not in os.environ


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
