import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import audioscore
from audioscore.cli import app as cli

HEAVY = ("torch", "mlflow", "kfp", "pandas", "scipy", "great_expectations", "matplotlib", "boto3", "dvc", "av", "soxr")
LIST_HEAVY = f"import sys; print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"


def python(program: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)


def test_importing_the_library_imports_nothing_heavy() -> None:
    assert python(f"import audioscore\n{LIST_HEAVY}").stderr.strip() == "[]"


def test_asking_for_help_imports_nothing_heavy() -> None:
    program = (
        "import atexit, sys\n"
        f"atexit.register(lambda: exec({LIST_HEAVY!r}))\n"
        "sys.argv = ['audioscore', '--help']\n"
        "from audioscore.cli.app import main\n"
        "main()\n"
    )
    found = python(program)
    assert found.stderr.strip() == "[]"
    assert "Score singing on the 50-99 scale" in found.stdout


def test_help_lists_every_command() -> None:
    said = CliRunner().invoke(cli.app, ["--help"])
    assert said.exit_code == 0
    commands = (
        "demo", "run", "train", "evaluate", "compare", "convert", "doctor", "score", "suggest", "models", "promote",
        "rollback", "report", "data", "encoders", "config",
    )  # fmt: skip
    for command in commands:
        assert f" {command} " in said.stdout
    for command in ("demo", "run", "doctor", "score", "models", "data validate", "data pull", "config show"):
        assert CliRunner().invoke(cli.app, [*command.split(), "--help"]).exit_code == 0


def call(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit code of the installed program `audioscore`."""
    monkeypatch.setattr(sys, "argv", ["audioscore", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_an_error_is_one_line_on_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    assert call(["data", "validate", str(gone)], monkeypatch) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err == f"error: {gone}: no such folder. Give the folder that holds the labels table.\n"


def test_scoring_without_a_model_is_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path))
    assert call(["score", "a.wav", "--json"], monkeypatch) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("error: no champion is registered in ")
    assert streams.err.count("\n") == 1


def test_an_unknown_option_is_wrong_usage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["score", "--loud", "a.wav"], monkeypatch) == 2
    assert "--loud" in capsys.readouterr().err


def test_a_place_that_is_none_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["run", "--on", "moon"], monkeypatch) == 2
    assert capsys.readouterr().err == "error: --on moon: there are local, docker and cluster.\n"


def test_the_version_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["--version"], monkeypatch) == 0
    assert capsys.readouterr().out == f"audioscore {audioscore.__version__}\n"


def test_an_interrupt_has_its_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Typer turns it into exit code 130; the program adds nothing to that."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("audioscore.home.home_of_model", lambda _: interrupted())
    assert call(["models"], monkeypatch) == 130


def test_a_file_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "report.html")

    monkeypatch.setattr("audioscore.home.home_of_model", full)
    assert call(["models"], monkeypatch) == 2
    expected = "error: report.html: No space left on device. Check the path, its permissions, and the free space.\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["demo"], ["--demo"]),
        (["demo", "--set", "training.epochs=3", "--json"], ["--demo", "--set", "training.epochs=3", "--json"]),
        (["run"], []),
        (["run", "--on", "docker", "--resume"], ["--on", "docker", "--resume"]),
        (
            ["run", "--config", "c.yaml", "--data", "d", "--set", "a=1", "--set", "b=2", "--dry-run", "--json"],
            [
                "--config",
                "c.yaml",
                "--data",
                "d",
                "--dry-run",
                "--set",
                "a=1",
                "--set",
                "b=2",
                "--json",
            ],
        ),
        (["run", "--require-promotion"], ["--require-promotion"]),
    ],
)
def test_runs_are_a_program_of_their_own(
    arguments: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, list[str]]] = []

    def become(program: str, command: list[str]) -> None:
        calls.append((program, command))
        raise SystemExit(0)  # it never returns

    monkeypatch.setattr("audioscore.cli.app.os.execv", become)
    CliRunner().invoke(cli.app, arguments)
    assert calls == [(sys.executable, [sys.executable, "-m", "pipelines", "submit", *expected])]
