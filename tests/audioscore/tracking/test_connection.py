import contextlib
import socket
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest

from audioscore.errors import ModelError
from audioscore.tracking import connection
from audioscore.tracking.connection import connect, database_file, initialise, require_database


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
    monkeypatch.setattr(connection, "SERVER_TIMEOUT", 0.4)
    with socket.socket() as held:  # bound, and not listening
        held.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(ModelError, match=f"^{address}: .*MLFLOW_TRACKING_URI"):
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
