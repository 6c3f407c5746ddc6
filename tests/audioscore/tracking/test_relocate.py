import contextlib
import shutil
import sqlite3
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from audioscore.errors import ModelError
from audioscore.files import path_to_uri, uri_to_path
from audioscore.home import ARTIFACTS, Home
from audioscore.tracking import relocate as module
from audioscore.tracking.connection import connect, initialise
from audioscore.tracking.relocate import LOCATIONS, present_location, relocate


def locations(database: Path) -> set[str]:
    """Every location in a database that is a URI of a file."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = [row for table, column in LOCATIONS for row in connection.execute(f"SELECT {column} FROM {table}")]
    return {value for (value,) in rows if value and value.startswith("file:")}


@pytest.fixture
def old(tmp_path: Path) -> Home:
    """A home with a run that has an artifact, and a version whose files are in the home."""
    home = Home(tmp_path / "old")
    client = connect_new(home)
    run = client.create_run(client.get_experiment_by_name("singers").experiment_id)
    client.log_text(run.info.run_id, "curves", "page.html")
    source = home.artifacts / "singers" / "model"
    source.mkdir()
    client.create_registered_model("singers")
    client.create_model_version("singers", source.as_uri(), run_id=run.info.run_id)
    return home


def connect_new(home: Home) -> MlflowClient:
    initialise(home.tracking_uri, "singers", home.artifacts)
    return connect(home.tracking_uri)


@pytest.mark.parametrize("name", ["new", "C#proj 新 %20?x", "a/b/c"])
def test_locations_follow_a_moved_home(old: Home, tmp_path: Path, name: str) -> None:
    new = Home(tmp_path / name)
    new.folder.parent.mkdir(parents=True, exist_ok=True)
    old.folder.rename(new.folder)
    client = connect(new.tracking_uri)
    found = {uri_to_path(location) for location in locations(new.folder / "mlflow.db")}
    assert len(found) == 4
    assert all(path is not None and path.is_relative_to(new.artifacts) for path in found)
    run = client.create_run(client.get_experiment_by_name("singers").experiment_id)
    client.log_text(run.info.run_id, "more", "more.html")
    assert {path.name for path in new.artifacts.rglob("*.html")} == {"page.html", "more.html"}
    assert not old.folder.exists()


def test_a_copy_uses_its_own_files(old: Home, tmp_path: Path) -> None:
    new = Home(tmp_path / "new")
    shutil.copytree(old.folder, new.folder)
    before = locations(old.folder / "mlflow.db")
    connect(new.tracking_uri)
    assert all(new.artifacts.as_uri() in location for location in locations(new.folder / "mlflow.db"))
    assert locations(old.folder / "mlflow.db") == before


def test_a_database_without_its_files_keeps_locations_that_exist(old: Home, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    shutil.copy(old.folder / "mlflow.db", tmp_path / "new")
    before = locations(tmp_path / "new/mlflow.db")
    relocate(tmp_path / "new/mlflow.db")
    kept = {location for location in before if (path := uri_to_path(location)) and path.exists()}
    assert kept
    assert kept <= locations(tmp_path / "new/mlflow.db")


@pytest.mark.parametrize("kept", [True, False])
def test_artifacts_that_were_left_behind_are_named_once_and_can_be_copied_later(
    old: Home, tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: bool
) -> None:
    new = Home(tmp_path / "new")
    new.folder.mkdir()
    source = old.folder if kept else old.folder.rename(tmp_path / "absent")
    database = Path(shutil.copy(source / "mlflow.db", new.folder))
    with contextlib.closing(sqlite3.connect(database)) as connection:
        before = connection.execute("SELECT source FROM model_versions").fetchall()
    for _ in range(2):
        relocate(database)
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(messages) == 1
    assert messages[0].startswith(f"{new.artifacts}: ")
    assert f" {old.artifacts} " in messages[0]
    with contextlib.closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT source FROM model_versions").fetchall() == before
        assert connection.execute("SELECT artifact_uri FROM runs WHERE artifact_uri NOT LIKE '%old%'").fetchall() == []
    shutil.copytree(source / ARTIFACTS, new.artifacts)
    caplog.clear()
    relocate(database)
    assert all(location.startswith(new.artifacts.as_uri()) for location in locations(database))
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(messages) == 1
    assert messages[0].startswith(f"{new.folder}: ")
    assert ARTIFACTS not in messages[0]


def test_a_version_that_is_in_neither_home_is_named(
    old: Home, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (old.artifacts / "singers" / "model").rmdir()
    old.folder.rename(tmp_path / "new")
    relocate(tmp_path / "new/mlflow.db")
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [str(tmp_path / "new" / ARTIFACTS)]
    left = {location for location in locations(tmp_path / "new/mlflow.db") if old.folder.as_uri() in location}
    assert left == {(old.artifacts / "singers" / "model").as_uri()}


def test_a_location_that_cannot_be_read_is_not_used(tmp_path: Path) -> None:
    unreadable = f"{ARTIFACTS}/{'x' * 300}"  # a name that file systems refuse, with an error that is not ENOENT
    present = present_location(f"file:///old/{unreadable}", tmp_path / "mlflow.db")
    assert uri_to_path(present) == tmp_path / unreadable


def test_an_experiment_without_files_follows_too(tmp_path: Path) -> None:
    connect_new(Home(tmp_path / "old"))
    (tmp_path / "old").rename(tmp_path / "new")
    client = connect(Home(tmp_path / "new").tracking_uri)
    run = client.create_run(client.get_experiment_by_name("singers").experiment_id)
    client.log_text(run.info.run_id, "curves", "page.html")
    assert not (tmp_path / "old").exists()
    assert list((tmp_path / "new" / ARTIFACTS).rglob("page.html"))


def test_other_locations_stay(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    for location in (
        "s3://bucket/mlartifacts/x",
        "models:/m-1",
        "file:///srv/models/x",
        "mlflow-artifacts:/mlartifacts",
    ):
        assert present_location(location, database) == location
    own = path_to_uri(tmp_path / ARTIFACTS / "x")
    assert present_location(own, database) == own


def test_nothing_is_written_where_nothing_moved(old: Home) -> None:
    database = old.folder / "mlflow.db"
    before = database.read_bytes()
    relocate(database)
    assert database.read_bytes() == before


def test_a_missing_or_empty_database_is_no_error(tmp_path: Path) -> None:
    relocate(tmp_path / "mlflow.db")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mlflow.db").touch()
    relocate(tmp_path / "mlflow.db")
    assert (tmp_path / "mlflow.db").read_bytes() == b""


@pytest.mark.parametrize("content", [b"no database" * 100, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_file_that_is_no_database_is_named(tmp_path: Path, content: bytes) -> None:
    database = tmp_path / "mlflow.db"
    database.write_bytes(content)
    with pytest.raises(ModelError, match=f"^{database}: "):
        relocate(database)
    assert database.read_bytes() == content


@pytest.mark.parametrize("kind", ["read-only", "older"])
def test_a_database_that_cannot_be_corrected_is_no_error(
    old: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    old.folder.rename(tmp_path / "new")
    database = tmp_path / "new/mlflow.db"
    if kind == "read-only":  # root may write to any file
        monkeypatch.setattr(module, "_opened", lambda path, mode, opened=module._opened: opened(path, "ro"))
    else:
        with contextlib.closing(sqlite3.connect(database)) as other:
            other.execute("DROP TABLE logged_models")
    before = database.read_bytes()
    relocate(database)
    assert database.read_bytes() == before


def test_another_process_that_writes_is_reported(old: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audioscore.tracking.relocate.WAIT_SECONDS", 0.1)
    old.folder.rename(tmp_path / "new")
    database = tmp_path / "new/mlflow.db"
    before = locations(database)
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ModelError, match=f"^{database}: .*locked"):
            relocate(database)
        other.execute("ROLLBACK")
    assert locations(database) == before
    relocate(database)
    assert not locations(database) & before
    assert mlflow.MlflowClient(path_to_uri(database, "sqlite")).get_model_version("singers", "1")
