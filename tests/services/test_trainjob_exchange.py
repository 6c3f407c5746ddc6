"""The files that a step and the pods of a TrainJob exchange, on an S3 server."""

import os
from pathlib import Path
from typing import Any

import boto3
import pytest

from audioscore.errors import DataError
from audioscore.training.trainjob.exchange import Exchange

pytestmark = pytest.mark.services


@pytest.fixture
def bucket(s3_environment: Any) -> Any:
    """An empty bucket for one test."""
    found = boto3.session.Session().resource("s3").Bucket(f"jobs-{os.urandom(4).hex()}")
    found.create()
    return found


def test_a_folder_is_exchanged_through_a_bucket(bucket: Any, tmp_path: Path) -> None:
    files = {f"seed-1/录音 {number}": bytes([number]) * (1 << number) for number in range(23)}
    for name, content in files.items():
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes(content)
    exchange = Exchange(f"s3://{bucket.name}/team 1/")
    exchange.put_folder(tmp_path / "source", "job/model")
    found = exchange.get_folder("job/model", tmp_path / "target")
    assert {str(path.relative_to(found)): path.read_bytes() for path in found.rglob("*") if path.is_file()} == files
    assert exchange.put_missing("features", {"a": tmp_path / "source" / "seed-1/录音 0"}) == 1
    assert exchange.put_missing("features", {"a": tmp_path / "source" / "seed-1/录音 0"}) == 0
    exchange.remove("job/model")
    assert not exchange.has_folder("job/model")
    assert [item.key for item in bucket.objects.all()] == ["team 1/features/a"]


def test_denied_access_is_an_error(
    tmp_path: Path, s3_server: Any, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.reader.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "a").write_bytes(b"x")
    exchange = Exchange(f"s3://{bucket.name}/team 1")
    with pytest.raises(DataError, match=rf"s3://{bucket.name}/team 1/b: .*http.*AccessDenied.*AWS_ENDPOINT_URL"):
        exchange.put({"b": tmp_path / "a"})
    with pytest.raises(DataError, match=rf"s3://{bucket.name}/team 1/job/model\.json: .*AccessDenied"):
        exchange.has_folder("job/model")
