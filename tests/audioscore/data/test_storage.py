import os
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.response import StreamingBody
from dvc.repo import Repo
from moto.server import ThreadedMotoServer

from audioscore.data.storage import FetchReport, fetch
from audioscore.data.transfer import retry
from audioscore.data.versioning import folder_digest
from audioscore.errors import DataError

FILES = {"labels.csv": b"audio_file,score\naudio/a.m4a,80\n", "audio/a.m4a": b"a" * 100, "audio/\u00e9.m4a": b""}
SIZE = sum(map(len, FILES.values()))


def fill(folder: Path) -> Path:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- folders ---


def test_a_folder_is_linked(tmp_path: Path) -> None:
    source = fill(tmp_path / "source")
    report = fetch(str(source), tmp_path / "run" / "data")
    assert report == FetchReport(str(source), "folder", 3, SIZE, None)
    assert contents(tmp_path / "run" / "data") == FILES
    assert (tmp_path / "run" / "data" / "labels.csv").samefile(source / "labels.csv")
    assert folder_digest(tmp_path / "run" / "data") == folder_digest(source)


def test_links_in_a_folder_become_files(tmp_path: Path) -> None:
    source = fill(tmp_path / "source")
    (source / "link.m4a").symlink_to("audio/a.m4a")
    fetch(str(source), tmp_path / "target")
    assert not (tmp_path / "target" / "link.m4a").is_symlink()
    assert (tmp_path / "target" / "link.m4a").read_bytes() == FILES["audio/a.m4a"]


def test_the_dvc_md5_of_a_folder_is_its_revision(tmp_path: Path) -> None:
    source = fill(tmp_path / "source")
    (tmp_path / "source.dvc").write_text("outs:\n- md5: 5fd2.dir\n  path: source\n")
    assert fetch(str(source), tmp_path / "target").revision == "5fd2.dir"


def test_a_target_with_files_is_never_replaced(tmp_path: Path) -> None:
    source, target = fill(tmp_path / "source"), tmp_path / "target"
    target.mkdir()
    fetch(str(source), target)  # an empty one is as good as none
    with pytest.raises(DataError, match="target already holds files"):
        fetch(str(source), target)
    with pytest.raises(DataError, match="lies inside"):
        fetch(str(source), source / "inner")
    assert contents(source) == FILES


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("gone", r"gone: no such folder\. Give a folder, s3://BUCKET/PREFIX, or a git repository"),
        ("gone@v1", r"gone: no such folder or repository"),
        ("git+https://host/songs", r"names no revision\. Add one: git\+https://host/songs@main"),
        ("git@host:team/songs", r"git@host:team/songs: no such folder"),
        ("s3://", r"s3:// names no bucket"),
    ],
)
def test_what_is_nowhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        fetch(uri, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_an_empty_folder_and_dead_links_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with pytest.raises(DataError, match="source is an empty folder"):
        fetch(str(source), tmp_path / "target")
    fill(source)
    (source / "dead.m4a").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"1 of 4 files are links to nothing \(dead\.m4a\)"):
        fetch(str(source), tmp_path / "target")


# --- S3 ---


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(name, value)
    found = boto3.session.Session().resource("s3").Bucket("songs")
    found.create()
    yield found
    found.objects.all().delete()
    found.delete()


def upload(bucket: Any, prefix: str) -> None:
    for name, content in FILES.items():
        bucket.put_object(Key=f"{prefix}{name}", Body=content)


@pytest.mark.parametrize(
    ("prefix", "uri"), [("v1/data/", "s3://songs/v1/data"), ("v1/", "s3://songs/v1/"), ("", "s3://songs")]
)
def test_a_prefix_becomes_a_folder(tmp_path: Path, bucket: Any, prefix: str, uri: str) -> None:
    upload(bucket, prefix)
    if prefix:
        bucket.put_object(Key=f"{prefix}audio/", Body=b"")  # what consoles make to show a folder
        bucket.put_object(Key=f"{prefix.rstrip('/')}-2/other", Body=b"x")
    assert fetch(uri, tmp_path / "target") == FetchReport(uri, "s3", 3, SIZE, None)
    assert contents(tmp_path / "target") == FILES


def test_listings_of_several_pages_are_read_to_the_end(
    tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "5")
    for number in range(12):
        bucket.put_object(Key=f"p/{number}", Body=b"x" * number)
    assert len(list(bucket.meta.client.get_paginator("list_objects_v2").paginate(Bucket="songs"))) == 3
    assert fetch("s3://songs/p", tmp_path / "target").files == 12


def test_objects_in_parts_and_under_their_own_key_are_taken(tmp_path: Path, bucket: Any) -> None:
    upload(bucket, "p/")
    client = bucket.meta.client
    part = client.create_multipart_upload(Bucket="songs", Key="p/parts")["UploadId"]
    sent = client.upload_part(Bucket="songs", Key="p/parts", UploadId=part, PartNumber=1, Body=b"parts")
    client.complete_multipart_upload(
        Bucket="songs",
        Key="p/parts",
        UploadId=part,
        MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": sent["ETag"]}]},
    )
    assert "-" in bucket.Object("p/parts").e_tag
    bucket.put_object(Key="p/sealed", Body=b"sealed", ServerSideEncryption="aws:kms", SSEKMSKeyId="k")
    fetch("s3://songs/p", tmp_path / "target")
    assert contents(tmp_path / "target") == FILES | {"parts": b"parts", "sealed": b"sealed"}


