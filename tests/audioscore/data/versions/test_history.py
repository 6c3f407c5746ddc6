import os
import shutil
import subprocess
from pathlib import Path

import pytest

from audioscore.data.versions.history import recorded_file, recorded_files, recorded_version
from audioscore.data.versions.repository import commit, push, record_of
from audioscore.data.versions.revision import file_md5s
from audioscore.errors import DataError

FIRST, SECOND = b"audio_file,score\na.wav,80\n", b"audio_file,score\na.wav,81\n"


def git(folder: Path, *arguments: str) -> None:
    env = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    command = ["git", "-c", "user.name=n", "-c", "user.email=n@example.org", *arguments]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=env)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two versions of a data folder, tags v1 and v2; at tag v0 there is none."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    root = tmp_path / "songs"
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc" / "config").write_text(f"[core]\n    remote = s\n['remote \"s\"']\n    url = {tmp_path}/store\n")
    git(root, "init", "-q")
    git(root, "add", ".dvc/config")
    git(root, "commit", "-q", "-m", "empty")
    git(root, "tag", "v0")
    data = root / "data"
    data.mkdir()
    for tag, table in (("v1", FIRST), ("v2", SECOND)):
        (data / "labels.csv").write_bytes(table)
        (data / "\u00e9.wav").write_bytes(tag.encode())
        commit(data)
        git(root, "add", "data.dvc")
        git(root, "commit", "-q", "-m", tag)
        git(root, "tag", tag)
    return data


def test_files_and_content_of_every_version(data: Path) -> None:
    assert recorded_files(data) == recorded_files(data, "HEAD") == recorded_files(data, "v2") == file_md5s(data)
    assert recorded_files(data, "v1").keys() == {"labels.csv", "\u00e9.wav"}
    assert recorded_files(data, "v1") != recorded_files(data)
    assert recorded_file(data, "labels.csv") == SECOND
    assert recorded_file(data, "labels.csv", "v1") == FIRST
    assert recorded_file(data, "\u00e9.wav", "HEAD~1") == b"v1"
    assert recorded_file(data, "gone.wav") is None
    (data / "labels.csv").write_bytes(b"later")  # the record counts, not the folder
    assert recorded_file(data, "labels.csv") == SECOND


def test_where_nothing_was_recorded_there_is_nothing(data: Path) -> None:
    assert (recorded_version(data, "v0"), recorded_files(data, "v0")) == (None, {})
    assert (recorded_file(data, "x", "v0"), recorded_version(data.parent / "other")) == (None, None)
    for revision in ("v9", "--all", "HEAD~9"):
        with pytest.raises(DataError, match=rf"songs: .*{revision}\b"):
            recorded_files(data, revision)


def test_what_the_cache_lacks_comes_from_the_remote(data: Path) -> None:
    push([data])
    md5s = recorded_files(data)
    shutil.rmtree(data.parent / ".dvc" / "cache")
    assert recorded_file(data, "labels.csv") == SECOND
    assert recorded_files(data, remote="s") == md5s
    with pytest.raises(DataError, match=r"data: \w{32}\.dir\b"):
        recorded_files(data, "v1")


def test_a_folder_without_git_has_no_revisions(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="git"):
        recorded_files(tmp_path / "data", "HEAD")
    assert not record_of(tmp_path / "data").exists()
