import os
import re
import shutil
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.response import StreamingBody
from dvc.repo import Repo
from moto.server import ThreadedMotoServer

from audioscore.data.transfer import pool
from audioscore.data.versions.revision import folder_digest
from audioscore.data.versions.storage import FetchReport, fetch, local_repository
from audioscore.errors import DataError, ServerUnreachable
from audioscore.files import path_to_uri

FILES = {"labels.csv": b"audio_file,score\naudio/a.m4a,80\n", "audio/a.m4a": b"a" * 100, "audio/\u00e9.m4a": b""}
SIZE = sum(map(len, FILES.values()))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_linked_and_symbolic_links_become_files(tmp_path: Path, fill: Any) -> None:
    source, target = fill(tmp_path / "source", FILES), tmp_path / "run" / "data"
    assert fetch(str(source), target) == FetchReport(str(source), "folder", 3, SIZE, None)
    assert contents(target) == FILES
    assert (target / "labels.csv").samefile(source / "labels.csv")
    assert folder_digest(target) == folder_digest(source)
    (source / "link.m4a").symlink_to("audio/a.m4a")
    (tmp_path / "source.dvc").write_text("outs:\n- md5: 5fd2.dir\n  path: source\n")
    assert fetch(str(source), tmp_path / "second").revision == "5fd2.dir"
    assert not (tmp_path / "second" / "link.m4a").is_symlink()
    assert (tmp_path / "second" / "link.m4a").read_bytes() == FILES["audio/a.m4a"]


def test_a_target_with_files_is_never_replaced(tmp_path: Path, fill: Any) -> None:
    source, target = fill(tmp_path / "source", FILES), tmp_path / "target"
    target.mkdir()
    fetch(str(source), target)  # an empty folder is allowed
    for unfit in (target, source / "inner"):
        with pytest.raises(DataError, match=re.escape(str(unfit))):
            fetch(str(source), unfit)
    assert contents(source) == FILES


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("gone", r"gone: .*s3://"),
        ("gone@v1", r"gone: .*repository"),
        ("git+https://host/songs", r"revision.*git\+https://host/songs@"),
        ("git@host:team/songs", r"git@host:team/songs: "),
        ("s3://", r"s3://.*bucket"),
        ("S3://", r"s3://.*bucket"),
    ],
)
def test_a_missing_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        fetch(uri, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_an_empty_folder_and_dead_links_are_refused(tmp_path: Path, fill: Any) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with pytest.raises(DataError, match=r"source\b.*\bempty\b"):
        fetch(str(source), tmp_path / "target")
    fill(source, FILES)
    (source / "dead.m4a").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"1 of 4 .*\(dead\.m4a\)"):
        fetch(str(source), tmp_path / "target")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    found = boto3.session.Session().resource("s3").Bucket(f"songs-{uuid.uuid4().hex}")
    found.create()
    yield found
    found.objects.all().delete()
    found.delete()


def upload(bucket: Any, prefix: str) -> None:
    for name, content in FILES.items():
        bucket.put_object(Key=f"{prefix}{name}", Body=content)


@pytest.mark.parametrize(("prefix", "suffix"), [("v1/data/", "/v1/data"), ("v1/", "/v1/"), ("", "")])
def test_a_prefix_becomes_a_folder(tmp_path: Path, bucket: Any, prefix: str, suffix: str) -> None:
    uri = f"s3://{bucket.name}{suffix}"
    upload(bucket, prefix)
    if prefix:
        bucket.put_object(Key=f"{prefix}audio/", Body=b"")  # as S3 consoles create to show a folder
        bucket.put_object(Key=f"{prefix.rstrip('/')}-2/other", Body=b"x")
    assert fetch(uri, tmp_path / "target") == FetchReport(uri, "s3", 3, SIZE, None)
    assert contents(tmp_path / "target") == FILES
    assert fetch(f"S3{uri[2:]}", tmp_path / "second") == FetchReport(uri, "s3", 3, SIZE, None)


def test_a_listing_of_several_pages_is_read_to_its_end(
    tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "5")
    for number in range(12):
        bucket.put_object(Key=f"p/{number}", Body=b"x" * number)
    assert len(list(bucket.meta.client.get_paginator("list_objects_v2").paginate(Bucket=bucket.name))) == 3
    assert fetch(f"s3://{bucket.name}/p", tmp_path / "target").files == 12


