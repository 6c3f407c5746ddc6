from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from audioscore.cli.app import app
from audioscore.errors import UsageError
from audioscore.home import DEMO_MODEL, home, home_of_model


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["report", *arguments])


def finished(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("<html>")
    return folder / "report.html"


def test_the_last_finished_run_by_default_and_any_by_name() -> None:
    first = finished(home().runs / "20260101-100000-aaaa")
    last = finished(home_of_model(DEMO_MODEL).runs / "20260301-100000-bbbb")
    (home().runs / "20260401-100000-cccc").mkdir()  # did not finish
    assert run().stdout == f"{last}\n"
    for named in ("20260101-100000-aaaa", str(first.parent)):
        assert run(named).stdout == f"{first}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["no run"]),
        (["gone"], ["gone", "audioscore models --json"]),
        (["unfinished"], ["unfinished", "report.html", "logs"]),
        (["old", "--render"], ["old", "steps"]),
    ],
)
def test_a_run_without_a_report_is_an_error(arguments: list[str], words: list[str]) -> None:
    if arguments:
        (home().runs / "unfinished").mkdir(parents=True)
        finished(home().runs / "old")
    result = run(*arguments)
    assert isinstance(result.exception, UsageError)
    assert [word for word in words if word not in str(result.exception)] == []
