import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from audioscore.data.versions.revision import (
    code_revision,
    data_files,
    data_revision,
    digest_of,
    file_md5s,
    folder_digest,
    image_revision,
)
from audioscore.errors import DataError


def test_the_digest_is_the_one_dvc_records(tmp_path: Path, fill: Any) -> None:
    data = tmp_path / "data"
    tracked = {
        "labels.csv": "audio_file,score\n",
        "audio/录音 é.m4a": "a",
        "audio/deep/b.m4a": "b",
        "audio-2/c.m4a": "c",
        "Z.txt": "",
        "line ends.txt": "x\r\ny\r\n",
        ".DS_Store": "hidden files count",
        ".hidden/d": "d",
        ".gitignore": "labels.csv",
    }
    skipped = {".git/config": "x", "audio/.git": "x", ".hg/x": "x", "project/.dvc/config": "", "project/x": "x"}
    fill(data, tracked | skipped)
    (data / "empty").mkdir()
    (data / "link.csv").symlink_to("labels.csv")
    (data / "linked").symlink_to("audio")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # DVC's own, about its pygtrie
        with Repo.init(str(tmp_path), no_scm=True) as repo:
            repo.add([str(data)])  # what `dvc add data` calls
    recorded = yaml.safe_load((tmp_path / "data.dvc").read_text())["outs"][0]
    assert set(data_files(data)) == {*tracked, "link.csv"}
    assert len(data_files(data)) == recorded["nfiles"]
    assert folder_digest(data) == recorded["md5"] == data_revision(data)
    assert digest_of(dict(reversed(file_md5s(data).items()))) == recorded["md5"]


def test_the_digest_of_one_file_and_of_an_empty_folder(tmp_path: Path, fill: Any) -> None:
    assert folder_digest(tmp_path) == hashlib.md5(b"[]").hexdigest() + ".dir"
    fill(tmp_path, {"a": "abc"})
    listed = [{"md5": "900150983cd24fb0d6963f7d28e17f72", "relpath": "a"}]  # the example of RFC 1321
    assert folder_digest(tmp_path) == hashlib.md5(json.dumps(listed).encode()).hexdigest() + ".dir"


def test_the_digest_depends_on_names_and_contents_and_not_on_dates(tmp_path: Path, fill: Any) -> None:
    fill(tmp_path, {"a": "1", "b": "2"})
    first = folder_digest(tmp_path)
    os.utime(tmp_path / "a", (0, 0))
    assert folder_digest(tmp_path) == first
    (tmp_path / "a").rename(tmp_path / "c")
    renamed = folder_digest(tmp_path)
    fill(tmp_path, {"c": "3"})
    assert len({first, renamed, folder_digest(tmp_path)}) == 3


def test_folders_without_a_digest_are_refused(tmp_path: Path, fill: Any) -> None:
    with pytest.raises(DataError, match="gone: "):
        folder_digest(tmp_path / "gone")
    fill(tmp_path / "a", {"sub/.dvcignore": "*.tmp"})
    with pytest.raises(DataError, match=r"sub/\.dvcignore: "):
        folder_digest(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "broken.m4a").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"broken\.m4a: .*\(No such file"):
        folder_digest(tmp_path / "b")


def test_a_record_without_a_digest_is_refused(tmp_path: Path, fill: Any) -> None:
    data = tmp_path / "data"
    assert data_revision(data) is None
    fill(tmp_path, {"data.dvc": "outs:\n- md5: 5fd2.dir\n  path: data\n"})
    assert data_revision(data) == "5fd2.dir"
    for text in ("", "outs: []", "outs:\n- path: data", "outs:\n- {path: other, md5: x}", "a: [", "outs: 3"):
        fill(tmp_path, {"data.dvc": text})
        with pytest.raises(DataError, match=r"data\.dvc .*MD5"):
            data_revision(data)


def test_the_revision_of_an_image_is_the_one_that_its_build_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for missing in ("", "unknown"):
        monkeypatch.setenv("AUDIOSCORE_CODE_REVISION", missing)
        assert image_revision() is None
        assert code_revision(tmp_path) == "unknown"
    monkeypatch.setenv("AUDIOSCORE_CODE_REVISION", "12ab")
    assert image_revision() == code_revision(tmp_path) == "12ab"


def test_the_code_revision_is_the_commit_and_marks_uncommitted_changes(
    tmp_path: Path, git: Any, fill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AUDIOSCORE_CODE_REVISION", raising=False)
    assert code_revision(tmp_path) == "unknown"
    assert code_revision(tmp_path / "gone") == "unknown"
    git(tmp_path, "init", "-q")
    fill(tmp_path, {"a.py": "1\n", "sub/b.py": "1\n", ".gitignore": "ignored\n"})
    assert code_revision(tmp_path) == "unknown"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    clean = code_revision(tmp_path / "sub")
    assert len(clean) == 40
    seen = {clean}
    for name, text in (("a.py", "2\n"), ("a.py", "3\n"), ("new.py", "1\n"), ("new.py", "2\n")):
        fill(tmp_path, {name: text, "ignored": text})
        dirty = code_revision(tmp_path / "sub")
        assert dirty.startswith(f"{clean}-dirty-")
        assert len(dirty.rpartition("-")[2]) == 8
        assert dirty == code_revision(tmp_path)
        seen.add(dirty)
    assert len(seen) == 5
    fill(tmp_path, {"a.py": "1\n"})
    (tmp_path / "new.py").unlink()
    assert code_revision(tmp_path) == clean
    monkeypatch.setenv("PATH", str(tmp_path))  # without git
    assert code_revision(tmp_path) == "unknown"
