"""`python -m pipelines PROGRAM JSON`, and an interrupt while the program is loaded."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import __main__ as program

SLOW = """
import importlib, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # the parent process may ignore the signal
def load(name):
    print("loading", flush=True)
    time.sleep(600)
importlib.import_module = load
from pipelines.__main__ import main
main(["submit", "{}"])
"""


def test_a_program_runs_its_request_and_the_handler_is_restored(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    assert program.main(["compile", json.dumps({"out": str(tmp_path / "pipeline.yaml")})]) == 0
    assert (tmp_path / "pipeline.yaml").is_file()
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_wrong_document_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["submit", '{"loud": true}']) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "loud" in error


def test_an_interrupt_during_loading_prints_nothing() -> None:
    command = [sys.executable, "-c", SLOW]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        try:
            _, printed = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGINT
    assert printed == ""
