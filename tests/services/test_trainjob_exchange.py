"""What step and pods of a TrainJob share, in a real S3 server."""

from pathlib import Path
from typing import Any

import boto3
import pytest

from audioscore.errors import DataError
from audioscore.training.trainjob_exchange import Exchange

pytestmark = pytest.mark.services


@pytest.mark.usefixtures("s3_environment")
def test_a_folder_travels_through_a_real_bucket(tmp_path: Path) -> None:
    bucket = boto3.session.Session().resource("s3").Bucket("jobs")
    bucket.create()
    files = {f"seed-1/录音 {number}": bytes([number]) * (1 << number) for number in range(23)}
    for name, content in files.items():
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes(content)
    exchange = Exchange("s3://jobs/team 1/")
    exchange.put_folder(tmp_path / "source", "job/model")
    found = exchange.get_folder("job/model", tmp_path / "target")
    assert {str(path.relative_to(found)): path.read_bytes() for path in found.rglob("*") if path.is_file()} == files
    assert exchange.put_missing("features", {"a": tmp_path / "source" / "seed-1/录音 0"}) == 1
    assert exchange.put_missing("features", {"a": tmp_path / "source" / "seed-1/录音 0"}) == 0
    exchange.remove("job/model")
    assert not exchange.has_folder("job/model")
    assert [item.key for item in bucket.objects.all()] == ["team 1/features/a"]


def test_a_stranger_is_told_what_is_denied(tmp_path: Path, s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.stranger.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "a").write_bytes(b"x")
    exchange = Exchange("s3://jobs/team 1")
    expected = r"^s3://jobs/team 1/b cannot be stored at http.* \(AccessDenied\)\. Check the bucket, AWS_ENDPOINT_URL, "
    with pytest.raises(DataError, match=expected):
        exchange.put({"b": tmp_path / "a"})
    with pytest.raises(DataError, match=r"^s3://jobs/team 1/job/model\.json cannot be fetched from .*access is denied"):
        exchange.has_folder("job/model")
