import base64
import contextlib
import hashlib
import io
import json
import random
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from audioscore.data.transfer import s3
from audioscore.data.transfer.s3 import (
    connect,
    download_object,
    list_objects,
    remove_objects,
    s3_error,
    split_uri,
    upload_object,
)
from audioscore.errors import AudioError, DataError, ServerUnreachable

BODY = random.Random(2).randbytes(600_000)
BUCKET, KEY = "transfer-songs", "录音 1/'a' \U0001f3a4.m4a"


@pytest.fixture
def client(bucket: Any) -> Iterator[Any]:
    found = connect()
    yield found
    found.close()


@pytest.fixture
def requested_ranges(client: Any) -> list[str | None]:
    """The Range of each request for an object, in order."""
    found: list[str | None] = []
    note = lambda params, **_: found.append(params["headers"].get("Range"))  # noqa: E731
    client.meta.events.register("before-call.s3.GetObject", note)
    return found


def get(client: Any, folder: Path, key: str = KEY, **options: Any) -> bytes:
    """Download the file, check that the folder holds nothing else, and return its content."""
    download_object(client, BUCKET, key, folder / "file.m4a", partial=folder / "file.m4a.part", **options)
    assert [path.name for path in folder.iterdir()] == ["file.m4a"]
    return (folder / "file.m4a").read_bytes()


def refused(client: Any, folder: Path, details: str, bucket: str = BUCKET, key: str = KEY) -> None:
    with pytest.raises(AudioError, match=rf"^s3://{bucket}/{key}\W.*{details}") as caught:
        download_object(client, bucket, key, folder / "file.m4a", partial=folder / "file.m4a.part")
    assert not (folder / "file.m4a").exists()
    assert "\n" not in str(caught.value)


def test_an_object_is_downloaded_completely(bucket: Any, client: Any, tmp_path: Path) -> None:
    bucket.put_object(Key=KEY, Body=BODY)
    pieces: list[int] = []
    assert get(client, tmp_path, progress=pieces.append) == BODY
    assert sum(pieces) == len(BODY)
    for key, body, more in (
        ("empty", b"", {}),
        ("sha", BODY, {"ChecksumAlgorithm": "SHA256"}),
        ("kms", BODY, {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "k"}),
    ):
        bucket.put_object(Key=key, Body=body, **more)
        assert get(client, tmp_path, key) == body


def test_cut_connections_resume(
    bucket: Any, client: Any, cut: Any, requested_ranges: list[str | None], tmp_path: Path
) -> None:
    bucket.put_object(Key=KEY, Body=BODY)
    cut.cuts = [200_000, 300_000]
    pieces: list[int] = []
    assert get(client, tmp_path, progress=pieces.append) == BODY
    assert sum(pieces) == len(BODY)  # no byte twice
    assert len(requested_ranges) == 3
    assert requested_ranges[0] is None
    starts = [int(str(requested)[6:-1]) for requested in requested_ranges[1:]]
    assert 200_000 - (1 << 17) < starts[0] <= 200_000  # the last piece was incomplete, and headers count as well
    assert starts[0] < starts[1] <= 500_000


def test_two_versions_are_never_mixed(bucket: Any, client: Any, cut: Any, tmp_path: Path) -> None:
    bucket.put_object(Key=KEY, Body=BODY)
    cut.cuts = [200_000]
    changed: list[float] = []

    def change(seconds: float) -> None:
        changed.append(seconds)
        bucket.put_object(Key=KEY, Body=BODY[::-1])

    assert get(client, tmp_path, sleep=change) == BODY[::-1]
    assert len(changed) == 2  # after the cut, and after If-Match failed


def test_a_killed_download_resumes(
    bucket: Any, client: Any, requested_ranges: list[str | None], tmp_path: Path
) -> None:
    bucket.put_object(Key=KEY, Body=BODY)

    def kill(size: int) -> None:
        if (tmp_path / "file.m4a.part").stat().st_size > 250_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(client, tmp_path, progress=kill)
    arrived = (tmp_path / "file.m4a.part").stat().st_size
    assert get(client, tmp_path) == BODY
    assert requested_ranges == [None, f"bytes={arrived}-"]


