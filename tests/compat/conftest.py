"""The state of a user of commit 1bcff8a, copied anew for each test; make_fixture.py describes what it holds."""

import importlib.util
import json
import logging
import lzma
import os
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
ARCHIVE = HERE / "state.tar.xz"
PLACEHOLDER = b"/FIXTURE"
DATABASE = "home/mlflow.db"


@dataclass(frozen=True)
class Result:
    """What a command gave."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class State:
    """A copy of the state; `call` runs a command in it, in this process."""

    root: Path
    call: Callable[..., Result]

    @property
    def expected(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.root / "expected.json").read_text(encoding="utf-8"))
        return document

    @property
    def run_yaml(self) -> str:
        return str(self.root / "configs/run.yaml")

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.root / DATABASE}"

    def features(self) -> dict[str, tuple[int, int]]:
        """Every file of the feature store with its size and the time it was written."""
        store = self.root / "home/features"
        files = [path for path in store.rglob("*") if path.is_file()]
        return {str(path.relative_to(store)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.fixture(scope="session")
def interface() -> ModuleType:
    """interface.py, which tests cannot import by name."""
    spec = importlib.util.spec_from_file_location("compat_interface", HERE / "interface.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def packed() -> bytes:
    """The archive as a plain tar."""
    return lzma.decompress(ARCHIVE.read_bytes())


@pytest.fixture
def state(packed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    """A copy whose paths are those of the test's folder; it is the working folder, and its home is AUDIOSCORE_HOME."""
    root = tmp_path / "state"
    unpack(packed, root)
    monkeypatch.setenv("AUDIOSCORE_HOME", str(root / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(root)

    def call(*arguments: str) -> Result:
        from typer.testing import CliRunner

        from audioscore.cli.app import app

        result = CliRunner().invoke(app, list(arguments))
        code = getattr(result.exception, "exit_code", result.exit_code)
        return Result(code, result.stdout, f"{result.stderr}{result.exception!r}")

    logger = logging.getLogger("audioscore")
    level = logger.level
    yield State(root, call)
    logger.setLevel(level)  # `train` changes it


def unpack(packed: bytes, root: Path) -> None:
    """Write the state to `root`, with `root` in place of the placeholder in files and in the database."""
    import io

    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        for entry in tar:
            target = root / entry.name
            if entry.isdir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            content = tar.extractfile(entry)
            assert content is not None
            data = content.read()
            if entry.name != DATABASE and b"\0" not in data:
                data = data.replace(PLACEHOLDER, os.fsencode(root))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    rewrite_database(root / DATABASE, PLACEHOLDER.decode(), str(root))


def rewrite_database(file: Path, old: str, new: str) -> None:
    """Replace a path in every text of a SQLite file."""
    database = sqlite3.connect(file)
    tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in tables:
        for column in [row[1] for row in database.execute(f'PRAGMA table_info("{table}")')]:
            database.execute(
                f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) WHERE instr("{column}", ?)',
                (old, new, old),
            )
    database.commit()
    database.close()
