import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from audioscore.cli.app import app
from audioscore.config import DEMO, SMALL, load_config
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
        ([], ["audioscore demo"]),
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


@pytest.mark.parametrize(
    ("arguments", "program", "expected"),
    [
        ("demo", "submit", {"demo": True}),
        (
            "demo --set training.epochs=3 --json --resume", "submit",
            {"demo": True, "overrides": ["training.epochs=3"], "resume": True, "as_json": True},
        ),
        ("run", "submit", {}),
        ("run --on docker --resume", "submit", {"on": "docker", "resume": True}),
        (
            "run --config c.yaml --data d --set a=1 --set b=2 --dry-run --json", "submit",
            {"config": "c.yaml", "data": "d", "overrides": ["a=1", "b=2"], "dry_run": True, "as_json": True},
        ),
        ("run --require-promotion", "submit", {"require_promotion": True}),
        ("compile -o a.yaml", "compile", {"out": "a.yaml"}),
        (
            "compile --out a.yaml --config c.yaml --set a=1 --kubernetes", "compile",
            {"out": "a.yaml", "config": "c.yaml", "overrides": ["a=1"], "kubernetes": True},
        ),
    ],
)  # fmt: skip
def test_the_pipeline_replaces_the_process(
    arguments: str, program: str, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, list[str]]] = []

    def execute(path: str, command: list[str]) -> None:
        calls.append((path, command))
        raise SystemExit(0)  # os.execv does not return either

    monkeypatch.setattr("audioscore.cli.run.os.execv", execute)
    CliRunner().invoke(app, arguments.split())
    ((path, (*command, document)),) = calls
    assert (path, command) == (sys.executable, [sys.executable, "-m", "pipelines", program])
    assert json.loads(document) == expected


def show(*options: str) -> str:
    result = CliRunner().invoke(app, ["config", "show", *options], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_a_configuration_shows_the_keys_it_sets() -> None:
    values = yaml.safe_load(show())
    assert set(values) == {"encoders", "registry"}
    assert json.loads(show("--json")) == values


def test_resolved_shows_every_key() -> None:
    values = json.loads(show("--resolved", "--json"))
    assert values == load_config(SMALL).model_dump(mode="json")
    assert yaml.safe_load(show("--resolved")) == values


def test_overrides_and_another_file() -> None:
    values = json.loads(show("--config", str(DEMO), "--set", "training.epochs=7", "--json"))
    assert values["training"] == {"epochs": 7}
    assert values["registry"]["model"] == "audioscore-demo"


def test_a_wrong_override_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"training\.epoch\b"):
        show("--set", "training.epoch=3")
