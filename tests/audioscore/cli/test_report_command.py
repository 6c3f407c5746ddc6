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
    ("arguments", "sentence"),
    [
        ([], "no run has finished in "),
        (["gone"], "gone: no such run. Give its id, as `audioscore models --json` shows it, or its folder."),
    ],
)
def test_a_run_that_is_not_there(arguments: list[str], sentence: str) -> None:
    found = run(*arguments)
    assert isinstance(found.exception, UsageError)
    assert sentence in str(found.exception)


def test_a_run_that_did_not_finish_or_cannot_be_rendered_again() -> None:
    (home().runs / "one").mkdir(parents=True)
    found = run("one")
    assert isinstance(found.exception, UsageError)
    assert "one: holds no report.html; the run did not finish. Its logs are in " in str(found.exception)
    finished(home().runs / "two")
    found = run("two", "--render")
    assert isinstance(found.exception, UsageError)
    assert "two: its steps were removed, or are of an older version." in str(found.exception)
