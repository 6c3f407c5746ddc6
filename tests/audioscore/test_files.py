import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioscore.files import (
    atomic_folder,
    atomic_path,
    check_can_be_file,
    check_writable,
    link_or_copy,
    path_to_uri,
    read_json,
    sha256_of,
    uri_to_path,
    write_json,
    write_text,
)  # fmt: skip


def fail_half_way(write: Any, target: Path, name: str) -> None:
    with write(target) as temporary:
        (temporary / name).write_text("new, but only ha")
        raise RuntimeError("half way")


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "labels.csv"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way(atomic_path, target, "")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_new_file_is_complete_and_keeps_its_suffix_and_mode(tmp_path: Path) -> None:
    target = tmp_path / "new" / "clip.m4a"
    with atomic_path(target) as temporary:
        assert temporary.suffix == ".m4a"
        assert temporary.parent == target.parent
        temporary.write_bytes(b"whole")
        assert not target.exists()
    plain = tmp_path / "plain"
    plain.touch()
    assert target.read_bytes() == b"whole"
    assert target.stat().st_mode == plain.stat().st_mode


def test_check_writable_makes_nothing_and_names_what_is_in_the_way(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "deep")
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as fault:
        check_writable(tmp_path / "file" / "deep")
    assert fault.value.filename == str(tmp_path / "file")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    with pytest.raises(FileNotFoundError) as missing:
        check_writable(tmp_path / "dangling")
    assert missing.value.filename == str(tmp_path / "dangling")


def test_a_read_only_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/tmp/.writable.k2x")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    with pytest.raises(PermissionError) as fault:
        check_writable(tmp_path / "new")
    assert fault.value.filename == str(tmp_path)


def test_a_folder_cannot_become_a_file(tmp_path: Path) -> None:
    check_can_be_file(tmp_path / "new" / "report.html")
    with pytest.raises(IsADirectoryError) as fault:
        check_can_be_file(tmp_path)
    assert fault.value.filename == str(tmp_path)


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "stale").write_text("old")
    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way(atomic_folder, target, "stale")
    assert (target / "stale").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
    with atomic_folder(target) as temporary:
        (temporary / "weights").write_text("new")
    assert [path.name for path in target.iterdir()] == ["weights"]
    assert list(tmp_path.iterdir()) == [target]


def test_json_round_trips_with_and_without_a_byte_order_mark(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"歌曲": [1, 2.5, None]})
    assert read_json(target) == {"歌曲": [1, 2.5, None]}
    assert "歌曲" in target.read_text(encoding="utf-8")
    target.write_bytes(b"\xef\xbb\xbf" + target.read_bytes())
    assert read_json(target) == {"歌曲": [1, 2.5, None]}


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"mae": 1.0})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(target, {"mae": float("nan")})
    assert json.loads(target.read_text()) == {"mae": 1.0}


def test_text_is_utf8_and_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "唱")
    assert (tmp_path / "a.txt").read_bytes() == "唱".encode()
    content = bytes(range(256)) * 400
    (tmp_path / "a").write_bytes(content)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_link_or_copy_creates_missing_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a.wav"
    source.write_bytes(b"audio")
    link_or_copy(source, tmp_path / "deep" / "b.wav")
    assert (tmp_path / "deep" / "b.wav").samefile(source)

    def refuse(*_: object) -> None:
        raise OSError("other device")

    monkeypatch.setattr(os, "link", refuse)
    link_or_copy(source, tmp_path / "c.wav")
    assert (tmp_path / "c.wav").read_bytes() == b"audio"
    assert not (tmp_path / "c.wav").samefile(source)


NAMES = st.text(
    st.one_of(
        st.sampled_from("%#?&;:@+='\"\\[] ~\n\t"), st.characters(exclude_characters="/\0", exclude_categories=["Cs"])
    ),
    min_size=1,
).filter(lambda name: name not in (".", ".."))


@settings(deadline=None)  # the first example imports MLflow
@given(st.lists(NAMES, min_size=1, max_size=4))
def test_a_path_survives_its_uri_and_other_libraries_read_the_same(names: list[str]) -> None:
    from mlflow.utils.file_utils import local_file_uri_to_path
    from sqlalchemy import make_url

    path = Path("/", *names)
    assert uri_to_path(path_to_uri(path)) == path
    assert uri_to_path(path_to_uri(path, "sqlite")) == path
    assert local_file_uri_to_path(path_to_uri(path)) == str(path)
    assert make_url(path_to_uri(path, "sqlite")).database == str(path)


@pytest.mark.parametrize("uri", ["http://host/a", "s3://bucket/a", "models:/a@b", "file://host/a", "file:a", "/a", ""])
def test_other_uris_have_no_path(uri: str) -> None:
    assert uri_to_path(uri) is None


def test_uris_that_other_programs_write_are_read() -> None:
    for uri in ("file:/a%20b", "file:///a%20b", "file://localhost/a%20b", "file:///a b?x#y", "sqlite:////a b"):
        assert uri_to_path(uri) == Path("/a b")


def test_names_that_are_not_utf_8_are_escaped_in_json_only(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", ["\udcb8.wav"])
    assert read_json(tmp_path / "a.json") == ["\udcb8.wav"]
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "labels.csv", "\udcb8.wav")
    assert not (tmp_path / "labels.csv").exists()
