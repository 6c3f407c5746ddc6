import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audioscore.data.delivery.remove import PurgeResult, purge
from audioscore.data.versions.repository import commit, pull, push, record_of, recorded_file, recorded_files
from audioscore.errors import DataError


@pytest.fixture
def record(data: Path, git: Any, fill: Any) -> Callable[[dict[str, bytes]], str]:
    """A function that records these files as a version, pushes it, commits its record, and returns the commit."""

    def record(files: dict[str, bytes]) -> str:
        shutil.rmtree(data, ignore_errors=True)
        fill(data, files)
        commit(data)
        push([data])
        git(data.parent, "add", "data.dvc")
        git(data.parent, "commit", "-q", "-m", "data")
        return str(git(data.parent, "rev-parse", "HEAD"))

    return record


def remote(name: str, url: object) -> str:
    return f"['remote \"{name}\"']\n    url = {url}\n"


def contents(folder: Path) -> set[bytes]:
    return {path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".dir"}


def test_a_purged_recording_is_removed_from_every_store_and_the_rest_stays(
    data: Path, record: Any, git: Any, tmp_path: Path
) -> None:
    before = record({"a.wav": b"a", "labels.csv": b"0"})
    first = record({"a.wav": b"a", "withdrawn.wav": b"w", "labels.csv": b"1"})
    unwanted = recorded_files(data)["withdrawn.wav"]
    second = record({"b.wav": b"b", "copy.wav": b"w", "labels.csv": b"2"})
    record({"a.wav": b"a", "labels.csv": b"3"})
    assert purge([unwanted], data) == PurgeResult({"cache": 1, "store": 1}, {}, [second, first], [], [])
    for store in (tmp_path / "store", data.parent / ".dvc" / "cache"):
        assert contents(store) == {b"a", b"b", b"0", b"1", b"2", b"3"}
    assert recorded_file(data, "a.wav", first) == b"a"
    with pytest.raises(DataError, match=unwanted):
        recorded_file(data, "withdrawn.wav", first)
    git(data.parent, "checkout", "-q", first)
    with pytest.raises(DataError, match=r"^data\.dvc: "):
        pull([record_of(data)])
    git(data.parent, "checkout", "-q", before)
    pull([record_of(data)])
    assert contents(data) == {b"a", b"0"}
    assert purge([unwanted], data).removed == {"cache": 0, "store": 0}


def test_what_the_current_version_holds_is_not_purged(data: Path, record: Any, tmp_path: Path) -> None:
    record({"a.wav": b"a", "same.wav": b"a", "labels.csv": b"1"})
    held = recorded_files(data)["a.wav"]
    with pytest.raises(DataError, match=r"data\.dvc: .*\b2 .*\(a\.wav, same\.wav\)"):
        purge([held, "0" * 32], data)
    assert b"a" in contents(tmp_path / "store") & contents(data.parent / ".dvc" / "cache")


def test_an_unreachable_remote_is_listed_and_the_others_are_purged(data: Path, record: Any, tmp_path: Path) -> None:
    record({"w.wav": b"w", "labels.csv": b"1"})
    unwanted = recorded_files(data)["w.wav"]
    record({"labels.csv": b"1"})
    with (data.parent / ".dvc" / "config").open("a") as config:
        config.write(remote("cloud", "s3://songs") + "    version_aware = true\n")
    purged = purge([unwanted], data)
    assert purged.removed == {"cache": 1, "store": 1}
    assert purged.failed.keys() == {"cloud"}
    assert "cloud" in purged.failed["cloud"]
    with pytest.raises(DataError, match=r"\bmoon\b"):
        purge([unwanted], data, ["moon"])
    assert purge([unwanted], data, ["store"]).failed == {}
    (data / "w.wav").write_bytes(b"w")  # restored content is sent again
    commit(data)
    assert push([data], remote="store") == 1  # the version's list was never removed
    assert b"w" in contents(tmp_path / "store")


def test_a_remote_inside_the_repository_stays_in_gits_history(data: Path, record: Any, git: Any) -> None:
    (data.parent / ".dvc" / "config").write_text("[core]\n    remote = inside\n" + remote("inside", "store"))
    record({"w.wav": b"w", "labels.csv": b"1"})
    unwanted = recorded_files(data)["w.wav"]
    git(data.parent, "add", ".dvc/store")
    git(data.parent, "commit", "-q", "-m", "store")
    record({"labels.csv": b"1"})
    purged = purge([unwanted], data)
    assert (purged.removed, purged.in_git) == ({"cache": 1, "inside": 1}, ["inside"])


def test_versions_without_a_list_of_files_are_unknown(data: Path, record: Any, tmp_path: Path) -> None:
    first = record({"w.wav": b"w"})
    unwanted = recorded_files(data)["w.wav"]
    record({"labels.csv": b"1"})
    for store in (tmp_path / "store", data.parent / ".dvc" / "cache"):
        for listing in store.rglob("*.dir"):
            if b"w.wav" in listing.read_bytes():
                listing.unlink()
    assert purge([unwanted], data) == PurgeResult({"cache": 1, "store": 1}, {}, [], [first], [])


def test_without_git_no_versions_are_listed(tmp_path: Path) -> None:
    (tmp_path / "r" / ".dvc").mkdir(parents=True)
    (tmp_path / "r" / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
    data = tmp_path / "r" / "data"
    data.mkdir()
    (data / "w.wav").write_bytes(b"w")
    commit(data)
    unwanted = recorded_files(data)["w.wav"]
    (data / "w.wav").write_bytes(b"x")
    commit(data)
    assert purge([unwanted], data) == PurgeResult({"cache": 1}, {}, [], [], [])
