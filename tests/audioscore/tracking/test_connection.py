import contextlib
import os
import socket
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes

from audioscore.data.transfer import network
from audioscore.errors import GateRefused, ModelError, ServerUnreachable
from audioscore.files import path_to_uri, uri_to_path
from audioscore.tracking import connection
from audioscore.tracking.connection import (
    ARTIFACT_ROOT,
    connect,
    database_exists,
    database_file,
    describe_error,
    initialise,
    require_database,
)


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


@pytest.mark.parametrize("code", ["INTERNAL_ERROR", "UNAUTHENTICATED", "PERMISSION_DENIED", "TEMPORARILY_UNAVAILABLE"])
def test_a_server_that_refuses_is_described(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    error = MlflowException("why", getattr(codes, code))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:pw@mlflow:5000")
    text = describe_error(error) or ""
    assert text.startswith("http://mlflow:5000: ")
    assert "(why)" in text
    assert "MLFLOW_TRACKING_URI" in text
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////srv/mlflow.db")
    assert describe_error(error) is None


@pytest.mark.parametrize("code", ["INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE"])
def test_faults_of_the_program_are_not_described(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert describe_error(MlflowException("why", getattr(codes, code))) is None
    assert describe_error(ValueError("why")) is None
    assert describe_error(UnicodeEncodeError("ascii", "歌", 0, 1, "why")) is None


def test_expected_errors_are_described() -> None:
    assert describe_error(GateRefused("a: b. c.")) == "a: b. c."
    assert (describe_error(PermissionError(13, "denied", "/srv/x")) or "").startswith("/srv/x: ")
    assert describe_error(UnicodeEncodeError("utf-8", "\udcff", 0, 1, "why")) is not None


def test_reading_does_not_create_a_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'gone' / 'mlflow.db'}"
    with pytest.raises(ModelError, match=f"^{tmp_path / 'gone'}: .*`audioscore run`.*`audioscore demo`"):
        require_database(uri)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"x", b"SQLite format 3", b"no database" * 1000, None])
def test_what_is_no_database_is_refused_and_not_changed(tmp_path: Path, content: bytes | None) -> None:
    database = tmp_path / "mlflow.db"
    if content is None:
        database.mkdir()
    else:
        database.write_bytes(content)
    uri = path_to_uri(database, "sqlite")
    for use in (require_database, connect, lambda uri: initialise(uri, "singers", tmp_path / "artifacts")):
        with pytest.raises(ModelError, match=f"^{database}: "):
            use(uri)
    assert database.is_dir() if content is None else database.read_bytes() == content


def test_an_empty_file_becomes_a_database_when_it_is_written(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    database.touch()
    uri = path_to_uri(database, "sqlite")
    assert not database_exists(uri)
    with pytest.raises(ModelError):
        require_database(uri)
    assert database.read_bytes() == b""
    initialise(uri, "singers", tmp_path / "artifacts")
    assert database_exists(uri)
    assert connect(uri).get_experiment_by_name("singers") is not None


def test_a_server_has_no_database_file() -> None:
    assert database_file("https://mlflow.example.org") is None
    assert database_exists("https://mlflow.example.org")
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
