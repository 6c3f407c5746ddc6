import contextlib
import os
import socket
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest

from audioscore.data.transfer import network
from audioscore.errors import ModelError, ServerUnreachable
from audioscore.files import path_to_uri, uri_to_path
from audioscore.tracking import connection
from audioscore.tracking.connection import ARTIFACT_ROOT, connect, database_file, initialise, require_database


def test_initialising_twice_creates_one_experiment(tracking_uri: str, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("select count(*) from experiments where name = 'singers'").fetchone() == (1,)
    first = initialise(tracking_uri, "duets", tmp_path / "artifacts")
    assert initialise(tracking_uri, "duets", tmp_path / "elsewhere") == first
    experiments = [found for found in connect(tracking_uri).search_experiments() if found.name == "duets"]
    assert [found.experiment_id for found in experiments] == [first]
    assert experiments[0].artifact_location == (tmp_path / "artifacts" / "duets").as_uri()


def test_mlflows_globals_point_at_the_same_database(tracking_uri: str) -> None:
    connect(tracking_uri)
    assert mlflow.get_tracking_uri() == mlflow.get_registry_uri() == tracking_uri


def test_an_address_without_a_server_is_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(network, "PAUSE", 0.01)
    monkeypatch.setattr(connection, "PATIENCE", 0.1)
    with socket.socket() as held:  # bound, and not listening
        held.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(ServerUnreachable, match=f"^{address}: .*MLFLOW_TRACKING_URI"):
            connect(address)
    assert address in caplog.text


def test_a_server_is_asked_once_and_any_answer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    asked: list[str] = []

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(401)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for _ in range(2):
            connect(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert asked == ["/"]


def test_reading_does_not_create_a_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'gone' / 'mlflow.db'}"
    with pytest.raises(ModelError, match=f"^{tmp_path / 'gone'}: .*`audioscore run`.*`audioscore demo`"):
        require_database(uri)
    assert list(tmp_path.iterdir()) == []


def test_a_server_has_no_database_file() -> None:
    assert database_file("https://mlflow.example.org") is None
    require_database("https://mlflow.example.org")
    assert database_file("sqlite:///relative.db") == Path("relative.db")


def test_a_folder_with_any_name_holds_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "C#proj 新 %20?x:y '\""
    folder.mkdir()
    monkeypatch.chdir(folder)  # MLflow writes it into SQL
    database = folder / "state" / "mlflow.db"
    uri = path_to_uri(database, "sqlite")
    assert database_file(uri) == database
    identifier = initialise(uri, "singers", folder / "artifacts")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [database]
    client = connect(uri)
    found = {one.name: uri_to_path(one.artifact_location) for one in client.search_experiments()}
    assert found == {"singers": folder / "artifacts/singers", "Default": folder / "state/mlartifacts/0"}
    run = client.create_run(identifier)
    client.log_text(run.info.run_id, "curves", "page.html")
    assert len(list((folder / "artifacts/singers").rglob("page.html"))) == 1
    assert ARTIFACT_ROOT not in os.environ
