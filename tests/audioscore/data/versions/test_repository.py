import json
import os
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from audioscore.data.transfer import s3
from audioscore.data.versions import repository
from audioscore.data.versions.dvc import open_repository
from audioscore.data.versions.repository import (
    Version,
    commit,
    pull,
    pull_missing,
    push,
    record_of,
    recorded_file,
    recorded_files,
    recorded_version,
)
from audioscore.data.versions.revision import file_md5s, folder_digest
from audioscore.errors import DataError, ServerUnreachable

FILES = {"labels.csv": "audio_file,score\naudio/a.wav,80\n", "audio/a.wav": "a" * 100, "audio/\u00e9 b.wav": "b"}
FIRST, SECOND = b"audio_file,score\na.wav,80\n", b"audio_file,score\na.wav,81\n"
SIZE = sum(len(text.encode()) for text in FILES.values())


@pytest.fixture
def data(data: Path, fill: Any) -> Path:
    """The folder `data` of the repository with three files."""
    return Path(fill(data, FILES))


def cached(data: Path) -> list[Path]:
    return [path for path in (data.parent / ".dvc" / "cache").rglob("*") if path.is_file()]


def test_a_commit_equals_the_record_of_dvc_add(data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    version = commit(data)
    assert version == Version(folder_digest(data), 3, SIZE, changed=True)
    record = record_of(data).read_text(encoding="utf-8")
    assert yaml.safe_load(record)["outs"] == [
        {"md5": version.md5, "size": SIZE, "nfiles": 3, "hash": "md5", "path": "data"}
    ]
    assert (data.parent / ".gitignore").read_text() == "/data\n"
    assert capfd.readouterr() == ("", "")  # DVC's hints would corrupt a JSON document
    record_of(data).unlink()
    with open_repository(data) as dvc:
        dvc.add([str(data)])  # what `dvc add data` calls
        assert dvc.status() == {}
    assert record_of(data).read_text(encoding="utf-8") == record


def test_a_second_commit_changes_nothing_and_a_damaged_one_is_repaired(data: Path) -> None:
    first = commit(data)
    before = {path: path.stat().st_mtime_ns for path in [record_of(data), *cached(data)]}
    assert len(before) == 5
    assert commit(data) == Version(first.md5, 3, SIZE, changed=False)
    assert {path: path.stat().st_mtime_ns for path in [record_of(data), *cached(data)]} == before
    record_of(data).write_text("")  # as a killed DVC leaves it
    assert commit(data) == first
    lost = next(path for path in cached(data) if not path.name.endswith(".dir"))
    lost.unlink()
    assert commit(data).changed
    assert lost.is_file()


def test_files_are_never_linked_or_replaced(data: Path) -> None:
    (data.parent / ".dvc" / "config").write_text("[cache]\n    type = hardlink\n")
    os.link(data / "audio" / "a.wav", data.parent / "elsewhere.wav")

    def nodes() -> dict[Path, tuple[int, int]]:
        return {path: (path.stat().st_ino, path.stat().st_mode) for path in data.rglob("*.*")}

    before = nodes()
    commit(data)
    assert nodes() == before
    (data / "audio" / "a.wav").write_text("changed", encoding="utf-8")
    assert "a" * 100 in [path.read_text(encoding="utf-8") for path in cached(data)]


@pytest.mark.parametrize(
    "left", ['{"write": {', '{"write": {"PATH": {"pid": PID, "cmd": "dvc add data"}}, "read": {}}']
)
def test_the_list_of_busy_paths_of_a_killed_dvc_is_repaired(data: Path, left: str) -> None:
    busy = data.parent / ".dvc" / "tmp" / "rwlock"
    busy.parent.mkdir()
    busy.write_text(left.replace("PATH", str(data)).replace("PID", str(os.getppid())))
    os.utime(busy, (1, 1))  # the number is in use again, by a process that started after the list was written
    assert commit(data).changed


def test_a_busy_path_and_a_locked_repository_name_the_process(data: Path) -> None:
    locked = pytest.raises(DataError, match=rf"songs: .*\b{os.getpid()}: .*python")
    with open_repository(data) as other, other.lock, locked:
        commit(data)
    assert not record_of(data).exists()
    busy = data.parent / ".dvc" / "tmp" / "rwlock"
    entry = {"pid": os.getppid(), "cmd": "dvc repro songs"}
    busy.write_text(json.dumps({"write": {str(data): entry}, "read": {}}))
    with pytest.raises(DataError, match=rf"data: .*\b{os.getppid()}\).*dvc repro songs"):
        commit(data)
    assert json.loads(busy.read_text())["write"] == {str(data): entry}


def test_folders_that_cannot_be_recorded_are_named(data: Path, tmp_path: Path, git: Any, fill: Any) -> None:
    lonely = tmp_path / "lonely" / "data"
    fill(lonely, FILES)
    with pytest.raises(DataError, match=r"lonely/data: .*lonely .*--no-version"):
        commit(lonely)
    fill(tmp_path / "lonely" / ".dvc", {"tmp/.keep": ""})
    with pytest.raises(DataError, match=r"lonely/data: .*lonely is not a git.*core\.no_scm"):  # DVC's message
        commit(lonely)
    (tmp_path / "lonely" / ".dvc" / "config").write_text("[core]\n    remotes = x\n")
    with pytest.raises(DataError, match=r"lonely/data: .*\(.*remotes.*\)"):
        commit(lonely)
    (data.parent / "empty").mkdir()
    for name in ("gone", "empty"):
        with pytest.raises(DataError, match=rf"{name}\b"):
            commit(data.parent / name)
    (data.parent / ".dvcignore").write_text("*.csv\n")
    with pytest.raises(DataError, match=r"\w{32}\.dir.*\w{32}\.dir.*\.dvcignore"):
        commit(data)
    (data.parent / ".dvcignore").unlink()
    commit(data)
    with pytest.raises(DataError, match=r"data/audio: .*/songs/data\.dvc"):
        commit(data / "audio")
    record_of(data).unlink()
    git(data.parent, "add", "-f", "data")
    with pytest.raises(DataError, match=r"data: .*git rm -r -q --cached data"):
        commit(data)
    assert not record_of(data).exists()


KILLED = """
    import os, signal, sys, time, warnings
    from pathlib import Path
    warnings.simplefilter("ignore")
    import dvc.repo.add, dvc.stage.serialize, dvc.utils.serialize, dvc_data.hashfile.transfer
    from audioscore.data.versions.repository import commit
    data, kills = Path(sys.argv[1]), int(sys.argv[2])

    def forked(seconds):
        child = os.fork()
        if child == 0:
            commit(data)
            os._exit(0)
        started = time.monotonic()
        if seconds is not None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        return os.WIFSIGNALED(status), time.monotonic() - started

    killed = whole = 0
    for kill in range(kills):
        if kill % 5 == 0:  # measure the duration under the current load
            (data / "new.wav").write_bytes(b"whole %d" % kill)
            whole = forked(None)[1]
        (data / "new.wav").write_bytes(b"%d" % kill)
        killed += forked(whole * (kill + 0.5) / kills)[0]
        listed = sorted(path.name for path in (data / "audio").iterdir())
        assert listed == [f"{n:03d}.wav" for n in range(100)], listed
        assert all((data / "audio" / name).read_text() == name * 100 for name in listed)
    print(killed)
    commit(data)
"""


@pytest.mark.services
def test_killed_commits_lose_no_file_and_can_be_repeated(data: Path, run: Any, fill: Any) -> None:
    """Kill 40 commits of 100 linked recordings, at times spread over the duration of a commit."""
    shutil.rmtree(data)
    fill(data.parent / "delivered", {f"{n:03d}.wav": f"{n:03d}.wav" * 100 for n in range(100)})
    (data / "audio").mkdir(parents=True)
    for path in (data.parent / "delivered").iterdir():
        os.link(path, data / "audio" / path.name)
    killed = run(data.parent, sys.executable, "-c", textwrap.dedent(KILLED), data, "40")
    assert yaml.safe_load(record_of(data).read_text())["outs"][0]["md5"] == folder_digest(data)
    assert not commit(data).changed
    assert int(killed) >= 20


def test_a_push_sends_what_is_missing_and_a_pull_brings_it_back(data: Path, tmp_path: Path) -> None:
    version = commit(data)
    assert push([data]) == 4  # three files and their list
    assert push([data]) == 0
    next(path for path in (tmp_path / "store").rglob("*") if path.is_file() and path.suffix != ".dir").unlink()
    assert push([data], remote="store") == 1
    shutil.rmtree(data)
    shutil.rmtree(data.parent / ".dvc" / "cache")
    assert pull([record_of(data)]) == 3
    assert folder_digest(data) == version.md5


def test_a_pull_never_overwrites_changes_and_needs_a_repository(data: Path, tmp_path: Path, fill: Any) -> None:
    commit(data)
    (data / "labels.csv").write_text("local change", encoding="utf-8")
    with pytest.raises(DataError, match=r"^data\.dvc: .*\(.*labels\.csv.*\)"):
        pull([record_of(data)])
    assert (data / "labels.csv").read_text(encoding="utf-8") == "local change"
    fill(tmp_path, {"data.dvc": "outs:\n- md5: 5fd2.dir\n  path: data\n"})
    with pytest.raises(DataError, match=r"data\.dvc: .*`dvc init`"):
        pull([tmp_path / "data.dvc"])


def test_failed_pushes_name_the_cause(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"data: .*data\.dvc\b"):
        push([data])
    commit(data)
    with pytest.raises(DataError, match=r"data\.dvc: .*\bmoon \(.*'moon'"):
        push([data], remote="moon")
    (tmp_path / "store").write_text("a file where the remote should be")
    with pytest.raises(DataError, match=r"data\.dvc: .*\bstore \(.*(File exists|Not a dir)"):
        push([data])
    (tmp_path / "store").unlink()
    lost = next(path for path in cached(data) if not path.name.endswith(".dir"))
    lost.unlink()
    with pytest.raises(DataError, match=rf"\b1\b.*\({lost.parent.name}{lost.name}\)"):
        push([data])
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    (data.parent / ".dvc" / "config").write_text("")
    commit(data)
    with pytest.raises(DataError, match=r"remote.*dvc remote add -d"):
        push([data])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ("url = s3://songs/dvc", "AWS_ENDPOINT_URL"),
        ("url = s3://songs/dvc\n    endpointurl = http://127.0.0.1:1", r"\bstore\b"),
        ("url = http://127.0.0.1:1/dvc", r"\bstore\b"),
    ],
)
def test_a_remote_that_is_down_is_named_at_once(
    data: Path, monkeypatch: pytest.MonkeyPatch, settings: str, named: str
) -> None:
    commit(data)
    (data.parent / ".dvc" / "config").write_text(f"[core]\n    remote = store\n['remote \"store\"']\n    {settings}\n")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(s3, "PATIENCE", 0.0)
    for transfer in (lambda: push([data]), lambda: pull([record_of(data)])):
        with pytest.raises(ServerUnreachable, match=rf"^http://127\.0\.0\.1:1(/dvc)?: .*{named}"):
            transfer()


