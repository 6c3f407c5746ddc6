from pathlib import Path

import pytest

from audioscore.errors import UsageError
from audioscore.home import DEMO_MODEL, DEMO_WORKSPACE, home, home_of_model


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
