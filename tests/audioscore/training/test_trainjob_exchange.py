"""Files by name under a URI: a folder, and a bucket of an S3 server on loopback, alike."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from audioscore.errors import DataError
from audioscore.training.trainjob_exchange import Exchange

FILES = {"plan.json": b"{}", "seed-1/head.safetensors": b"\0" * 100_000, "seed-1/empty": b"", "init/名.json": b"x"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    boto3.session.Session().resource("s3").Bucket("jobs").create()


@pytest.fixture(params=["folder", "s3"])
def exchange(request: pytest.FixtureRequest, tmp_path: Path) -> Exchange:
    if request.param == "s3":
        request.getfixturevalue("bucket")
    return Exchange(f"{tmp_path}/exchange/" if request.param == "folder" else f"s3://jobs/{tmp_path.name}/team 1/")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "source"


def held(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_arrives_as_it_was_sent(exchange: Exchange, source: Path, tmp_path: Path) -> None:
    assert not exchange.has_folder("job/model")
    exchange.put_folder(source, "job/model")
    assert exchange.has_folder("job/model")
    assert held(exchange.get_folder("job/model", tmp_path / "target")) == FILES
    (source / "plan.json").unlink()
    exchange.put_folder(source, "job/model")  # what is not in it now is not there afterwards
    found = held(exchange.get_folder("job/model", tmp_path / "again"))
    assert found == {name: content for name, content in FILES.items() if name != "plan.json"}
    exchange.remove("job/model")
    exchange.remove("job/model")
    assert not exchange.has_folder("job/model")


def test_a_folder_that_was_cut_short_or_changed_is_never_taken_for_a_whole_one(
    exchange: Exchange, source: Path, tmp_path: Path
) -> None:
    exchange.put({"job/model/plan.json": source / "plan.json"})  # and then the pod was killed
    assert not exchange.has_folder("job/model")
    whole = re.escape(f"{exchange.uri}/job/model is not there whole. What writes it did not finish; run it again.")
    with pytest.raises(DataError, match=f"^{whole}$"):
        exchange.get_folder("job/model", tmp_path / "target")
    exchange.put_folder(source, "job/model")
    (source / "other").write_bytes(b"[]")
    exchange.put({"job/model/plan.json": source / "other"})
    changed = re.escape(f"{exchange.uri}/job/model/plan.json is not what was written there. Remove job/model; run")
    with pytest.raises(DataError, match=f"^{changed} again.$"):
        exchange.get_folder("job/model", tmp_path / "target")
    exchange.put({"job/model.json": source / "seed-1" / "head.safetensors"})
    with pytest.raises(DataError, match=r"/job/model\.json is damaged\. Remove it and the folder; run again\.$"):
        exchange.has_folder("job/model")


def test_only_what_is_missing_is_sent(exchange: Exchange, source: Path, tmp_path: Path) -> None:
    files = {name: source / name for name in FILES}
    some = {name: files[name] for name in ("plan.json", "seed-1/empty")}
    assert exchange.put_missing("features", some) == 2
    assert exchange.put_missing("features", files) == 2
    assert exchange.put_missing("features", files) == 0
    found = exchange.get("features", list(some), tmp_path / "target")
    assert {name: (found / name).read_bytes() for name in some} == {name: FILES[name] for name in some}


def test_a_bucket_that_is_not_there(bucket: None, source: Path) -> None:
    exchange = Exchange("s3://nowhere/x")
    with pytest.raises(
        DataError, match=r"^s3://nowhere/x/job/model.json cannot be fetched from .*there is no such buc"
    ):
        exchange.has_folder("job/model")
    expected = r"^s3://nowhere/x/a cannot be stored at http.* \(NoSuchBucket\)\. Check the bucket, AWS_ENDPOINT_URL,"
    with pytest.raises(DataError, match=expected):
        exchange.put({"a": source / "plan.json"})
