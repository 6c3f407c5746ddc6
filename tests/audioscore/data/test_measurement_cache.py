import logging
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from audioscore.data.measurement_cache import Entry, ProbeMemory


@pytest.fixture(autouse=True)
def _warnings_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "audioscore.data.measurement_cache")


def remember(path: Path, *entries: Entry, version: str = "1") -> None:
    with ProbeMemory(path, version) as memory:
        memory.put(entries)


def recall(path: Path, key: str, version: str = "1") -> Entry | None:
    with ProbeMemory(path, version, reads_only=True) as memory:
        return memory.get(key)


def test_what_is_put_is_found_by_its_key_and_version(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a b?#%.db"
    remember(path, Entry("k", "{}", b"\x00\xff"), Entry("l", "{}", None))
    assert recall(path, "k") == Entry("k", "{}", b"\x00\xff")
    assert recall(path, "l") == Entry("l", "{}", None)
    assert recall(path, "m") is None
    assert recall(path, "k", version="2") is None
    remember(path, Entry("k", "other", None))
    assert recall(path, "k") == Entry("k", "{}", b"\x00\xff")


@pytest.mark.parametrize("kind", ["text", "damaged", "foreign", "folder"])
def test_an_unusable_file_is_logged_once_and_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    path = tmp_path / "a.db"
    if kind == "folder":
        path.mkdir()
    elif kind == "foreign":
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE probes (other TEXT)")
        connection.close()
    else:
        path.write_bytes(b"no database" * 500 if kind == "text" else b"SQLite format 3\x00" + bytes(5_000))
    content = path.is_file() and path.read_bytes()
    with ProbeMemory(path, "1") as memory:
        memory.put([Entry("k", "{}", None)])
        assert memory.get("k") is None
        assert memory.path is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(path) in caplog.messages[0]
    assert (path.is_file() and path.read_bytes()) == content


def test_without_a_file_nothing_is_kept_or_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ProbeMemory(None, "1") as memory:
        memory.put([Entry("k", "{}", None)])
        assert memory.get("k") is None
    assert recall(tmp_path / "none.db", "k") is None
    assert list(tmp_path.iterdir()) == []
    assert caplog.records == []


def test_a_locked_file_is_logged_once_and_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audioscore.data.measurement_cache.WAIT_SECONDS", 0.05)
    path = tmp_path / "a.db"
    remember(path, Entry("k", "{}", None))
    holder = sqlite3.connect(path, isolation_level=None)
    with ProbeMemory(path, "1") as memory:
        holder.execute("BEGIN EXCLUSIVE")
        memory.put([Entry("l", "{}", None)])
        memory.put([Entry("m", "{}", None)])
        assert memory.get("k") is None
    with ProbeMemory(path, "1") as memory:
        assert memory.get("k") is None
    holder.close()
    assert ["locked" in message for message in caplog.messages] == [True, True]  # one a memory
    assert recall(path, "k") == Entry("k", "{}", None)


WRITER = """
import sys
from pathlib import Path
from audioscore.data.measurement_cache import Entry, ProbeMemory
for number in range(40):
    with ProbeMemory(Path(sys.argv[1]), "1") as memory:
        memory.put([Entry(f"{sys.argv[2]}{number}", "{}", b"x" * 1_000), Entry(f"both{number}", "{}", None)])
"""


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, name], stderr=subprocess.PIPE) for name in "ab"]
    assert [writer.communicate()[1] for writer in writers] == [b"", b""]
    names = [f"{name}{number}" for name in ("a", "b", "both") for number in range(40)]
    assert [name for name in names if recall(path, name) is None] == []
