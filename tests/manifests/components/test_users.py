"""The Job that creates the MLflow users, against a local server with the API of MLflow."""

import json
import runpy
import urllib.error
from base64 import b64decode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

USERS = Path(__file__).resolve().parents[3] / "manifests" / "components" / "mlflow" / "users.py"


class UserServer(BaseHTTPRequestHandler):
    users: dict[str, str]
    admin = "right"

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        login = b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode()
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}"
        values, (path, _, query) = json.loads(text), self.path.partition("?")
        status, action = 200, path.removeprefix("/api/2.0/mlflow/users/")
        if login != f"admin:{self.admin}":
            status = 401
        elif action == "get":
            status = 200 if query.removeprefix("username=") in self.users else 404
        elif (self.command, action) in (("POST", "create"), ("PATCH", "update-password")):
            self.users[values["username"]] = values["password"]
        else:
            status = 405
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.do_GET()

    def do_PATCH(self) -> None:
        self.do_GET()


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The server's users, by name; the Job's environment points to the server."""
    UserServer.users = {}
    with HTTPServer(("127.0.0.1", 0), UserServer) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "right")
        monkeypatch.setenv("PIPELINE_PASSWORD", "first")
        monkeypatch.setenv("SERVING_PASSWORD", "second")
        yield UserServer.users
        server.shutdown()
        thread.join()


def test_users_are_created_and_get_new_passwords(
    users: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runpy.run_path(str(USERS), run_name="__main__")
    assert users == {"pipeline": "first", "serving": "second"}
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["pipeline", "serving"]
    monkeypatch.setenv("SERVING_PASSWORD", "third")
    runpy.run_path(str(USERS), run_name="__main__")
    assert users == {"pipeline": "first", "serving": "third"}
    assert "third" not in capsys.readouterr().out


def test_a_wrong_administrator_password_creates_no_user(users: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "wrong")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        runpy.run_path(str(USERS), run_name="__main__")
    assert users == {}
