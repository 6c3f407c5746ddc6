from pathlib import Path

import pytest

from audioscore.errors import UsageError
from audioscore.home import DEMO_MODEL, DEMO_WORKSPACE, home, home_of_model


def test_the_home_is_the_variables_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path / "state"))
    here = home()
    assert here.folder == tmp_path / "state"
    assert here.tracking_uri == f"sqlite:///{tmp_path}/state/mlflow.db"
    assert (here.features, here.runs, here.artifacts) == tuple(
        tmp_path / "state" / name for name in ("features", "runs", "mlartifacts")
    )
    assert not (tmp_path / "state").exists(), "naming a home makes nothing"


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_variable_it_is_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    if value is None:
        monkeypatch.delenv("AUDIOSCORE_HOME")
    else:
        monkeypatch.setenv("AUDIOSCORE_HOME", value)
    assert home().folder == tmp_path / ".audioscore"
    assert home().folder.is_absolute(), "a later change of folder must not move the state"


def test_the_demo_never_shares_a_registry_with_production(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path))
    assert home(DEMO_WORKSPACE).folder == tmp_path / "demo"
    assert home_of_model(DEMO_MODEL) == home(DEMO_WORKSPACE)
    assert home_of_model("audioscore") == home()
    assert home_of_model(DEMO_MODEL).tracking_uri != home_of_model("audioscore").tracking_uri


def test_an_mlflow_server_has_the_registry_but_never_the_demos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert home_of_model("audioscore").tracking_uri == "http://mlflow:5000"
    assert home_of_model(DEMO_MODEL).tracking_uri == f"sqlite:///{tmp_path}/demo/mlflow.db"
    # What MLflow notes of the database it opened last.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/demo/mlflow.db")
    assert home_of_model("audioscore").tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    for name in ("bogus:/x", "postgresql://user:secret@host/db", "databricks:"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", name)
        assert home().probes == tmp_path / "probes.db", "who needs no registry is not stopped"
        with pytest.raises(UsageError, match=f"names a store of kind '{name.partition(':')[0]}'") as fault:
            str(home_of_model("audioscore").tracking_uri)
        assert "secret" not in str(fault.value)
        assert home_of_model(DEMO_MODEL).tracking_uri == f"sqlite:///{tmp_path}/demo/mlflow.db"
