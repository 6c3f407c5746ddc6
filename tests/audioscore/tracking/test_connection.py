import sqlite3
from pathlib import Path

import pytest

from audioscore.errors import ModelError
from audioscore.tracking.connection import connect, database_file, initialise, require_database


def test_initialising_twice_creates_one_experiment(tracking_uri: str, tmp_path: Path) -> None:
    first = initialise(tracking_uri, "duets", tmp_path / "artifacts")
    assert initialise(tracking_uri, "duets", tmp_path / "elsewhere") == first
    experiments = [found for found in connect(tracking_uri).search_experiments() if found.name == "duets"]
    assert [found.experiment_id for found in experiments] == [first]
    assert experiments[0].artifact_location == (tmp_path / "artifacts" / "duets").as_uri()


def test_initialising_makes_the_folder_and_the_tables(new_database: Path) -> None:
    with sqlite3.connect(new_database) as database:
        found = database.execute("select count(*) from experiments where name = 'singers'").fetchone()
    database.close()
    assert found == (1,)


def test_mlflows_globals_point_at_the_same_place(tracking_uri: str) -> None:
    import mlflow

    connect(tracking_uri)
    assert mlflow.get_tracking_uri() == mlflow.get_registry_uri() == tracking_uri


def test_reading_does_not_create_a_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'gone' / 'mlflow.db'}"
    with pytest.raises(ModelError, match=r"gone: no model has been registered there yet\. Run `audioscore demo`"):
        require_database(uri)
    assert list(tmp_path.iterdir()) == []


def test_a_server_has_no_database_file() -> None:
    assert database_file("https://mlflow.example.org") is None
    require_database("https://mlflow.example.org")
    assert database_file("sqlite:///relative.db") == Path("relative.db")
