"""The whole check on the manifests of this repository, and on copies with one problem."""

import shutil
from pathlib import Path

import pytest

from manifests.check.__main__ import MANIFESTS, check, main

WEB = "components/serving/serving.yaml"
DIGEST = f"sha256:{'0' * 64}"
OURS = "container serving"

# File, old text, new text, and a part of the problem.
PLANTED = {
    "unknown field": (WEB, "terminationGracePeriodSeconds", "terminationGracePeriod", "'terminationGracePeriod'"),
    "missing limit": (
        WEB, 'limits:\n              cpu: "4"\n', "limits:\n", f"{OURS}: no cpu "
    ),
    "root": (WEB, "runAsNonRoot: true", "runAsNonRoot: false", "runAsNonRoot"),
    "latest": (
        "overlays/prod/kustomization.yaml", f"digest: {DIGEST}", "newTag: latest",
        f"{OURS}: image registry.example.com/audioscore-python:latest is `latest`",
    ),
    "no tag": ("overlays/prod/kustomization.yaml", "    newTag: 17.6-bookworm\n", "", "postgres has no tag"),
    "selector": (
        "components/mlflow/mlflow.yaml", "selector:\n    app.kubernetes.io/name: mlflow",
        "selector:\n    app.kubernetes.io/name: mlflov", "app.kubernetes.io/name=mlflov ",
    ),
    "secret key": (
        "overlays/prod/secrets.yaml", "secretKey: flask-secret-key", "secretKey: flask-key",
        "Secret mlflow-server has no key flask-secret-key",
    ),
    "external secret": (
        "overlays/prod/secrets.yaml", "refreshInterval: 1h", "refreshEvery: 1h", "'refreshEvery'"
    ),
    "trainer": (
        "components/trainer-runtime/runtime.yaml", "numNodes: 1", "numNode: 1", "spec.mlPolicy.numNode: "
    ),
    "run settings": ("overlays/prod/run.yaml", "  gpus: 4", "  gpu: 4", "cluster.gpu: "),
}  # fmt: skip


def planted(folder: Path, name: str, old: str, new: str) -> Path:
    """A copy of the manifests with one text replaced, without the dev overlay."""
    copy = folder / "manifests"
    shutil.copytree(MANIFESTS, copy, ignore=shutil.ignore_patterns("*.env", "__pycache__"))
    shutil.rmtree(copy / "overlays" / "dev")
    before = (copy / name).read_text(encoding="utf-8")
    assert old in before
    (copy / name).write_text(before.replace(old, new), encoding="utf-8")
    return copy


@pytest.mark.services
def test_every_overlay_is_valid(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    dev, prod = capsys.readouterr().out.splitlines()
    assert dev.startswith("dev: ")
    assert prod.startswith("prod: ")


@pytest.mark.services
@pytest.mark.parametrize("problem", PLANTED)
def test_a_planted_problem_fails_the_check(problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, old, new, message = PLANTED[problem]
    assert main([str(planted(tmp_path, name, old, new))]) == 1
    assert message in "\n".join(line for line in capsys.readouterr().out.splitlines() if line.startswith("prod: "))


@pytest.mark.services
def test_a_password_in_production_fails_the_check(tmp_path: Path) -> None:
    generator = (
        "secretGenerator:\n  - name: more\n    namespace: audioscore\n    literals: [password=hunter2]\nimages:\n"
    )
    found = check(planted(tmp_path, "overlays/prod/kustomization.yaml", "\nimages:\n", f"\n{generator}"))
    (problem,) = found["prod"][1]
    assert problem.startswith("Secret audioscore/more: ")
    assert "password" in problem
    assert "hunter2" not in problem


def test_a_folder_without_overlays_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'empty'}: ")
    assert "overlays/*/kustomization.yaml" in error
