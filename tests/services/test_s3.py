import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import pytest
from boto3.s3.transfer import TransferConfig

from audioscore.data.transfer.download import Downloaded, FailedDownload, download_all
from audioscore.data.transfer.s3 import connect, list_objects
from audioscore.data.versions.storage import fetch
from audioscore.errors import DataError

pytestmark = pytest.mark.services

PREFIX = "录音 2024/'第 1 批' \U0001f3a4"
COUNT = 200
PROGRAM = """
import sys
from pathlib import Path
from audioscore.data.transfer.download import download_all
download_all(sys.argv[2:], Path(sys.argv[1]), workers=2, progress=lambda done, of: print(done, flush=True))
"""


def client_of(environment: dict[str, str]) -> Any:
    return boto3.session.Session().client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )


@pytest.fixture(scope="module")
def songs(s3_server: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """200 objects under a prefix of the bucket `songs`, by name; one of 12 MB, uploaded in parts."""
    rng = random.Random(5)
    contents = {f"歌 {number:03d}.m4a": rng.randbytes(rng.randint(0, 60_000)) for number in range(COUNT - 1)}
    contents["large.wav"] = rng.randbytes(12_000_000)
    client = client_of(s3_server.environment)
    client.create_bucket(Bucket="songs")
    for name, content in list(contents.items())[:-1]:
        client.put_object(Bucket="songs", Key=f"{PREFIX}/{name}", Body=content)
    large = tmp_path_factory.mktemp("large") / "large.wav"
    large.write_bytes(contents["large.wav"])
    in_parts = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20)
    client.upload_file(str(large), "songs", f"{PREFIX}/large.wav", Config=in_parts)
    client.put_object(Bucket="songs", Key="whole/large.wav", Body=contents["large.wav"])
    client.put_object(Bucket="songs", Key=f"{PREFIX} b/other.m4a", Body=b"of another prefix")
    client.close()
    return contents


def links(songs: dict[str, bytes]) -> list[str]:
    return [f"s3://songs/{PREFIX}/{name}" for name in songs]


def test_a_prefix_is_listed_and_downloaded(s3_environment: Any, songs: dict[str, bytes], tmp_path: Path) -> None:
    client = connect()
    objects = list_objects(client, f"s3://songs/{PREFIX}")
    client.close()
    assert {item.name: item.size for item in objects} == {name: len(content) for name, content in songs.items()}
    found = download_all([f"s3://songs/{item.key}" for item in objects], tmp_path)
    assert {
        item.name: one.path.read_bytes()
        for item, one in zip(objects, found, strict=True)
        if isinstance(one, Downloaded) and not one.reused
    } == songs


def test_large_objects_are_verified(s3_environment: Any, songs: dict[str, bytes], tmp_path: Path) -> None:
    """The server splits an object of this size; its ETag must still be that of the whole object."""
    (one,) = download_all(["s3://songs/whole/large.wav"], tmp_path)
    assert isinstance(one, Downloaded)
    assert one.path.read_bytes() == songs["large.wav"]


def test_a_killed_download_continues(s3_environment: Any, songs: dict[str, bytes], tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), *links(songs)]
    for seconds in (0.0, 0.05, 0.2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=20)
    there = {path for path in tmp_path.iterdir() if path.suffix in (".m4a", ".wav")}
    assert there
    found = download_all(links(songs), tmp_path)
    assert [one.path.read_bytes() for one in found if isinstance(one, Downloaded)] == list(songs.values())
    assert {one.path for one in found if isinstance(one, Downloaded) and one.reused} == there
    assert len(list(tmp_path.iterdir())) == COUNT  # no other file is left


def test_denied_access_is_an_error(
    s3_server: Any, songs: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.reader.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match="AccessDenied"):
        fetch(f"s3://songs/{PREFIX}", tmp_path / "data")
    for changed, code in (
        ({}, "AccessDenied"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "SignatureDoesNotMatch"),
        ({"AWS_ACCESS_KEY_ID": "unknown"}, "InvalidAccessKeyId"),
    ):
        for name, value in changed.items():
            monkeypatch.setenv(name, value)
        (failed,) = download_all(links(songs)[:1], tmp_path)
        assert isinstance(failed, FailedDownload)
        assert [name for name in (links(songs)[0], s3_server.endpoint, code) if name not in str(failed)] == []


def test_missing_objects_and_buckets_are_errors(s3_environment: Any, songs: dict[str, bytes], tmp_path: Path) -> None:
    missing = ["s3://songs/gone.m4a", "s3://nowhere/a.m4a"]
    reasons = [one.reason for one in download_all(missing, tmp_path) if isinstance(one, FailedDownload)]
    assert ["NoSuchKey" in reasons[0], "NoSuchBucket" in reasons[1]] == [True, True]


def test_a_data_folder_is_fetched(s3_environment: Any, songs: dict[str, bytes], tmp_path: Path) -> None:
    report = fetch(f"s3://songs/{PREFIX}", tmp_path / "data")
    assert (report.files, report.bytes) == (COUNT, sum(map(len, songs.values())))
    assert {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()} == songs
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