def test_multipart_and_encrypted_objects_are_fetched(tmp_path: Path, bucket: Any) -> None:
    upload(bucket, "p/")
    parts = bucket.Object("p/parts").initiate_multipart_upload()
    sent = parts.Part(1).upload(Body=b"parts")
    parts.complete(MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": sent["ETag"]}]})
    assert "-" in bucket.Object("p/parts").e_tag
    bucket.put_object(Key="p/sealed", Body=b"sealed", ServerSideEncryption="aws:kms", SSEKMSKeyId="k")
    fetch(f"s3://{bucket.name}/p", tmp_path / "target")
    assert contents(tmp_path / "target") == FILES | {"parts": b"parts", "sealed": b"sealed"}


@pytest.mark.parametrize(("stored_with", "words"), [("CRC32", "checksum"), (None, "MD5 [0-9a-f]{32}.*[0-9a-f]{32}")])
def test_damage_during_the_transfer_is_detected_and_leaves_no_files(
    tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch, stored_with: str | None, words: str
) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported" if stored_with else "when_required")
    upload(boto3.session.Session().resource("s3").Bucket(bucket.name), "p/")
    read = StreamingBody.read

    def damaged(body: StreamingBody, amt: int | None = None) -> bytes:
        chunk: bytes = read(body, amt)
        return b"b" * 100 if chunk == FILES["audio/a.m4a"] else chunk

    monkeypatch.setattr(StreamingBody, "read", damaged)
    monkeypatch.setattr(pool, "FIRST_PAUSE", 0.0)
    with pytest.raises(DataError, match=rf"s3://{bucket.name}/p/audio/a\.m4a: .*{words}.*\b5 tries"):
        fetch(f"s3://{bucket.name}/p", tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_folder_markers_are_left_out_and_odd_keys_are_files(tmp_path: Path, bucket: Any) -> None:
    upload(bucket, "p/")
    for marker in ("p/", "p/audio", "p/audio/"):
        bucket.put_object(Key=marker, Body=b"")
    odd = {"audio/a b ": b"1", "audio/a\\b": b"2", "audio/e\u0301.m4a": b"4", "audio/A.m4a": b"5"}
    for name, content in odd.items():
        bucket.put_object(Key=f"p/{name}", Body=content)
    fetch(f"s3://{bucket.name}/p", tmp_path / "target")
    assert contents(tmp_path / "target") == FILES | odd


def test_buckets_and_prefixes_without_data_and_missing_keys_are_named(
    tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, nowhere, target = bucket.name, f"nowhere-{bucket.name}", tmp_path / "target"
    with pytest.raises(DataError, match=f"s3://{name}/gone"):
        fetch(f"s3://{name}/gone", target)
    with pytest.raises(DataError, match=rf"s3://{nowhere}/p: .*http://127.*\(.*NoSuchBucket.*\)"):
        fetch(f"s3://{nowhere}/p", target)
    bucket.put_object(Key="p/../x", Body=b"x")
    with pytest.raises(DataError, match=r"1 of 1 .*\(p/\.\./x\)"):
        fetch(f"s3://{name}/p", target)
    for prefix, bad in (("q", "x" * 256), ("r", "a//b"), ("t", "full/")):
        bucket.put_object(Key=f"{prefix}/{bad}", Body=b"x")
        bucket.put_object(Key=f"{prefix}/both/c", Body=b"x")
        with pytest.raises(DataError, match=rf"1 of 2 .*\({prefix}/{bad}\)"):
            fetch(f"s3://{name}/{prefix}", target)
    for key in ("s/both", "s/both/c", "s/both/d"):
        bucket.put_object(Key=key, Body=b"x")
    with pytest.raises(DataError, match=rf"^s3://{name}/s: 1 of 3 .*\(s/both and s/both/c\)"):
        fetch(f"s3://{name}/s", target)
    with monkeypatch.context() as patched:
        patched.delenv("AWS_ACCESS_KEY_ID")
        with pytest.raises(DataError, match=rf"s3://{name}/p: .*http://127.*AWS_ACCESS_KEY_ID"):
            fetch(f"s3://{name}/p", target)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, git: Any, fill: Any) -> Path:
    """A git repository whose `data` is in DVC, pushed, at tag v1; its files have changed since."""
    root = tmp_path_factory.mktemp("repository")
    fill(root / "data", FILES)
    git(root, "init", "-q")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # DVC's own, about its pygtrie
        with Repo.init(str(root)) as repo:
            with repo.config.edit() as config:
                config["remote"]["store"] = {"url": str(tmp_path_factory.mktemp("store"))}
                config["core"] = {"remote": "store", "analytics": False}
            repo.add([str(root / "data")])
            repo.push()
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "data")
    git(root, "tag", "v1")
    (root / "data" / "labels.csv").unlink()
    (root / "data" / "labels.csv").write_bytes(b"changed")
    return root


def test_a_repository_on_a_server_that_is_down(tmp_path: Path) -> None:
    with pytest.raises(ServerUnreachable, match=r"^http://127\.0\.0\.1:1/songs: "):
        fetch("git+http://me:pw@127.0.0.1:1/songs@main", tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["{path}@v1", "git+file://{path}@v1#data", "{path}@{commit}"])
def test_a_revision_of_a_repository(tmp_path: Path, repository: Path, git: Any, form: str) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    uri = form.format(path=repository, commit=commit)
    assert fetch(uri, tmp_path / "target") == FetchReport(uri, "git", 3, SIZE, commit)
    assert contents(tmp_path / "target") == FILES
    assert (repository / "data" / "labels.csv").read_bytes() == b"changed"
    audio = {name.removeprefix("audio/"): content for name, content in FILES.items() if name.startswith("audio/")}
    assert fetch(f"{repository}@v1#data/audio", tmp_path / "inner").files == 2
    assert contents(tmp_path / "inner") == audio


def test_an_address_of_ssh_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "git").mkdir()
    (tmp_path / "songs").mkdir()
    for uri in ("git@host:team/songs", "git@host:team/songs@v1", "git+git@host:team/songs@v1#a:b", "S3://songs/a@b"):
        assert local_repository(uri) is None
    for uri in ("songs@v1", "git+songs@v1#a:b", "git@v1"):
        assert local_repository(uri) == Path(uri.removeprefix("git+").split("@")[0])
    with pytest.raises(DataError, match=r"^git@host:team/songs: "):
        fetch("git@host:team/songs", tmp_path / "target")


