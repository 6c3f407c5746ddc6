import os
import shutil
import subprocess
from pathlib import Path

import pytest

from audioscore.data.delivery.remove import Purged, purge
from audioscore.data.versions.history import recorded_file, recorded_files
from audioscore.data.versions.repository import commit, pull, push, record_of
from audioscore.errors import DataError


def git(folder: Path, *arguments: str) -> str:
    env = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    command = ["git", "-c", "user.name=n", "-c", "user.email=n@example.org", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, env=env).stdout.strip()


def version(data: Path, files: dict[str, bytes]) -> str:
    """Record these files, push them, and commit the record; returns the commit."""
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir()
    for name, content in files.items():
        (data / name).write_bytes(content)
    commit(data)
    push([data])
    git(data.parent, "add", "data.dvc")
    git(data.parent, "commit", "-q", "-m", "data")
    return git(data.parent, "rev-parse", "HEAD")


def remote(name: str, url: object) -> str:
    return f"['remote \"{name}\"']\n    url = {url}\n"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    root = tmp_path / "songs"
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc" / "config").write_text("[core]\n    remote = store\n" + remote("store", tmp_path / "store"))
    (root / ".dvc" / ".gitignore").write_text("/tmp\n/cache\n")
    git(root, "init", "-q")
    return root / "data"


def contents(folder: Path) -> set[bytes]:
    return {path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".dir"}


def test_a_purged_recording_is_gone_from_every_store_and_the_rest_stays(data: Path, tmp_path: Path) -> None:
    before = version(data, {"a.wav": b"a", "labels.csv": b"0"})
    first = version(data, {"a.wav": b"a", "withdrawn.wav": b"w", "labels.csv": b"1"})
    unwanted = recorded_files(data)["withdrawn.wav"]
    second = version(data, {"b.wav": b"b", "copy.wav": b"w", "labels.csv": b"2"})
    version(data, {"a.wav": b"a", "labels.csv": b"3"})
    assert purge([unwanted], data) == Purged({"cache": 1, "store": 1}, {}, [second, first], [], [])
    for place in (tmp_path / "store", data.parent / ".dvc" / "cache"):
        assert contents(place) == {b"a", b"b", b"0", b"1", b"2", b"3"}
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


def test_what_the_current_version_holds_is_not_purged(data: Path, tmp_path: Path) -> None:
    version(data, {"a.wav": b"a", "same.wav": b"a", "labels.csv": b"1"})
    held = recorded_files(data)["a.wav"]
    with pytest.raises(DataError, match=r"\b2 .*data\.dvc \(a\.wav, same\.wav\)"):
        purge([held, "0" * 32], data)
    assert b"a" in contents(tmp_path / "store") & contents(data.parent / ".dvc" / "cache")


def test_a_remote_out_of_reach_is_listed_and_the_others_are_purged(data: Path, tmp_path: Path) -> None:
    version(data, {"w.wav": b"w", "labels.csv": b"1"})
    unwanted = recorded_files(data)["w.wav"]
    version(data, {"labels.csv": b"1"})
    with (data.parent / ".dvc" / "config").open("a") as config:
        config.write(remote("cloud", "s3://songs") + "    version_aware = true\n")
    purged = purge([unwanted], data)
    assert purged.removed == {"cache": 1, "store": 1}
    assert purged.failed.keys() == {"cloud"}
    assert "cloud" in purged.failed["cloud"]
    with pytest.raises(DataError, match=r"\bmoon\b"):
        purge([unwanted], data, ["moon"])
    assert purge([unwanted], data, ["store"]).failed == {}
    (data / "w.wav").write_bytes(b"w")  # content that comes back is sent again
    commit(data)
    assert push([data], remote="store") == 1  # the version's list was never removed
    assert b"w" in contents(tmp_path / "store")


def test_a_remote_inside_the_repository_stays_in_gits_history(data: Path) -> None:
    (data.parent / ".dvc" / "config").write_text("[core]\n    remote = inside\n" + remote("inside", "store"))
    version(data, {"w.wav": b"w", "labels.csv": b"1"})
    unwanted = recorded_files(data)["w.wav"]
    git(data.parent, "add", ".dvc/store")
    git(data.parent, "commit", "-q", "-m", "store")
    version(data, {"labels.csv": b"1"})
    purged = purge([unwanted], data)
    assert (purged.removed, purged.in_git) == ({"cache": 1, "inside": 1}, ["inside"])


def test_versions_whose_list_is_nowhere_are_unknown(data: Path, tmp_path: Path) -> None:
    first = version(data, {"w.wav": b"w"})
    unwanted = recorded_files(data)["w.wav"]
    version(data, {"labels.csv": b"1"})
    for place in (tmp_path / "store", data.parent / ".dvc" / "cache"):
        for listing in place.rglob("*.dir"):
            if b"w.wav" in listing.read_bytes():
                listing.unlink()
    assert purge([unwanted], data) == Purged({"cache": 1, "store": 1}, {}, [], [first], [])


def test_without_git_there_are_no_versions_to_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    (tmp_path / "r" / ".dvc").mkdir(parents=True)
    (tmp_path / "r" / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
    data = tmp_path / "r" / "data"
    data.mkdir()
    (data / "w.wav").write_bytes(b"w")
    commit(data)
    unwanted = recorded_files(data)["w.wav"]
    (data / "w.wav").write_bytes(b"x")
    commit(data)
    assert purge([unwanted], data) == Purged({"cache": 1}, {}, [], [], [])
