import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from audioscore.cli import options
from audioscore.cli.options import find_recordings
from audioscore.data.audio import encode
from audioscore.errors import AudioError, DataError, ServerUnreachable, UsageError
from audioscore.scoring.input import EncoderNeeds, InputLimits, prepare_recording

RATE = 24_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.wav", "a.M4A", "notes.txt", "in/c.mp3", "recording[1].wav", ".b.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def names(*arguments: str) -> list[str]:
    return [recording.file for recording in find_recordings(arguments)]


def test_files_folders_and_patterns_in_order(folder: Path) -> None:
    inside = [str(folder / name) for name in ("a.M4A", "b.wav", "in/c.mp3", "recording[1].wav")]
    assert names(str(folder)) == inside
    assert names(str(folder / "*.wav")) == [inside[1], inside[3]]
    assert names(str(folder / "**" / "*.mp3")) == [inside[2]]
    assert names(inside[1], str(folder / "gone.wav"), inside[3]) == [inside[1], str(folder / "gone.wav"), inside[3]]
    assert names(str(folder / "gone[1].wav")) == [str(folder / "gone[1].wav")]
    assert names(str(folder / "*")) == sorted([*inside, str(folder / "notes.txt")])  # folders, and files of any kind
    assert names(str(folder / "**")) == sorted([*inside, str(folder / "notes.txt")])


def test_what_is_left_out_of_a_folder_is_counted_and_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encode(np.zeros(RATE, dtype=np.float32), RATE, folder / "phone.3gp", codec="aac")
    (folder / "phone.3gp").rename(folder / "phone")
    assert str(folder / "phone") in names(str(folder))
    printed = capsys.readouterr()
    assert printed.out == ""
    (note,) = printed.err.splitlines()
    assert [part in note for part in (f"{folder}: 5 ", " 2 ", ".b.wav, notes.txt")] == [True] * 3
    names(str(folder / "in"))
    assert capsys.readouterr().err == ""


def test_sources_without_recordings_are_refused(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty: 0 "):
        names(str(folder / "empty"))
    (folder / "empty" / "a.txt").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"empty: 0 .*\ba\.txt"):
        names(str(folder / "empty"))
    with pytest.raises(UsageError, match=r"emp\*: .*\b1\b"):
        names(str(folder / "emp*"))
    assert str(folder / "in/c.mp3") in names(str(folder / "*"))  # though a folder has no recording
    with pytest.raises(UsageError, match=r"\*\.ogg"):
        names(str(folder / "*.ogg"))


def unreachable() -> NoReturn:
    raise ServerUnreachable("the server does not respond")


def feed(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))


def test_a_list_on_standard_input(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(monkeypatch, f"{folder}/b.wav\r\n\n歌 1.wav\n".encode())
    assert names("first.wav", "-") == ["first.wav", f"{folder}/b.wav", "歌 1.wav"]
    feed(monkeypatch, b"\n")
    with pytest.raises(UsageError, match="recordings: none given"):
        names("-")
    feed(monkeypatch, b"a.wav\n-\n")
    with pytest.raises(UsageError, match="standard input"):
        names("-")


ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "gb18030")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_list_in_any_encoding_of_tables(
    folder: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, end: str
) -> None:
    listed = [f"{folder}/b.wav", "我的歌/录音 1.m4a", "不在了.wav", "s3://songs/歌.mp3", "Ċ.wav"]  # U+010A
    listed = listed[: 4 if encoding == "gb18030" else 5]
    monkeypatch.setattr(options, "client", unreachable)
    feed(monkeypatch, end.join([*listed, ""]).encode(encoding))
    assert names("-") == listed
    feed(monkeypatch, f"{folder}/b.wav".encode(encoding))
    assert names("-") == listed[:1]


