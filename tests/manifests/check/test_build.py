import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

import pytest

from audioscore.errors import AudioscoreError
from manifests.check import build
from manifests.check.build import CARRIER, build_overlay, copy_with_secrets, find_kubectl


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package that contains kubectl is not installed."""

    def missing(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(build.importlib.metadata, "distribution", missing)


@pytest.fixture(autouse=True)
def _fresh_cache() -> Iterator[None]:
    find_kubectl.cache_clear()
    yield
    find_kubectl.cache_clear()


def program(folder: Path, text: str) -> Path:
    """A kubectl that runs a line of shell."""
    path = folder / "kubectl"
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.mark.usefixtures("no_package")
def test_without_the_package_kubectl_is_searched_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AudioscoreError, match=rf"{CARRIER}.*PATH.*`make check-manifests`.*1\.31"):
        find_kubectl()
    kubectl = program(tmp_path, "exit 0")
    assert find_kubectl() == kubectl


def test_the_output_of_kubectl_is_read(tmp_path: Path) -> None:
    kubectl = program(tmp_path, "printf 'kind: A\\n---\\nkind: B\\n---\\n'")
    assert build_overlay(kubectl, tmp_path) == [{"kind": "A"}, {"kind": "B"}]


def test_an_error_of_kubectl_is_passed_on(tmp_path: Path) -> None:
    kubectl = program(tmp_path, "echo 'accumulating resources: no such file' >&2; exit 1")
    with pytest.raises(AudioscoreError, match=f"{tmp_path.name} .*accumulating resources: no such file"):
        build_overlay(kubectl, tmp_path)


def test_a_copy_has_its_own_passwords(tmp_path: Path) -> None:
    secrets = tmp_path / "given" / "overlays" / "dev" / "secrets"
    secrets.mkdir(parents=True)
    (secrets / "postgres.env").write_text("password=ours\n", encoding="utf-8")
    (tmp_path / "given" / "tool.py").write_text("", encoding="utf-8")
    job = tmp_path / "given" / "components" / "mlflow" / "users.py"
    job.parent.mkdir(parents=True)
    job.write_text("pass\n", encoding="utf-8")
    copied = copy_with_secrets(tmp_path / "given", tmp_path / "copied")
    assert "ours" not in (copied / "overlays" / "dev" / "secrets" / "postgres.env").read_text(encoding="utf-8")
    assert (copied / "components" / "mlflow" / "users.py").read_text(encoding="utf-8") == "pass\n"
    assert not (copied / "tool.py").exists()
