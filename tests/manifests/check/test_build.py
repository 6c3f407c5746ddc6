import importlib.metadata
from pathlib import Path

import pytest

from audioscore.errors import AudioscoreError
from manifests.check import build
from manifests.check.build import CARRIER, build_overlay, copy_with_secrets, find_kubectl


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment where the package that carries kubectl was not installed."""

    def missing(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(build.importlib.metadata, "distribution", missing)


@pytest.fixture(autouse=True)
def _looked_for_anew() -> None:
    find_kubectl.cache_clear()


def program(folder: Path, text: str) -> Path:
    """A kubectl that runs a line of shell."""
    path = folder / "kubectl"
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.mark.usefixtures("no_package")
def test_without_the_package_the_path_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = program(tmp_path, "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_kubectl() == here


@pytest.mark.usefixtures("no_package")
def test_without_any_kubectl_the_sentence_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AudioscoreError) as refused:
        find_kubectl()
    assert str(refused.value) == (
        f"no kubectl: neither the package {CARRIER} nor a kubectl on the PATH. Run `make check-manifests`, which "
        "installs the package, or install kubectl 1.31 or later."
    )


def test_what_kubectl_builds_is_read(tmp_path: Path) -> None:
    kubectl = program(tmp_path, "printf 'kind: A\\n---\\nkind: B\\n---\\n'")
    assert build_overlay(kubectl, tmp_path) == [{"kind": "A"}, {"kind": "B"}]


def test_kubectls_own_words_are_passed_on(tmp_path: Path) -> None:
    kubectl = program(tmp_path, "echo 'accumulating resources: no such file' >&2; exit 1")
    with pytest.raises(AudioscoreError) as refused:
        build_overlay(kubectl, tmp_path)
    assert str(refused.value) == (f"overlay {tmp_path.name} does not build: accumulating resources: no such file")


def test_a_copy_has_passwords_of_its_own_and_none_of_this_machines(tmp_path: Path) -> None:
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
