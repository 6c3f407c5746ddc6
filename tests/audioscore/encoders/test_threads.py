import os
import subprocess
import sys

import pytest

from audioscore.encoders.threads import wait_asleep

COMMAND = """
import sys
from typer.testing import CliRunner
from audioscore.cli.app import app
from audioscore.encoders import threads

threads.wait_asleep = lambda: print("torch" in sys.modules)
print(CliRunner().invoke(app, sys.argv[1:]).stdout)
"""


def test_threads_wait_asleep_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    wait_asleep()
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    wait_asleep()
    assert os.environ.pop("OMP_WAIT_POLICY") == "passive"


@pytest.mark.parametrize("command", [["score", "gone.wav", "--model", "nowhere"], ["serve", "--model", "nowhere"]])
def test_it_is_said_before_torch_is_there_to_read_it(command: list[str]) -> None:
    said = subprocess.run([sys.executable, "-c", COMMAND, *command], check=True, capture_output=True, text=True)
    assert said.stdout.split()[0] == "False"
