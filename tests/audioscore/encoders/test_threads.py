import os
import subprocess
import sys

import pytest

from audioscore.encoders.compute import wait_asleep

COMMAND = """
import sys
from typer.testing import CliRunner
from audioscore.cli.app import app
from audioscore.encoders import compute

compute.wait_asleep = lambda: print("torch" in sys.modules)
print(CliRunner().invoke(app, sys.argv[1:]).stdout)
"""


def test_threads_wait_asleep_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    wait_asleep()
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    wait_asleep()
    policy = os.environ.pop("OMP_WAIT_POLICY")  # set outside monkeypatch
    assert policy == "passive"


@pytest.mark.parametrize("command", [["score", "gone.wav", "--model", "nowhere"], ["serve", "--model", "nowhere"]])
def test_the_policy_is_set_before_torch_is_imported(command: list[str]) -> None:
    run = subprocess.run([sys.executable, "-c", COMMAND, *command], check=True, capture_output=True, text=True)
    assert run.stdout.split()[0] == "False"
