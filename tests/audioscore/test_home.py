import contextlib
import os
import sqlite3
from pathlib import Path

import pytest

from audioscore.errors import UsageError
from audioscore.files import uri_to_path
from audioscore.home import DEMO_MODEL, DEMO_WORKSPACE, LONGEST_DATABASE, home, home_of_model


def test_the_variable_names_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path / "state"))
    here = home()
    assert here.folder == tmp_path / "state"
    assert here.tracking_uri == f"sqlite:///{tmp_path}/state/mlflow.db"
    names = ("features", "runs", "mlartifacts")
    assert [here.features, here.runs, here.artifacts] == [tmp_path / "state" / name for name in names]
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("value", [None, ""])
def test_the_default_is_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUDIOSCORE_HOME")
    if value is not None:
        monkeypatch.setenv("AUDIOSCORE_HOME", value)
    assert home().folder == tmp_path / ".audioscore"
    assert home().folder.is_absolute()


def test_the_demo_has_its_own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path))
    assert home(DEMO_WORKSPACE).folder == tmp_path / "demo"
    assert home_of_model(DEMO_MODEL) == home(DEMO_WORKSPACE)
    assert home_of_model("audioscore") == home()
    assert home_of_model(DEMO_MODEL).tracking_uri != home_of_model("audioscore").tracking_uri


def test_an_mlflow_server_has_the_registry_but_not_that_of_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    demo = f"sqlite:///{tmp_path}/demo/mlflow.db"
    assert home_of_model("audioscore").tracking_uri == "http://mlflow:5000"
    assert home_of_model(DEMO_MODEL).tracking_uri == demo
    monkeypatch.setenv("MLFLOW_TRACKING_URI", demo)  # MLflow sets it to the database that it opened last
    assert home_of_model("audioscore").tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    for name in ("bogus:/x", "postgresql://user:secret@host/db", "databricks:"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", name)
        assert home().measurements == tmp_path / "probes.db"
        with pytest.raises(UsageError, match=f"'{name.partition(':')[0]}'") as fault:
            str(home_of_model("audioscore").tracking_uri)
        assert "secret" not in str(fault.value)
        assert home_of_model(DEMO_MODEL).tracking_uri == demo


def test_a_path_with_characters_of_urls_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "C#proj 新 %20?x"
    monkeypatch.setenv("AUDIOSCORE_HOME", str(folder))
    assert uri_to_path(home().tracking_uri) == folder / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", home().tracking_uri)
    assert home().unsupported is None


def test_a_path_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "/".join(["歌" * 26] * 7)
    monkeypatch.setenv("AUDIOSCORE_HOME", f"/{name}")
    with pytest.raises(
        UsageError, match=rf"^AUDIOSCORE_HOME: .*\b{len(name.encode()) + len('//mlflow.db')}\b.*\b504\b"
    ):
        str(home().tracking_uri)


def test_a_path_that_is_not_utf8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOSCORE_HOME", os.fsdecode(b"/\xb8\xe8"))
    with pytest.raises(UsageError, match=r"^AUDIOSCORE_HOME: .*UTF-8") as error:
        str(home().tracking_uri)
    assert "bytes" not in str(error.value)


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_home_that_is_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path / name))
    for model in ("audioscore", DEMO_MODEL):
        with pytest.raises(UsageError, match=f"^{tmp_path}/file: .*AUDIOSCORE_HOME"):
            str(home_of_model(model).tracking_uri)


def test_the_longest_path_holds_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path
    while (left := LONGEST_DATABASE - len(f"{folder}/mlflow.db")) > 0:
        folder /= "d" * (left - 1 if left <= 200 else 100)
    monkeypatch.setenv("AUDIOSCORE_HOME", str(folder))
    path = uri_to_path(home().tracking_uri)
    assert path is not None
    assert len(str(path)) == LONGEST_DATABASE
    path.parent.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE t (a)")
        database.execute("INSERT INTO t VALUES (1)")
