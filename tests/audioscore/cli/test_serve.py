from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from audioscore.cli.serve import serve
from audioscore.errors import UsageError
from audioscore.serving import server

app = typer.Typer()
app.command()(serve)


def served_with(monkeypatch: pytest.MonkeyPatch, *options: str, **environment: str) -> dict[str, Any]:
    """Arguments of the server for these options."""
    received: dict[str, Any] = {}
    monkeypatch.setattr(
        server, "serve", lambda model, limits, **more: received.update(more, model=model, limits=limits)
    )
    CliRunner().invoke(app, options, env=environment, catch_exceptions=False)
    return received


def test_options_reach_the_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-a-file\n")
    options = ["--max-megabytes", "2", "--max-minutes", "1.5", "--queue", "3", "--watch", "0", "--port", "0", "--fast"]
    received = served_with(monkeypatch, *options, "--token-file", str(tmp_path / "token"), AUDIOSCORE_TOKEN="unused")
    limits = received["limits"]
    assert (limits.max_bytes, limits.max_seconds, limits.queue, limits.watch_seconds) == (2 << 20, 90.0, 3, 0)
    assert limits.token == "from-a-file"
    assert "from-a-file" not in repr(limits)
    assert (received["model"], received["port"], received["fast"], received["host"]) == (None, 0, True, "127.0.0.1")
    assert served_with(monkeypatch, AUDIOSCORE_TOKEN="from-outside")["limits"].token == "from-outside"
    assert served_with(monkeypatch)["limits"].token is None


@pytest.mark.parametrize("token", ["", "two words", "sch\u00f6n", "a\x07b"])
def test_an_invalid_token_is_refused(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    with pytest.raises(UsageError, match=r"^AUDIOSCORE_TOKEN: "):
        served_with(monkeypatch, AUDIOSCORE_TOKEN=token)
