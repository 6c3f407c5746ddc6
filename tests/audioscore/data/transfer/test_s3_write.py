import base64
import hashlib
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from audioscore.data.transfer.s3 import connect
from audioscore.data.transfer.s3_write import remove_objects, upload_object
from audioscore.errors import AudioError, DataError

BODY = random.Random(4).randbytes(300_000)
KEY = "录音 1/'a' \U0001f3a4.safetensors"


@pytest.fixture
def client(bucket: Any) -> Iterator[Any]:
    found = connect()
    yield found
    found.close()


def test_a_file_and_bytes_arrive_with_their_checksum(bucket: Any, client: Any, tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_bytes(BODY)
    sent: list[int] = []
    assert upload_object(client, "songs", KEY, source, progress=sent.append) == len(BODY)
    assert upload_object(client, "songs", "note.json", b"{}") == 2
    assert upload_object(client, "songs", "empty", b"") == 0
    assert sent == [len(BODY)]
    held = {one.key: one.get()["Body"].read() for one in bucket.objects.all()}
    assert held == {KEY: BODY, "note.json": b"{}", "empty": b""}
    told = client.head_object(Bucket="songs", Key=KEY, ChecksumMode="ENABLED")
    assert bytes.fromhex(hashlib.sha256(BODY).hexdigest()) == base64.b64decode(told["ChecksumSHA256"])


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ({"ETag": f'"{"0" * 32}"'}, False),
        ({"ETag": f'"{"0" * 32}"', "ServerSideEncryption": "aws:kms"}, True),  # no MD5 of the content
        ({"ETag": f'"{"0" * 32}-2"'}, True),
        ({}, True),
    ],
)
def test_other_bytes_than_were_sent_are_told(answer: dict[str, str], kept: bool) -> None:
    client: Any = SimpleNamespace(put_object=lambda **_: answer)
    if kept:
        assert upload_object(client, "songs", "a", BODY) == len(BODY)
        return
    with pytest.raises(DataError, match=r"^s3://songs/a was stored with MD5 0{32}, not [0-9a-f]{32}\. Delete it, and"):
        upload_object(client, "songs", "a", BODY)


def test_what_cannot_be_written_is_one_sentence_and_no_fault_of_a_recording(
    client: Any, cut: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for act, done in ((lambda: upload_object(client, "nowhere", "a", b"x"), "stored"),
                      (lambda: remove_objects(client, "nowhere", ["a"]), "deleted")):  # fmt: skip
        expected = rf"^s3://nowhere/a cannot be {done} at {cut.endpoint} \(NoSuchBucket\)\. Check the bucket, AWS_"
        with pytest.raises(DataError, match=expected) as caught:
            act()
        assert not isinstance(caught.value, AudioError)
    with pytest.raises(FileNotFoundError):
        upload_object(client, "songs", "a", tmp_path / "gone")
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{held.getsockname()[1]}")
        lonely = connect()
        with pytest.raises(DataError, match=r"s3://songs/a cannot be stored at http://127.*Could not connect"):
            upload_object(lonely, "songs", "a", b"x")
        lonely.close()


def test_objects_are_removed_once_or_twice(bucket: Any, client: Any) -> None:
    for key in ("a", KEY, "stays"):
        bucket.put_object(Key=key, Body=b"x")
    for _ in range(2):
        assert remove_objects(client, "songs", ["a", KEY]) == 0
    assert [one.key for one in bucket.objects.all()] == ["stays"]
    assert remove_objects(client, "songs", []) == 0


def test_a_bucket_that_keeps_versions_says_so() -> None:
    client: Any = SimpleNamespace(delete_object=lambda **asked: {"DeleteMarker": asked["Key"] != "b"})
    assert remove_objects(client, "songs", ["a", "b", "c"]) == 2