@pytest.mark.parametrize(
    ("stored_with", "message"), [("CRC32", "another checksum"), (None, "MD5 [0-9a-f]{32}, not [0-9a-f]{32}")]
)
def test_damage_on_the_way_is_noticed_and_leaves_nothing(
    tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch, stored_with: str | None, message: str
) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported" if stored_with else "when_required")
    upload(boto3.session.Session().resource("s3").Bucket("songs"), "p/")
    read = StreamingBody.read

    def damaged(body: StreamingBody, amt: int | None = None) -> bytes:
        chunk: bytes = read(body, amt)
        return b"b" * 100 if chunk == FILES["audio/a.m4a"] else chunk

    monkeypatch.setattr(StreamingBody, "read", damaged)
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.0)
    with pytest.raises(DataError, match=rf"s3://songs/p/audio/a\.m4a: arrived with {message}.*, in 5 tries"):
        fetch("s3://songs/p", tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_buckets_and_prefixes_without_data_are_named(tmp_path: Path, bucket: Any) -> None:
    with pytest.raises(DataError, match="s3://songs/gone holds no objects"):
        fetch("s3://songs/gone", tmp_path / "target")
    with pytest.raises(DataError, match=r"s3://nowhere/p cannot be fetched from http://127.*\(.*NoSuchBucket.*\)"):
        fetch("s3://nowhere/p", tmp_path / "target")
    bucket.put_object(Key="p/../x", Body=b"x")
    with pytest.raises(DataError, match=r"1 of 1 keys are no file names \(p/\.\./x\)"):
        fetch("s3://songs/p", tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_missing_credentials_are_told(tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(DataError, match=r"s3://songs/p cannot be fetched from http://127.*\. Set AWS_ACCESS_KEY_ID"):
        fetch("s3://songs/p", tmp_path / "target")


# --- git and DVC ---


def run(folder: Path, *command: str) -> str:
    quiet = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "DVC_NO_ANALYTICS": "1"}
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, env=os.environ | quiet
    ).stdout.strip()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository whose `data` is in DVC, pushed, at tag v1; its files have changed since."""
    root = tmp_path_factory.mktemp("repository")
    git = ("git", "-c", "user.name=n", "-c", "user.email=n@example.org")
    fill(root / "data")
    run(root, *git, "init", "-q")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of DVC's own, about its pygtrie
        with Repo.init(str(root)) as repo:
            with repo.config.edit() as config:
                config["remote"]["store"] = {"url": str(tmp_path_factory.mktemp("store"))}
                config["core"] = {"remote": "store", "analytics": False}
            repo.add([str(root / "data")])
            repo.push()
    run(root, *git, "add", ".")
    run(root, *git, "commit", "-q", "-m", "data")
    run(root, *git, "tag", "v1")
    (root / "data" / "labels.csv").unlink()
    (root / "data" / "labels.csv").write_bytes(b"changed")
    return root


@pytest.mark.parametrize("form", ["{path}@v1", "git+file://{path}@v1#data", "{path}@{commit}"])
def test_a_revision_of_a_repository(tmp_path: Path, repository: Path, form: str) -> None:
    commit = run(repository, "git", "rev-parse", "HEAD")
    uri = form.format(path=repository, commit=commit)
    assert fetch(uri, tmp_path / "target") == FetchReport(uri, "git", 3, SIZE, commit)
    assert contents(tmp_path / "target") == FILES
    assert (repository / "data" / "labels.csv").read_bytes() == b"changed"


def test_a_folder_inside_the_data(tmp_path: Path, repository: Path) -> None:
    assert fetch(f"{repository}@v1#data/audio", tmp_path / "target").files == 2
    assert "a.m4a" in contents(tmp_path / "target")


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("{path}@v9", "has no revision v9"),
        ("{path}@v1#gone", "has no folder gone at v1"),
        ("git+file://{path}/gone@v1", "cannot be cloned"),
    ],
)
def test_what_a_repository_lacks_is_named(tmp_path: Path, repository: Path, form: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fetch(form.format(path=repository), tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_repository_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=f"{tmp_path}@v1: DVC cannot bring data .*not a git repository|cannot be cloned"
    ):
        fetch(f"{tmp_path}@v1", tmp_path / "target")


def test_data_that_was_never_pushed_is_told(tmp_path: Path, repository: Path) -> None:
    run(repository, "git", "clone", "-q", str(repository), str(tmp_path / "clone"))
    (tmp_path / "clone" / ".dvc" / "config.local").write_text(f"['remote \"store\"']\n    url = {tmp_path / 'empty'}\n")
    with pytest.raises(DataError, match=r"DVC cannot bring data \(.*Check that `dvc push`"):
        fetch(f"{tmp_path / 'clone'}@v1", tmp_path / "target")
    assert not (tmp_path / "target").exists()
