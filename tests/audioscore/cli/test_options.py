import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from moto.server import ThreadedMotoServer

from audioscore.cli import options
from audioscore.cli.options import find_recordings
from audioscore.errors import AudioError, UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.wav", "a.M4A", "notes.txt", "in/c.mp3", "recording[1].wav"):
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


def test_sources_without_recordings_are_refused(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty: .*\.aac"):
        names(str(folder / "empty"))
    with pytest.raises(UsageError, match=r"\*\.ogg"):
        names(str(folder / "*.ogg"))


def feed(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))


def test_a_list_on_standard_input(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(monkeypatch, f"{folder}/b.wav\r\n\n歌 1.wav\n".encode() + b"\xff.wav")
    assert names("first.wav", "-") == ["first.wav", f"{folder}/b.wav", "歌 1.wav", os.fsdecode(b"\xff.wav")]
    feed(monkeypatch, b"\n")
    with pytest.raises(UsageError, match="recordings: none given"):
        names("-")
    feed(monkeypatch, b"a.wav\n-\n")
    with pytest.raises(UsageError, match="standard input"):
        names("-")


def test_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
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
    try:
        bucket = boto3.session.Session().resource("s3", endpoint_url=endpoint).create_bucket(Bucket="songs")
        for key in ("in/b.wav", "in/a.m4a", "in/notes.txt", "out.wav"):
            bucket.put_object(Key=key, Body=key.encode())
        found = find_recordings(["s3://songs/in", "s3://songs/out.wav", "s3://songs/gone.wav"])
        uris = ["in/a.m4a", "in/b.wav", "out.wav", "gone.wav"]
        assert [recording.file for recording in found] == [f"s3://songs/{key}" for key in uris]
        sources = [recording.source for recording in found]
        assert all(callable(source) for source in sources)
        assert [source() for source in sources[:3] if callable(source)] == [key.encode() for key in uris[:3]]
        assert callable(sources[3])
        with pytest.raises(AudioError, match=r"s3://songs/gone\.wav"):
            sources[3]()
        with pytest.raises(UsageError, match="s3://songs/none"):
            find_recordings(["s3://songs/none"])
    finally:
        options.client.cache_clear()
        server.stop()
