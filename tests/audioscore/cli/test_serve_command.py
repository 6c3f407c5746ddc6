from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from audioscore.cli.serve_command import serve
from audioscore.errors import UsageError
from audioscore.serving import server

app = typer.Typer()
app.command()(serve)


def asked(monkeypatch: pytest.MonkeyPatch, *options: str, **environment: str) -> dict[str, Any]:
    """What the server is told for these options."""
    told: dict[str, Any] = {}
    monkeypatch.setattr(
        server, "serve", lambda model, settings, **more: told.update(more, model=model, limits=settings)
    )
    CliRunner().invoke(app, options, env=environment, catch_exceptions=False)
    return told


def test_options_reach_the_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-a-file\n")
    options = ["--max-megabytes", "2", "--max-minutes", "1.5", "--queue", "3", "--watch", "0", "--port", "0", "--fast"]
    told = asked(monkeypatch, *options, "--token-file", str(tmp_path / "token"), AUDIOSCORE_TOKEN="unused")
    limits = told["limits"]
    assert (limits.max_bytes, limits.max_seconds, limits.queue, limits.watch_seconds) == (2 << 20, 90.0, 3, 0)
    assert limits.token == "from-a-file"
    assert "from-a-file" not in repr(limits)
    assert (told["model"], told["port"], told["fast"], told["host"]) == (None, 0, True, "127.0.0.1")
    assert asked(monkeypatch, AUDIOSCORE_TOKEN="from-outside")["limits"].token == "from-outside"
    assert asked(monkeypatch)["limits"].token is None


@pytest.mark.parametrize("token", ["", "two words", "sch\u00f6n", "a\x07b"])
def test_what_is_no_token_is_refused(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    with pytest.raises(UsageError, match=r"^AUDIOSCORE_TOKEN: holds no token\. Write one of printable ASCII letters"):
        asked(monkeypatch, AUDIOSCORE_TOKEN=token)
