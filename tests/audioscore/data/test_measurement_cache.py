import logging
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from audioscore.data.measurement_cache import CachedMeasurement, MeasurementCache


@pytest.fixture(autouse=True)
def _warnings_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "audioscore.data.measurement_cache")


def store(path: Path, *entries: CachedMeasurement, version: str = "1") -> None:
    with MeasurementCache(path, version) as cache:
        cache.put(entries)


def load(path: Path, key: str, version: str = "1") -> CachedMeasurement | None:
    with MeasurementCache(path, version, reads_only=True) as cache:
        return cache.get(key)


def test_entries_are_found_by_key_and_version(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a b?#%.db"
    store(path, CachedMeasurement("k", "{}", b"\x00\xff"), CachedMeasurement("l", "{}", None))
    assert load(path, "k") == CachedMeasurement("k", "{}", b"\x00\xff")
    assert load(path, "l") == CachedMeasurement("l", "{}", None)
    assert load(path, "m") is None
    assert load(path, "k", version="2") is None
    store(path, CachedMeasurement("k", "other", None))
    assert load(path, "k") == CachedMeasurement("k", "{}", b"\x00\xff")


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
    with MeasurementCache(path, "1") as cache:
        cache.put([CachedMeasurement("k", "{}", None)])
        assert cache.get("k") is None
        assert cache.path is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(path) in caplog.messages[0]
    assert (path.is_file() and path.read_bytes()) == content


def test_without_a_file_no_entry_is_stored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with MeasurementCache(None, "1") as cache:
        cache.put([CachedMeasurement("k", "{}", None)])
        assert cache.get("k") is None
    assert load(tmp_path / "none.db", "k") is None
    assert list(tmp_path.iterdir()) == []
    assert caplog.records == []


def test_a_locked_file_is_logged_once_and_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audioscore.data.measurement_cache.WAIT_SECONDS", 0.05)
    path = tmp_path / "a.db"
    store(path, CachedMeasurement("k", "{}", None))
    holder = sqlite3.connect(path, isolation_level=None)
    with MeasurementCache(path, "1") as cache:
        holder.execute("BEGIN EXCLUSIVE")
        cache.put([CachedMeasurement("l", "{}", None)])
        cache.put([CachedMeasurement("m", "{}", None)])
        assert cache.get("k") is None
    with MeasurementCache(path, "1") as cache:
        assert cache.get("k") is None
    holder.close()
    assert ["locked" in message for message in caplog.messages] == [True, True]  # one per cache
    assert load(path, "k") == CachedMeasurement("k", "{}", None)


WRITER = """
import sys
from pathlib import Path
from audioscore.data.measurement_cache import CachedMeasurement as Entry, MeasurementCache
for number in range(40):
    with MeasurementCache(Path(sys.argv[1]), "1") as cache:
        cache.put([Entry(f"{sys.argv[2]}{number}", "{}", b"x" * 1_000), Entry(f"both{number}", "{}", None)])
"""


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, name], stderr=subprocess.PIPE) for name in "ab"]
    assert [writer.communicate()[1] for writer in writers] == [b"", b""]
    names = [f"{name}{number}" for name in ("a", "b", "both") for number in range(40)]
    assert [name for name in names if load(path, name) is None] == []
