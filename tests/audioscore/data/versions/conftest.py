"""A git and DVC repository for tests, and functions to fill and run it."""

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_dvc_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path_factory.mktemp("dvc")))


@pytest.fixture(scope="session")
def run() -> Callable[..., str]:
    """A function that runs a command in a folder, without the user's git configuration, and returns its output."""

    def run(folder: Path, *command: str | Path) -> str:
        env = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "DVC_NO_ANALYTICS": "1"}
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, env=env).stdout.strip()

    return run


@pytest.fixture(scope="session")
def git(run: Callable[..., str]) -> Callable[..., str]:
    """A function that runs git in a folder and returns its output."""
    return lambda folder, *arguments: run(
        folder, "git", "-c", "user.name=n", "-c", "user.email=n@example.org", *arguments
    )


@pytest.fixture(scope="session")
def fill() -> Callable[..., Path]:
    """A function that writes files, given as text or bytes by name, into a folder and returns the folder."""

    def fill(folder: Path, files: Mapping[str, str | bytes]) -> Path:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return folder

    return fill


@pytest.fixture
def data(tmp_path: Path, git: Callable[..., str], fill: Callable[..., Path]) -> Path:
    """Path of `data`, not created yet, in a new git and DVC repository with a remote `store` beside the repository."""
    root = tmp_path / "songs"
    config = f"[core]\n    remote = store\n['remote \"store\"']\n    url = {tmp_path}/store\n"
    fill(root, {".dvc/config": config, ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n"})
    git(root, "init", "-q")
    return root / "data"