def test_names_that_are_not_text_are_used_if_the_files_exist(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = [
        os.fsencode(folder) + b"/" + name for name in (b"\xff\xfe.wav", "歌.wav".encode("gb18030"), "录.wav".encode())
    ]
    for path in raw[:2]:
        Path(os.fsdecode(path)).write_bytes(b"x")
    feed(monkeypatch, b"\n".join([*raw, b""]))
    assert names("-") == [os.fsdecode(path) for path in raw]


@pytest.mark.parametrize(
    ("encoding", "other"),
    [
        ("utf-8", b"gone\xff\xfe.wav"),
        ("gb18030", b"gone\xff\xfe.wav"),
        ("utf-8", b"\x1b$BNJ.wav"),
        ("gb18030", b"\x1b$BNJ.wav"),
        ("utf-8", "黄昏.wav".encode("gb18030")),
        ("ascii", "黃昏.wav".encode("big5")),
    ],
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_line_that_is_not_text_does_not_refuse_the_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, other: bytes, end: bytes
) -> None:
    exists = os.fsencode(folder) + b"/" + "黄昏".encode("gb18030") + b"\xff.wav"
    Path(os.fsdecode(exists)).write_bytes(b"x")
    listed = (
        ["张三的录音.wav", "我的歌/录音.m4a", "不在了.wav", "b.wav"] if encoding != "ascii" else ["a", "b", "c", "d"]
    )
    lines = [name.encode(encoding) for name in listed]
    feed(monkeypatch, end.join([*lines[:2], other, exists, b"", *lines[2:], b""]))
    assert names("-") == [*listed[:2], os.fsdecode(other), os.fsdecode(exists), *listed[2:]]
    feed(monkeypatch, end.join([exists, other]))
    assert names("-") == [os.fsdecode(exists), os.fsdecode(other)]


@pytest.mark.parametrize(
    "content",
    [
        b"gone\xff\xfe.wav\n",
        "張三的錄音.wav\n黃昏.wav\n".encode("big5"),
        "张三.wav\n录音.wav\n".encode("utf-16-le")[:-1],
        "张三.wav\n录音.wav\n".encode("utf-16")[:-1],
    ],
)
def test_a_list_without_readable_lines_is_refused(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    feed(monkeypatch, content)
    with pytest.raises(DataError, match="standard input") as refused:
        names("-")
    assert refused.value.exit_code == 2


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket `songs`."""
    import boto3

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_ENDPOINT_URL": endpoint,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    options.client.cache_clear()
    yield boto3.session.Session().resource("s3", endpoint_url=endpoint).create_bucket(Bucket="songs")
    options.client.cache_clear()
    server.stop()


def test_a_bucket(bucket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ("in/b.wav", "in/a.m4a", "in/c.3GP", "in/notes.txt", "in/.d.wav", "out.wav", "phone/take.xyz", "phone/e")
    for key in keys:
        bucket.put_object(Key=key, Body=key.encode())
    found = find_recordings(["s3://songs/in", "s3://songs/out.wav", "s3://songs/gone.wav"])
    uris = ["in/a.m4a", "in/b.wav", "in/c.3GP", "out.wav", "gone.wav"]
    (note,) = capsys.readouterr().err.splitlines()
    assert [part in note for part in ("s3://songs/in: 3 ", " 2 ", ".d.wav, notes.txt")] == [True] * 3
    assert [recording.file for recording in found] == [f"s3://songs/{key}" for key in uris]
    sources = [recording.source for recording in found]
    assert all(callable(source) for source in sources)
    assert [source() for source in sources[:4] if callable(source)] == [key.encode() for key in uris[:4]]
    assert callable(sources[4])
    with pytest.raises(AudioError, match=r"s3://songs/gone\.wav"):
        sources[4]()
    # An object that is named is used whatever its suffix, unless it marks a folder.
    bucket.put_object(Key="in", Body=b"")
    bucket.put_object(Key="phone/empty", Body=b"")
    for uri in ("phone/take.xyz", "phone/e", "phone/empty"):
        assert names(f"s3://songs/{uri}") == [f"s3://songs/{uri}"]
    assert names("s3://songs/in", "s3://songs/in/") == 2 * [f"s3://songs/{key}" for key in uris[:3]]
    with pytest.raises(UsageError, match=r"s3://songs/phone: 0 .* 3 .*\btake\.xyz"):
        find_recordings(["s3://songs/phone"])
    with pytest.raises(UsageError, match="s3://songs/none"):
        find_recordings(["s3://songs/none"])
    assert names("S3://songs/out.wav", "S3://songs/in") == [f"s3://songs/{key}" for key in ("out.wav", *uris[:3])]


def test_an_empty_object_is_named_in_its_error(bucket: Any) -> None:
    bucket.put_object(Key="empty.wav", Body=b"")
    (recording,) = find_recordings(["s3://songs/empty.wav"])
    with pytest.raises(AudioError, match=r"^s3://songs/empty\.wav: .*\b0 bytes"):
        prepare_recording(recording, EncoderNeeds(muq=True, voice=False, whole=False), InputLimits())


def test_a_prefix_with_the_name_of_a_recording_is_like_such_a_folder(bucket: Any, tmp_path: Path) -> None:
    (tmp_path / "g.wav").mkdir()
    (tmp_path / "g.wav" / "inner.wav").write_bytes(b"x")
    assert names(str(tmp_path / "g.wav")) == [str(tmp_path / "g.wav" / "inner.wav")]
    bucket.put_object(Key="g.wav/inner.wav", Body=b"x")
    for uri in ("s3://songs/g.wav", "s3://songs/g.wav/"):
        assert names(uri) == ["s3://songs/g.wav/inner.wav"]
    bucket.put_object(Key="g.wav", Body=b"")  # the marker of the folder
    assert names("s3://songs/g.wav") == ["s3://songs/g.wav/inner.wav"]
    bucket.put_object(Key="g.wav", Body=b"x")
    assert names("s3://songs/g.wav") == ["s3://songs/g.wav"]
    assert names("s3://songs/g.wav/") == ["s3://songs/g.wav/inner.wav"]


@pytest.mark.parametrize("pattern", ["dir/*.wav", "dir/*", "dir/a?.wav", "dir/[ab]*", "dir/**/a.wav"])
def test_patterns_of_objects_are_refused_with_their_prefix(bucket: Any, pattern: str) -> None:
    bucket.put_object(Key="dir/a1.wav", Body=b"x")
    with pytest.raises(UsageError, match=rf"^s3://songs/{re.escape(pattern)}: .*s3://songs/dir/(?![*?\[])"):
        names(f"s3://songs/{pattern}")
    bucket.put_object(Key=pattern, Body=b"x")
    assert names(f"s3://songs/{pattern}") == [f"s3://songs/{pattern}"]


def test_brackets_of_objects_are_no_pattern(bucket: Any) -> None:
    assert names("s3://songs/gone[1].wav") == ["s3://songs/gone[1].wav"]


def test_recordings_in_a_bucket_that_cannot_be_listed_fail_when_they_are_scored(bucket: Any) -> None:
    assert names("s3://other/a.wav", "b.wav") == ["s3://other/a.wav", "b.wav"]
    with pytest.raises(AudioError, match="s3://other/in"):
        names("s3://other/in")


def test_recordings_on_a_server_that_is_down_fail_when_they_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "client", unreachable)
    assert names("s3://songs/a.wav", "b.wav") == ["s3://songs/a.wav", "b.wav"]
    with pytest.raises(ServerUnreachable):
        names("s3://songs/a.wav", "s3://songs/in")
