"""Files by name under a URI: a folder, and a bucket of an S3 server on loopback, alike."""

import re
from pathlib import Path

import pytest

from audioscore.errors import DataError
from audioscore.training.trainjob.exchange import Exchange

FILES = {"plan.json": b"{}", "seed-1/head.safetensors": b"\0" * 100_000, "seed-1/empty": b"", "init/名.json": b"x"}


@pytest.fixture(params=["folder", "s3"])
def exchange(request: pytest.FixtureRequest, tmp_path: Path) -> Exchange:
    if request.param == "folder":
        return Exchange(f"{tmp_path}/exchange/")
    return Exchange(f"s3://{request.getfixturevalue('own_bucket')}/team 1/")


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


def test_an_incomplete_or_changed_folder_is_refused(exchange: Exchange, source: Path, tmp_path: Path) -> None:
    exchange.put({"job/model/plan.json": source / "plan.json"})  # and then the pod was killed
    assert not exchange.has_folder("job/model")
    with pytest.raises(DataError, match=f"{re.escape(exchange.uri)}/job/model(?!/|.json)"):
        exchange.get_folder("job/model", tmp_path / "target")
    exchange.put_folder(source, "job/model")
    (source / "other").write_bytes(b"[]")
    exchange.put({"job/model/plan.json": source / "other"})
    with pytest.raises(DataError, match=re.escape(f"{exchange.uri}/job/model/plan.json")):
        exchange.get_folder("job/model", tmp_path / "target")
    exchange.put({"job/model.json": source / "seed-1" / "head.safetensors"})
    with pytest.raises(DataError, match=r"/job/model\.json"):
        exchange.has_folder("job/model")


def test_only_what_is_missing_is_sent(exchange: Exchange, source: Path, tmp_path: Path) -> None:
    files = {name: source / name for name in FILES}
    some = {name: files[name] for name in ("plan.json", "seed-1/empty")}
    assert exchange.put_missing("features", some) == 2
    assert exchange.put_missing("features", files) == 2
    assert exchange.put_missing("features", files) == 0
    found = exchange.get("features", list(some), tmp_path / "target")
    assert {name: (found / name).read_bytes() for name in some} == {name: FILES[name] for name in some}


@pytest.mark.usefixtures("own_bucket")
def test_a_missing_bucket_is_named(source: Path) -> None:
    exchange = Exchange("s3://nowhere/x")
    with pytest.raises(DataError, match=r"s3://nowhere/x/job/model.json.*NoSuchBucket"):
        exchange.has_folder("job/model")
    with pytest.raises(DataError, match=r"s3://nowhere/x/a: .*http.*NoSuchBucket.*AWS_ENDPOINT_URL"):
        exchange.put({"a": source / "plan.json"})