@pytest.mark.parametrize("form", ["{path}@v1", "git+{path}@v1#data", "git+{uri}@v1"])
def test_a_repository_with_any_name(tmp_path: Path, repository: Path, form: str) -> None:
    moved = tmp_path / "C#proj 新 %20?x"
    shutil.copytree(repository, moved)
    uri = form.format(path=moved, uri=path_to_uri(moved))
    assert local_repository(uri) == moved
    assert fetch(uri, tmp_path / "target").files == 3
    assert contents(tmp_path / "target") == FILES


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("{path}@v9", r"\bv9\b"),
        ("{path}@v1#gone", r"\bgone\b.*\bv1\b"),
        ("git+file://{path}/gone@v1", "/gone.*clone"),
        ("{empty}@v1", "/nothing@v1.*(git|clone)"),
    ],
)
def test_what_a_repository_lacks_is_named(tmp_path: Path, repository: Path, form: str, words: str) -> None:
    empty = tmp_path / "nothing"
    empty.mkdir()
    with pytest.raises(DataError, match=words):
        fetch(form.format(path=repository, empty=empty), tmp_path / "target")
    assert list(tmp_path.iterdir()) == [empty]


def test_data_that_was_never_pushed_is_an_error(tmp_path: Path, repository: Path, git: Any) -> None:
    git(repository, "clone", "-q", str(repository), str(tmp_path / "clone"))
    (tmp_path / "clone" / ".dvc" / "config.local").write_text(f"['remote \"store\"']\n    url = {tmp_path / 'empty'}\n")
    with pytest.raises(DataError, match=r"\bdata\b.*`dvc push`"):
        fetch(f"{tmp_path / 'clone'}@v1", tmp_path / "target")
    assert not (tmp_path / "target").exists()
