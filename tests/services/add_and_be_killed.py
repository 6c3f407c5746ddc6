"""Add a delivery to two repositories: to one without interruption, to the other after kills at random moments.

Arguments: UNDISTURBED KILLED LABELS KILLS SEED. Each attempt is a fork of this process, so that the kills happen during
the work and not during the imports.
"""

import importlib
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

IMPORTED = (
    *("great_expectations", "pandas", "audioscore.data.delivery.new_version", "audioscore.data.gate.report"),
    "audioscore.encoders.extract",
)


def attempt(repository: Path, labels: Path) -> int:
    """Start `audioscore data add` in a child process; returns its process id."""
    number = os.fork()
    if number:
        return number
    code = 70
    try:
        from audioscore.cli.app import app

        os.chdir(repository)
        app(["data", "add", str(labels), "--data", "songs"], standalone_mode=True)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def end_of(number: int) -> int:
    """Wait for an attempt; returns its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def main() -> None:
    """Kill KILLS attempts; a delivery that was completed before its kill is removed again."""
    undisturbed, killed, labels = map(Path, sys.argv[1:4])
    kills, seed = map(int, sys.argv[4:6])
    for name in IMPORTED:
        importlib.import_module(name)
    started = time.monotonic()
    codes = [end_of(attempt(undisturbed, labels))]
    longest = time.monotonic() - started
    dice = random.Random(seed)
    killed_attempts = 0
    while killed_attempts < kills:
        number = attempt(killed, labels)
        time.sleep(dice.uniform(0, longest))
        if os.waitpid(number, os.WNOHANG) == (0, 0):
            killed_attempts += 1
            os.kill(number, signal.SIGKILL)
            os.waitpid(number, 0)
        else:
            shutil.rmtree(killed / "songs")
            (killed / "songs.dvc").unlink()
    codes.append(end_of(attempt(killed, labels)))
    sys.exit(max(codes))


if __name__ == "__main__":
    main()