@pytest.fixture
def pulled_records(monkeypatch: pytest.MonkeyPatch) -> list[list[Path]]:
    calls: list[list[Path]] = []
    monkeypatch.setattr(repository, "pull", calls.append)
    return calls


def test_a_missing_path_is_pulled_by_the_record_above_it(
    tmp_path: Path, fill: Any, pulled_records: list[list[Path]]
) -> None:
    fill(tmp_path, {"encoders.dvc": "outs: []"})
    messages: list[str] = []
    pull_missing(tmp_path / "encoders" / "muq-small", messages.append)
    assert pulled_records == [[tmp_path / "encoders.dvc"]]
    assert ["encoders" in message for message in messages] == [True]
    pull_missing(tmp_path / "encoders", messages.append)
    assert len(pulled_records) == 2


def test_existing_paths_and_those_without_a_record_are_not_pulled(
    tmp_path: Path, fill: Any, pulled_records: list[list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, {"data/labels.csv": ""})
    (tmp_path / "data.dvc").write_text(f"outs:\n- md5: {folder_digest(tmp_path / 'data')}\n  path: data\n")
    monkeypatch.chdir(tmp_path)
    messages: list[str] = []
    for path in (tmp_path / "data", tmp_path / "other" / "deep", Path("relative") / "deep"):
        pull_missing(path, messages.append)
    assert (pulled_records, messages) == ([], [])
    (tmp_path / "data" / "labels.csv").write_text("changed")
    pull_missing(tmp_path / "data", messages.append)
    assert pulled_records == []
    assert ["`audioscore data pull`" in message for message in messages] == [True]


def test_a_version_that_was_never_pushed_leaves_the_folder_alone(data: Path) -> None:
    commit(data)
    push([data])
    record, older = record_of(data), record_of(data).read_text()
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    (data / "new.txt").write_text("new")
    commit(data)
    newer = record.read_text()
    (data / "new.txt").unlink()
    record.write_text(older)
    shutil.rmtree(data.parent / ".dvc" / "cache")
    record.write_text(newer)  # as after a `git pull`, with a version that was never in the cache
    with pytest.raises(DataError, match=r"data\.dvc: "):
        pull([record])
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before


@pytest.fixture
def versions(data: Path, git: Any, fill: Any) -> Path:
    """Two versions of a data folder, tags v1 and v2; tag v0 has no version."""
    git(data.parent, "add", ".dvc/config")
    git(data.parent, "commit", "-q", "-m", "empty")
    git(data.parent, "tag", "v0")
    shutil.rmtree(data)
    for tag, table in (("v1", FIRST), ("v2", SECOND)):
        fill(data, {"labels.csv": table, "\u00e9.wav": tag})
        commit(data)
        git(data.parent, "add", "data.dvc")
        git(data.parent, "commit", "-q", "-m", tag)
        git(data.parent, "tag", tag)
    return data


def test_files_and_content_of_every_version(versions: Path) -> None:
    assert (
        recorded_files(versions)
        == recorded_files(versions, "HEAD")
        == recorded_files(versions, "v2")
        == file_md5s(versions)
    )
    assert recorded_files(versions, "v1").keys() == {"labels.csv", "\u00e9.wav"}
    assert recorded_files(versions, "v1") != recorded_files(versions)
    assert recorded_file(versions, "labels.csv") == SECOND
    assert recorded_file(versions, "labels.csv", "v1") == FIRST
    assert recorded_file(versions, "\u00e9.wav", "HEAD~1") == b"v1"
    assert recorded_file(versions, "gone.wav") is None
    (versions / "labels.csv").write_bytes(b"later")  # the record counts, not the folder
    assert recorded_file(versions, "labels.csv") == SECOND


def test_a_revision_without_a_record_has_no_files(versions: Path) -> None:
    assert (recorded_version(versions, "v0"), recorded_files(versions, "v0")) == (None, {})
    assert (recorded_file(versions, "x", "v0"), recorded_version(versions.parent / "other")) == (None, None)
    for revision in ("v9", "--all", "HEAD~9"):
        with pytest.raises(DataError, match=rf"songs: .*{revision}\b"):
            recorded_files(versions, revision)


def test_content_missing_in_the_cache_is_fetched_from_the_remote(versions: Path) -> None:
    push([versions])
    md5s = recorded_files(versions)
    shutil.rmtree(versions.parent / ".dvc" / "cache")
    assert recorded_file(versions, "labels.csv") == SECOND
    assert recorded_files(versions, remote="store") == md5s
    with pytest.raises(DataError, match=r"data: \w{32}\.dir\b"):
        recorded_files(versions, "v1")


def test_a_folder_without_git_has_no_revisions(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="git"):
        recorded_files(tmp_path / "data", "HEAD")
    assert not record_of(tmp_path / "data").exists()
