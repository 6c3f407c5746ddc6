import errno
import os
import socket
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from audioscore.data.transfer.locate import Location, locate
from audioscore.errors import AudioError

AWKWARD = (
    "录音/歌 手.m4a", "a'b\"c.m4a", "\U0001f3a4.m4a", "line\nend.m4a", "-rf.m4a", "a\\b.m4a", "50%.m4a", "a?b#c.m4a"
)  # fmt: skip


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def refused(audio_file: str, root: str | Path, details: str = ".", **options: bool) -> Any:
    """Check that locating raises AudioError; return its cause."""
    with pytest.raises(AudioError, match=details) as caught:
        locate(audio_file, root, **options)
    assert str(caught.value).startswith((audio_file, repr(audio_file)))
    return caught.value.__cause__


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_names(tmp_path: Path, name: str) -> None:
    path = put(tmp_path / name)
    assert locate(name, tmp_path) == Location("file", path=path)
    assert locate(f"./{name}", str(tmp_path)).path == path
    assert locate(str(path), tmp_path.parent, absolute_allowed=True).path == path
    assert locate(f"/old/disk/{name}", tmp_path).path == path


@pytest.mark.parametrize(("on_disk", "written"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_both_normal_forms_of_a_name(tmp_path: Path, on_disk: str, written: str) -> None:
    name = "\u00e9t\u00e9/\u304c.m4a"
    path = put(tmp_path / unicodedata.normalize(on_disk, name))
    requested = unicodedata.normalize(written, name)
    assert locate(requested, tmp_path).path == path
    assert locate(f"/old/{requested}", tmp_path).path == path
    mixed = f"{unicodedata.normalize('NFC', name).split('/')[0]}/{unicodedata.normalize('NFD', name).split('/')[1]}"
    assert locate(mixed, tmp_path).path == path
    absolute = str(tmp_path / unicodedata.normalize(on_disk, requested))
    assert locate(absolute, "/", absolute_allowed=True).path == path


def test_names_on_disk_in_gbk(tmp_path: Path) -> None:
    path = put(tmp_path / os.fsdecode("录音/歌.m4a".encode("gbk")))
    assert locate("录音/歌.m4a", tmp_path).path == path
    assert os.path.samefile(locate("/old/录音/歌.m4a", tmp_path).path or "", path)
    mixed = put(path.parent / "曲.m4a")
    assert locate("录音/曲.m4a", tmp_path).path == mixed
    assert locate(str(tmp_path / "录音/曲.m4a"), "/", absolute_allowed=True).path == mixed
    text = put(tmp_path / "录音/歌.m4a")  # a name in UTF-8 comes first
    assert locate("录音/歌.m4a", tmp_path).path == text


def test_half_an_emoji_is_no_file_name(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"ud83c\.m4a"):
        locate("\ud83c.m4a", tmp_path)


@pytest.mark.parametrize(
    "written", ["audio\\a.m4a", "C:\\songs\\audio\\a.m4a", "c:/songs/audio/a.m4a", "\\\\host\\share\\audio\\a.m4a"]
)
def test_names_from_windows(tmp_path: Path, written: str) -> None:
    path = put(tmp_path / "audio" / "a.m4a")
    assert locate(written, tmp_path).path == path


def test_the_longest_trailing_part_of_an_absolute_path(tmp_path: Path) -> None:
    short, long = put(tmp_path / "a.m4a"), put(tmp_path / "ktv" / "a.m4a")
    assert locate("/disk/songs/ktv/a.m4a", tmp_path).path == long
    assert locate("/disk/songs/acapella/a.m4a", tmp_path).path == short
    assert locate(str(long), tmp_path).path == long
    assert locate("/disk/../ktv/./a.m4a", tmp_path).path == long
    refused("/disk/b.m4a", tmp_path, rf"{tmp_path}\..*--audio")


def test_absolute_paths_are_used_unchanged_where_allowed(tmp_path: Path) -> None:
    inside, outside = put(tmp_path / "root" / "a.m4a"), put(tmp_path / "other" / "a.m4a")
    assert locate(str(outside), tmp_path / "root", absolute_allowed=True).path == outside
    assert locate(str(outside), tmp_path / "root").path == inside  # with an explicit root, never outside it
    refused("/nowhere/a.m4a", tmp_path / "root", f"{tmp_path / 'root'}", absolute_allowed=True)


@pytest.mark.parametrize("name", ["../secret.m4a", "audio/../../secret.m4a", "..\\secret.m4a", ".."])
def test_the_root_is_not_left_by_dots(tmp_path: Path, name: str) -> None:
    put(tmp_path / "secret.m4a")
    (tmp_path / "root" / "audio").mkdir(parents=True)
    for allowed in (False, True):
        refused(name, tmp_path / "root", rf"{tmp_path / 'root'} .*`\.\.`", absolute_allowed=allowed)


def test_dots_and_links_within_the_root(tmp_path: Path) -> None:
    path = put(tmp_path / "root" / "a.m4a")
    (tmp_path / "root" / "audio").mkdir()
    (tmp_path / "root" / "link.m4a").symlink_to("a.m4a")
    (tmp_path / "link").symlink_to("root")
    assert locate("audio/../a.m4a", tmp_path / "root").path == path
    assert locate("link.m4a", tmp_path / "root").path == tmp_path / "root" / "link.m4a"
    assert locate("a.m4a", tmp_path / "link").path == tmp_path / "link" / "a.m4a"
    assert locate(str(path), tmp_path / "link").path == path


def test_links_out_of_the_root(tmp_path: Path) -> None:
    secret = put(tmp_path / "secret.m4a")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.m4a").symlink_to(secret)
    (tmp_path / "root" / "up").symlink_to(tmp_path)
    for name in ("a.m4a", "up/secret.m4a", "/old/a.m4a"):
        refused(name, tmp_path / "root", rf"{tmp_path / 'root'}\b.* {secret}\.")


def test_only_regular_files_are_located(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.m4a").mkdir()
    os.mkfifo(tmp_path / "pipe.m4a")
    (tmp_path / "around.m4a").symlink_to("around.m4a")
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    (tmp_path / "dead.m4a").symlink_to("gone.m4a")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as held:
        held.bind("s.m4a")  # the complete path may be too long for a socket
    for name, details in (
        ("folder.m4a", ": .*folder"), ("pipe.m4a", ": .*pipe"), ("/dev/null", "device"), ("s.m4a", "socket"),
        ("dead.m4a", f": .*{tmp_path / 'gone.m4a'}"), ("gone.m4a", f": .*{tmp_path}"), ("folder.m4a/x/y.m4a", "."),
        ("a" * 300, "File name too long"), ("a\0b", "audio_file"), (" ", "audio_file"),
    ):  # fmt: skip
        refused(name, "/" if name == "/dev/null" else tmp_path, details)
    for name in ("around.m4a", "one/a.m4a"):
        assert refused(name, tmp_path).errno == errno.ELOOP


def test_unreadable_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a.m4a")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a superuser can read every file
    refused("a.m4a", tmp_path, "(?i)permission")

    def deny(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "lstat", deny)
    assert refused("closed/a.m4a", tmp_path, "Permission denied").errno == errno.EACCES


@pytest.mark.parametrize(
    ("link", "kind"), [("http://h/a b.m4a", "http"), ("https://h/歌.m4a?x=1", "http"), ("s3://b/录音 1/a.m4a", "s3")]
)
def test_links_are_returned_unchanged(tmp_path: Path, link: str, kind: str) -> None:
    assert locate(link, tmp_path) == locate(link, "s3://other") == Location(kind, uri=link)
    scheme = link.split(":")[0]
    assert locate(link.replace(scheme, scheme.upper(), 1), tmp_path).uri == link


@pytest.mark.parametrize("link", ["file:///etc/passwd", "ftp://h/a.m4a", "gs://b/a.m4a"])
def test_other_schemes_are_refused(tmp_path: Path, link: str) -> None:
    refused(link, tmp_path, f"{link.split(':')[0]}:// .*http.*s3")


def test_a_bucket_as_root(tmp_path: Path) -> None:
    root = "s3://songs/2024 年/"
    assert locate("audio\\a.m4a", root) == Location("s3", uri="s3://songs/2024 年/audio/a.m4a")
    refused("../a.m4a", root, r"s3://songs/2024 年 .*`\.\.`")
    refused("/disk/a.m4a", root, "absolute.*s3://songs/2024 年")
    names = {"audio/a.m4a", "b.m4a", unicodedata.normalize("NFD", "\u00e9.m4a")}
    assert locate("/disk/audio/a.m4a", root, names=names).uri == "s3://songs/2024 年/audio/a.m4a"
    assert locate("C:\\disk\\b.m4a", root, names=names).uri == "s3://songs/2024 年/b.m4a"
    assert locate("\u00e9.m4a", root, names=names).uri == "s3://songs/2024 年/e\u0301.m4a"
    with pytest.raises(AudioError, match=r"^disk/b\.m4a: .*s3://songs/2024 年\."):
        locate("disk/b.m4a", root, names=names)
