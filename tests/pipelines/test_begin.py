"""`python -m pipelines NAME`, and an interrupt while it is loaded."""

import signal
import subprocess
import sys
from pathlib import Path

from pipelines import __main__ as begin

SLOW = """
import importlib, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent process may have made it ignored
def load(name):
    print("loading", flush=True)
    time.sleep(600)
importlib.import_module = load
from pipelines.__main__ import main
main(["slow"])
"""


def test_a_program_is_run_with_its_options_and_handlers_are_as_before(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    assert begin.main(["compile", "--out", str(tmp_path / "pipeline.yaml")]) == 0
    assert (tmp_path / "pipeline.yaml").is_file()
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_interrupt_while_it_is_loaded_is_quiet() -> None:
    command = [sys.executable, "-c", SLOW]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None
        assert one.stdout.readline() == "loading\n"
        one.send_signal(signal.SIGINT)
        try:
            _, said = one.communicate(timeout=60)
        finally:
            one.kill()
    assert one.returncode == -signal.SIGINT
    assert said == ""
