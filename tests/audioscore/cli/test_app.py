import subprocess
import sys

import pytest
from typer.testing import CliRunner

import audioscore
from audioscore.cli import app as cli

HEAVY = ("torch", "mlflow", "kfp", "pandas", "scipy", "great_expectations", "matplotlib", "boto3", "dvc", "av", "soxr")
LIST_HEAVY = f"import sys; print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
COMMANDS = (
    "demo", "run", "train", "evaluate", "compare", "convert", "doctor", "score", "suggest", "models", "promote",
    "rollback", "report", "data", "encoders", "config",
)  # fmt: skip


def python(program: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)


def test_importing_the_library_imports_nothing_heavy() -> None:
    light = python(f"import sys, audioscore; print({{'numpy', 'typer', *{HEAVY!r}}} & set(sys.modules))")
    assert light.stdout == "set()\n"


def test_help_of_the_program_imports_nothing_heavy() -> None:
    result = python(
        "import atexit, sys\n"
        f"atexit.register(lambda: exec({LIST_HEAVY!r}))\n"
        "sys.argv = ['audioscore', '--help']\n"
        "from audioscore.cli.app import main\n"
        "main()\n"
    )
    assert result.stderr.strip() == "[]"
    assert [name for name in COMMANDS if f" {name} " not in result.stdout] == []


@pytest.mark.parametrize("command", [*COMMANDS, "data validate", "data pull", "config show"])
def test_every_command_has_help(command: str) -> None:
    assert CliRunner().invoke(cli.app, [*command.split(), "--help"]).exit_code == 0


def call(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit code of the installed program `audioscore`."""
    monkeypatch.setattr(sys, "argv", ["audioscore", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["data", "validate", "gone"], ["gone"]),
        (["score", "a.wav", "--json"], ["champion"]),
        (["run", "--on", "moon"], ["--on moon", "local", "docker", "cluster"]),
    ],
)
def test_an_error_is_one_line_on_standard_error(
    arguments: list[str], names: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(arguments, monkeypatch) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("error: ")
    assert streams.err.count("\n") == 1
    assert [name for name in names if name not in streams.err] == []


def test_an_unknown_option_has_exit_code_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["score", "--loud", "a.wav"], monkeypatch) == 2
    assert "--loud" in capsys.readouterr().err


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["--version"], monkeypatch) == 0
    assert capsys.readouterr().out == f"audioscore {audioscore.__version__}\n"


@pytest.mark.parametrize("fault", ["mlflow", "name"])
def test_errors_of_mlflow_and_of_names_are_one_line(
    fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        if fault == "name":
            "\udcb8.wav".encode()
        from mlflow.exceptions import MlflowException

        raise MlflowException("no JSON\nat all")

    monkeypatch.setattr("audioscore.home.home_of_model", fail)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:pw@127.0.0.1:1")
    assert call(["models"], monkeypatch) == 2
    error = capsys.readouterr().err
    assert ("MLFLOW_TRACKING_URI" if fault == "mlflow" else r"\udcb8.wav") in error
    assert error.count("\n") == 1
    assert "pw" not in error


@pytest.mark.parametrize(
    ("fault", "code"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device", "report.html"), 2)]
)
def test_exit_codes_of_an_interrupt_and_a_full_disk(
    fault: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr("audioscore.home.home_of_model", fail)
    assert call(["models"], monkeypatch) == code
    if code == 2:
        error = capsys.readouterr().err
        assert error.startswith("error: report.html: No space left on device")
        assert error.count("\n") == 1
