import base64
import contextlib
import hashlib
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from audioscore.data.transfer.s3 import connect, remove_objects, upload_object
from audioscore.errors import AudioError, DataError

BODY = random.Random(4).randbytes(300_000)
BUCKET, KEY = "transfer-songs", "录音 1/'a' \U0001f3a4.safetensors"


@pytest.fixture
def client(bucket: Any) -> Iterator[Any]:
    found = connect()
    yield found
    found.close()


def test_a_file_and_bytes_arrive_with_their_checksum(bucket: Any, client: Any, tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_bytes(BODY)
    sent: list[int] = []
    assert upload_object(client, BUCKET, KEY, source, progress=sent.append) == len(BODY)
    assert upload_object(client, BUCKET, "note.json", b"{}") == 2
    assert upload_object(client, BUCKET, "empty", b"") == 0
    assert sent == [len(BODY)]
    held = {one.key: one.get()["Body"].read() for one in bucket.objects.all()}
    assert held == {KEY: BODY, "note.json": b"{}", "empty": b""}
    answer = client.head_object(Bucket=BUCKET, Key=KEY, ChecksumMode="ENABLED")
    assert bytes.fromhex(hashlib.sha256(BODY).hexdigest()) == base64.b64decode(answer["ChecksumSHA256"])


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ({"ETag": f'"{"0" * 32}"'}, False),
        ({"ETag": f'"{"0" * 32}"', "ServerSideEncryption": "aws:kms"}, True),  # no MD5 of the content
        ({"ETag": f'"{"0" * 32}-2"'}, True),
        ({}, True),
    ],
)
def test_the_stored_md5_is_compared(answer: dict[str, str], kept: bool) -> None:
    client: Any = SimpleNamespace(put_object=lambda **_: answer)
    if kept:
        assert upload_object(client, BUCKET, "a", BODY) == len(BODY)
        return
    with pytest.raises(DataError, match=rf"^s3://transfer-songs/a .*\b0{{32}}\b.*\b{hashlib.md5(BODY).hexdigest()}\b"):
        upload_object(client, BUCKET, "a", BODY)


def test_failed_writes_are_data_errors(client: Any, cut: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for act in (lambda: upload_object(client, "nowhere", "a", b"x"), lambda: remove_objects(client, "nowhere", ["a"])):
        with pytest.raises(DataError, match=rf"^s3://nowhere/a .*{cut.endpoint} .*NoSuchBucket") as caught:
            act()
        assert not isinstance(caught.value, AudioError)
    with pytest.raises(FileNotFoundError):
        upload_object(client, BUCKET, "a", tmp_path / "gone")
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{held.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        refused = pytest.raises(DataError, match=f"^s3://transfer-songs/a .*{address}")
        with contextlib.closing(connect()) as unreachable, refused:
            upload_object(unreachable, BUCKET, "a", b"x")


def test_objects_are_removed_once_or_twice(bucket: Any, client: Any) -> None:
    for key in ("a", KEY, "stays"):
        bucket.put_object(Key=key, Body=b"x")
    for _ in range(2):
        assert remove_objects(client, BUCKET, ["a", KEY]) == 0
    assert [one.key for one in bucket.objects.all()] == ["stays"]
    assert remove_objects(client, BUCKET, []) == 0


def test_kept_versions_are_counted() -> None:
    client: Any = SimpleNamespace(delete_object=lambda **asked: {"DeleteMarker": asked["Key"] != "b"})
    assert remove_objects(client, BUCKET, ["a", "b", "c"]) == 2
