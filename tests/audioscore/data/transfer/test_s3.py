import random
import socket
from pathlib import Path
from typing import Any

import pytest

from audioscore.data.transfer import s3
from audioscore.data.transfer.retry import Unreachable
from audioscore.data.transfer.s3 import connect, download_object, list_objects, split_uri
from audioscore.errors import AudioError, DataError

BODY = random.Random(2).randbytes(600_000)
KEY = "录音 1/'a' \U0001f3a4.m4a"


def get(folder: Path, key: str = KEY, **options: Any) -> bytes:
    """What arrives; afterwards nothing but the file is there."""
    client = connect()
    download_object(client, "songs", key, folder / "file.m4a", partial=folder / "file.m4a.part", **options)
    client.close()
    assert [path.name for path in folder.iterdir()] == ["file.m4a"]
    return (folder / "file.m4a").read_bytes()


def refused(folder: Path, message: str, bucket: str = "songs", key: str = KEY) -> None:
    client = connect()
    with pytest.raises(AudioError, match=message) as caught:
        download_object(client, bucket, key, folder / "file.m4a", partial=folder / "file.m4a.part")
    client.close()
    assert not (folder / "file.m4a").exists()
    assert "\n" not in str(caught.value)


@pytest.fixture
def asked(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The Range of each request for an object, in order."""
    found: list[str | None] = []
    plain = s3._ask

    def noted(client: Any, bucket: str, key: str, offset: int, known: Any) -> Any:
        found.append(f"bytes={offset}-" if offset else None)
        return plain(client, bucket, key, offset, known)

    monkeypatch.setattr(s3, "_ask", noted)
    return found


def test_an_object_is_brought_whole(bucket: Any, tmp_path: Path) -> None:
    bucket.put_object(Key=KEY, Body=BODY)
    pieces: list[int] = []
    assert get(tmp_path, progress=pieces.append) == BODY
    assert sum(pieces) == len(BODY)
    bucket.put_object(Key="empty", Body=b"")
    assert get(tmp_path, "empty") == b""


def test_cut_connections_go_on_where_they_were(bucket: Any, cut: Any, asked: list[str | None], tmp_path: Path) -> None:
    bucket.put_object(Key=KEY, Body=BODY)
    cut.cuts = [200_000, 300_000]
    pieces: list[int] = []
    assert get(tmp_path, progress=pieces.append) == BODY
    assert sum(pieces) == len(BODY)  # not a byte twice
    assert len(asked) == 3
    assert asked[0] is None
    starts = [int(str(wanted)[6:-1]) for wanted in asked[1:]]
    assert 200_000 - (1 << 17) < starts[0] <= 200_000  # the last piece was not whole, and headers count as well
    assert starts[0] < starts[1] <= 500_000


def test_an_object_that_changes_half_way_is_never_mixed(bucket: Any, cut: Any, tmp_path: Path) -> None:
    bucket.put_object(Key=KEY, Body=BODY)
    cut.cuts = [200_000]
    changed: list[float] = []

    def change(seconds: float) -> None:
        changed.append(seconds)
        bucket.put_object(Key=KEY, Body=BODY[::-1])

    assert get(tmp_path, sleep=change) == BODY[::-1]
    assert len(changed) == 2  # after the cut, and after If-Match failed


def test_a_killed_download_goes_on(bucket: Any, asked: list[str | None], tmp_path: Path) -> None:
    bucket.put_object(Key=KEY, Body=BODY)

    def kill(size: int) -> None:
        if (tmp_path / "file.m4a.part").stat().st_size > 250_000:
            raise KeyboardInterrupt

    client = connect()
    with pytest.raises(KeyboardInterrupt):
        download_object(client, "songs", KEY, tmp_path / "file.m4a", partial=tmp_path / "file.m4a.part", progress=kill)
    client.close()
    arrived = (tmp_path / "file.m4a.part").stat().st_size
    assert get(tmp_path) == BODY
    assert asked == [None, f"bytes={arrived}-"]


def test_sha256_and_sealed_objects(bucket: Any, tmp_path: Path) -> None:
    bucket.put_object(Key="sha", Body=BODY, ChecksumAlgorithm="SHA256")
    assert get(tmp_path, "sha") == BODY
    bucket.put_object(Key="kms", Body=BODY, ServerSideEncryption="aws:kms", SSEKMSKeyId="k")
    assert get(tmp_path, "kms") == BODY


@pytest.mark.parametrize(
    ("answer", "checksums"),
    [
        ({"ETag": f'"{"0" * 32}"'}, {"md5": "0" * 32}),
        ({"ETag": f'"{"0" * 32}-2"'}, {}),
        ({"ETag": f'"{"0" * 32}"', "ServerSideEncryption": "aws:kms:dsse"}, {}),
        ({"ETag": f'"{"0" * 32}"', "SSECustomerAlgorithm": "AES256"}, {}),
        ({"ETag": '"x"', "ChecksumSHA256": "AAAA"}, {"sha256": "000000"}),
        ({"ETag": '"x"', "ChecksumSHA256": "AAAA-2"}, {}),
    ],
)
def test_what_of_an_answer_is_a_checksum(answer: dict[str, str], checksums: dict[str, str]) -> None:
    assert s3._describe({"ContentLength": 1, **answer}, "s3://songs/a").checksums == checksums


def test_what_is_not_there_is_named(bucket: Any, cut: Any, tmp_path: Path) -> None:
    refused(tmp_path, rf"^s3://songs/gone cannot be fetched from {cut.endpoint} \(NoSuchKey: .*\)\. Check", key="gone")
    refused(tmp_path, r"^s3://nowhere/a .*\(NoSuchBucket: there is no such bucket\)", "nowhere", "a")
    client = connect()
    with pytest.raises(DataError, match=r"^s3://nowhere/p .*NoSuchBucket"):
        list_objects(client, "s3://nowhere/p")
    client.close()


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "ExpiredToken", "SlowDown"])
def test_refusals_are_told(code: str) -> None:
    from botocore.exceptions import ClientError

    fault = s3.explain(ClientError({"Error": {"Code": code, "Message": "why"}}, "GetObject"), "s3://b/k")
    assert str(fault).startswith(f"s3://b/k cannot be fetched from AWS ({code}: ")
    assert type(fault) is AudioError


def test_without_credentials(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    refused(tmp_path, r"\(Unable to locate credentials\)\. Set AWS_ACCESS_KEY_ID")


def test_a_profile_that_is_none(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(DataError, match=r"cannot be used \(.*nobody.*\)\. Check AWS_PROFILE"):
        connect()


def test_an_endpoint_where_nobody_listens(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{held.getsockname()[1]}")
        client = connect()
        with pytest.raises(Unreachable, match=r"s3://songs/a cannot be fetched from http://127.*Could not connect"):
            download_object(client, "songs", "a", tmp_path / "a", partial=tmp_path / "a.part")
        client.close()


def test_a_prefix_is_listed_as_a_folder(bucket: Any) -> None:
    for key in ("p/录音/a.m4a", "p/b", "p/", "p2/c"):
        bucket.put_object(Key=key, Body=b"123")
    client = connect()
    assert [(item.name, item.size) for item in list_objects(client, "s3://songs/p/")] == [("b", 3), ("录音/a.m4a", 3)]
    assert len(list_objects(client, "s3://songs")) == 3
    client.close()


@pytest.mark.parametrize(("bucket_name", "key"), [("songs", ""), ("a b", "c"), ("Songs_", "c")])
def test_names_that_no_object_has(bucket: Any, tmp_path: Path, bucket_name: str, key: str) -> None:
    refused(tmp_path, rf"^s3://{bucket_name}/{key} cannot be fetched from ", bucket_name, key)


def test_a_uri_without_a_bucket() -> None:
    with pytest.raises(DataError, match="s3:///a names no bucket"):
        split_uri("s3:///a")
