"""Versions of a data folder on an S3 server: push, interruption, resumption, pull, fetch, purge, refusal."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import boto3
import pytest

from audioscore.data.delivery.remove import purge
from audioscore.data.versions.repository import commit, pull, push, record_of, recorded_file, recorded_files
from audioscore.data.versions.revision import folder_digest
from audioscore.data.versions.storage import fetch
from audioscore.errors import DataError

pytestmark = pytest.mark.services

CLIPS = 59  # and a labels table
# Pushes, and is killed during the upload of the 21st file.
CUT = """
    import os, signal, sys
    from pathlib import Path
    import s3fs
    from audioscore.data.versions.repository import push

    send, sent = s3fs.S3FileSystem._put_file, []

    async def send_or_end(self, *arguments, **options):
        sent.append(arguments)
        if len(sent) > 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return await send(self, *arguments, **options)

    s3fs.S3FileSystem._put_file = send_or_end
    push([Path(sys.argv[1])])
"""


def git(folder: Path, *arguments: str | Path) -> str:
    quiet = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    command = ["git", "-c", "user.name=n", "-c", "user.email=n@example.org", *arguments]
    result = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, env=os.environ | quiet)
    return result.stdout.strip()


@pytest.fixture
def bucket(s3_environment: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """An empty bucket for one test."""
    (tmp_path / "aws").touch()
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws"))  # DVC opens this file, and refuses /dev/null
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    found = boto3.session.Session().resource("s3").Bucket(f"versions-{os.urandom(4).hex()}")
    found.create()
    return found


@pytest.fixture
def data(bucket: Any, s3_environment: Any, tmp_path: Path) -> Path:
    """A recorded data folder in a git repository, tag v1, whose DVC remote is the bucket; nothing is pushed yet."""
    root = tmp_path / "songs"
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc" / "config").write_text(
        f"[core]\n    remote = cloud\n['remote \"cloud\"']\n    url = s3://{bucket.name}/dvc\n"
        f"    endpointurl = {s3_environment.endpoint}\n"
    )
    (root / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (root / "data" / "audio").mkdir(parents=True)
    for number in range(CLIPS):
        (root / "data" / "audio" / f"录音 {number}.wav").write_bytes(os.urandom(20_000))
    rows = "".join(f"audio/录音 {number}.wav,{number}\n" for number in range(CLIPS))
    (root / "data" / "labels.csv").write_text(f"audio_file,score\n{rows}", encoding="utf-8")
    git(root, "init", "-q")
    commit(root / "data")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "data")
    git(root, "tag", "v1")
    return root / "data"


def keys(bucket: Any) -> set[str]:
    return {item.key for item in bucket.objects.filter(Prefix="dvc/")}


def test_a_push_that_was_cut_is_completed_and_pulled_in_a_new_clone(data: Path, bucket: Any, tmp_path: Path) -> None:
    cut = subprocess.run([sys.executable, "-c", textwrap.dedent(CUT), data], check=False, capture_output=True)
    assert cut.returncode == -9, cut.stderr.decode()
    there = keys(bucket)
    assert 0 < len(there) <= 21
    assert not any(key.endswith(".dir") for key in there)  # the list of files is uploaded last
    assert push([data]) == CLIPS + 2 - len(there)
    assert push([data]) == 0
    assert len(keys(bucket)) == CLIPS + 2
    git(tmp_path, "clone", "-q", data.parent, tmp_path / "clone")
    assert pull([tmp_path / "clone" / "data.dvc"]) == CLIPS + 1
    assert folder_digest(tmp_path / "clone" / "data") == folder_digest(data)
    assert recorded_file(tmp_path / "clone" / "data", "labels.csv", "v1") == (data / "labels.csv").read_bytes()


def test_both_kinds_of_uri_are_fetched(data: Path, bucket: Any, tmp_path: Path) -> None:
    push([data])
    commit_id = git(data.parent, "rev-parse", "HEAD")
    git(tmp_path, "clone", "-q", "--bare", data.parent, tmp_path / "songs.git")  # as on a server: without a cache
    report = fetch(f"git+file://{tmp_path}/songs.git@v1", tmp_path / "from git")
    assert (report.kind, report.files, report.revision) == ("git", CLIPS + 1, commit_id)
    for path in (path for path in data.rglob("*") if path.is_file()):
        bucket.upload_file(str(path), f"plain/{path.relative_to(data).as_posix()}")
    assert fetch(f"s3://{bucket.name}/plain", tmp_path / "from s3").files == CLIPS + 1
    digests = {folder_digest(folder) for folder in (tmp_path / "from git", tmp_path / "from s3", data)}
    assert len(digests) == 1


def test_refusals_are_one_line(
    data: Path, bucket: Any, s3_environment: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = data.parent / ".dvc" / "config.local"

    def refusal() -> str:
        with pytest.raises(DataError, match=r"\bcloud\b") as refused:
            push([data])
        assert "\n" not in str(refused.value)
        return str(refused.value)

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, s3_environment.reader[name])
    assert "Access" in refusal()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert "signature" in refusal().lower()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "unknown")
    assert "key" in refusal().lower()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, s3_environment.environment[name])
    config.write_text("['remote \"cloud\"']\n    url = s3://no-such-bucket/dvc\n")
    assert "bucket" in refusal().lower()
    config.write_text("['remote \"cloud\"']\n    endpointurl = http://127.0.0.1:9\n")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert "http://127.0.0.1:9" in refusal()
    assert capfd.readouterr() == ("", "")
    assert not keys(bucket)


def test_a_purge_reaches_the_bucket(data: Path, bucket: Any) -> None:
    push([data])
    name = "audio/录音 7.wav"
    unwanted = recorded_files(data)[name]
    (data / name).unlink()
    commit(data)
    purged = purge([unwanted], data)
    assert (purged.removed, purged.failed) == ({"cache": 1, "cloud": 1}, {})
    assert purged.broken == [git(data.parent, "rev-parse", "v1")]
    assert not any(key.endswith(unwanted[2:]) for key in keys(bucket))
    assert push([data]) == 1  # the new list of files, and no purged file
    with pytest.raises(DataError, match=unwanted):
        recorded_file(data, name, "v1")
    assert pull([record_of(data)]) == 0