@pytest.mark.parametrize(
    ("answer", "checksum"),
    [
        ({"ETag": f'"{"0" * 32}"'}, "0" * 32),
        ({"ETag": f'"{"0" * 32}-2"'}, None),
        ({"ETag": f'"{"0" * 32}"', "ServerSideEncryption": "aws:kms:dsse"}, None),
        ({"ETag": f'"{"0" * 32}"', "SSECustomerAlgorithm": "AES256"}, None),
        ({"ETag": '"x"', "ChecksumSHA256": "AAAA"}, "000000"),
        ({"ETag": '"x"', "ChecksumSHA256": "AAAA-2"}, None),
    ],
)
def test_checksums_are_read_from_responses(answer: dict[str, str], checksum: str | None, tmp_path: Path) -> None:
    client: Any = SimpleNamespace(get_object=lambda **_: {"ContentLength": 1, "Body": io.BytesIO(b"x"), **answer})
    if checksum is None:
        assert get(client, tmp_path, "a") == b"x"
    else:
        refused(client, tmp_path, rf"\b{checksum}\b", key="a")


def test_missing_objects_and_buckets_are_named(client: Any, cut: Any, tmp_path: Path) -> None:
    refused(client, tmp_path, rf"{cut.endpoint} \(NoSuchKey\b", key="gone")
    refused(client, tmp_path, r"\(NoSuchBucket\b", "nowhere", "a")
    with pytest.raises(DataError, match=r"^s3://nowhere/p: .*NoSuchBucket"):
        list_objects(client, "s3://nowhere/p")


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "ExpiredToken", "SlowDown"])
def test_an_error_code_is_part_of_the_message(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    error = s3_error(ClientError({"Error": {"Code": code, "Message": "why"}}, "GetObject"), "s3://b/k")
    assert re.match(rf"s3://b/k: .*\bAWS \({code}: ", str(error))
    assert type(error) is AudioError


def test_missing_credentials_and_profiles(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with contextlib.closing(connect()) as client:
        refused(client, tmp_path, r"credentials.*AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    with pytest.raises(DataError, match=r"no-such-profile.*AWS_PROFILE"):
        connect()


def test_an_unreachable_endpoint(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{held.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setattr(s3, "PATIENCE", 0.0)
        with pytest.raises(ServerUnreachable, match=rf"^{address}: .*\(Connection refused\).*AWS_ENDPOINT_URL"):
            connect()
        monkeypatch.setattr(s3, "await_server", lambda *_, **options: None)  # it stops after the first request
        unreachable = pytest.raises(ServerUnreachable, match=f"^s3://transfer-songs/a: .*{address}")
        with contextlib.closing(connect()) as client, unreachable:
            download_object(client, BUCKET, "a", tmp_path / "a", partial=tmp_path / "a.part")


def test_a_prefix_is_listed_as_a_folder(bucket: Any, client: Any) -> None:
    for key in ("p/录音/a.m4a", "p/b", "p2/c", "p/full/", "p/full/d", "p/both", "p/both/e"):
        bucket.put_object(Key=key, Body=b"123")
    for marker in ("p/", "p/录音", "p/录音/", "p", "p2/empty"):
        bucket.put_object(Key=marker, Body=b"")
    found = list_objects(client, f"s3://{BUCKET}/p/")
    names = ["b", "both", "both/e", "full/", "full/d", "录音/a.m4a"]
    assert [(item.name, item.size) for item in found] == [(name, 3) for name in names]
    assert len(list_objects(client, f"s3://{BUCKET}")) == len(names) + 2


def test_an_endpoint_that_is_a_web_server(
    bucket: Any, web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
    monkeypatch.setenv("AWS_ENDPOINT_URL", web.url)
    web.serve(BUCKET, b"<html></html>", kind="text/html", etag=None)
    web.serve(f"{BUCKET}/a", b"<html></html>", kind="text/html", etag=None)
    with contextlib.closing(connect()) as client:
        refused(client, tmp_path, rf"{web.url}.*AWS_ENDPOINT_URL", key="a")
        with pytest.raises(AudioError, match=rf"^s3://{BUCKET}/p: .*{web.url}.*AWS_ENDPOINT_URL"):
            list_objects(client, f"s3://{BUCKET}/p")


def test_a_server_that_ignores_if_match(bucket: Any, client: Any, tmp_path: Path) -> None:
    (tmp_path / "file.m4a.part").write_bytes(BODY[:1000])
    note = {
        "uri": f"s3://{BUCKET}/{KEY}",
        "version": f'"{hashlib.md5(BODY).hexdigest()}"',
        "size": len(BODY),
        "checksums": {},
    }
    (tmp_path / "file.m4a.part.json").write_text(json.dumps(note))
    bucket.put_object(Key=KEY, Body=BODY[::-1])  # of the same size
    client.meta.events.register("before-parameter-build.s3.GetObject", lambda params, **_: params.pop("IfMatch", None))
    assert get(client, tmp_path) == BODY[::-1]


@pytest.mark.parametrize(("bucket_name", "key"), [(BUCKET, ""), ("a b", "c"), ("Songs_", "c")])
def test_invalid_names_are_refused(client: Any, cut: Any, tmp_path: Path, bucket_name: str, key: str) -> None:
    refused(client, tmp_path, cut.endpoint, bucket_name, key)


def test_a_uri_without_a_bucket() -> None:
    with pytest.raises(DataError, match="s3:///a: "):
        split_uri("s3:///a")


def test_a_file_and_bytes_are_uploaded_with_their_checksum(bucket: Any, client: Any, tmp_path: Path) -> None:
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
    ],
)
def test_the_stored_md5_is_compared(answer: dict[str, str], kept: bool) -> None:
    client: Any = SimpleNamespace(put_object=lambda **_: answer)
    if kept:
        assert upload_object(client, BUCKET, "a", BODY) == len(BODY)
        return
    with pytest.raises(DataError, match=rf"^s3://transfer-songs/a: .*\b0{{32}}\b.*\b{hashlib.md5(BODY).hexdigest()}\b"):
        upload_object(client, BUCKET, "a", BODY)


def test_an_upload_without_a_confirmation_is_refused() -> None:
    client: Any = SimpleNamespace(put_object=lambda **_: {})  # what a web server's page with status 200 becomes
    with pytest.raises(DataError, match=r"^s3://transfer-songs/a: .*AWS_ENDPOINT_URL"):
        upload_object(client, BUCKET, "a", BODY)


def test_failed_writes_are_data_errors(client: Any, cut: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for act in (lambda: upload_object(client, "nowhere", "a", b"x"), lambda: remove_objects(client, "nowhere", ["a"])):
        with pytest.raises(DataError, match=rf"^s3://nowhere/a: .*{cut.endpoint} .*NoSuchBucket") as caught:
            act()
        assert not isinstance(caught.value, AudioError)
    with pytest.raises(FileNotFoundError):
        upload_object(client, BUCKET, "a", tmp_path / "gone")
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{held.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setattr(s3, "await_server", lambda *_, **options: None)
        refused = pytest.raises(DataError, match=f"^s3://transfer-songs/a: .*{address}")
        with contextlib.closing(connect()) as unreachable, refused:
            upload_object(unreachable, BUCKET, "a", b"x")


def test_objects_can_be_removed_twice(bucket: Any, client: Any) -> None:
    for key in ("a", KEY, "stays"):
        bucket.put_object(Key=key, Body=b"x")
    for _ in range(2):
        assert remove_objects(client, BUCKET, ["a", KEY]) == 0
    assert [one.key for one in bucket.objects.all()] == ["stays"]
    assert remove_objects(client, BUCKET, []) == 0


def test_kept_versions_are_counted() -> None:
    client: Any = SimpleNamespace(delete_object=lambda **request: {"DeleteMarker": request["Key"] != "b"})
    assert remove_objects(client, BUCKET, ["a", "b", "c"]) == 2
