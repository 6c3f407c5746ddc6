import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from audioscore.config import load_config
from audioscore.training import launch
from audioscore.training.__main__ import parse
from audioscore.training.launch import ProcessesFailed, launch_plan, train_together


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that would have been run; they end well."""
    commands: list[list[str]] = []

    def run(command: list[str]) -> Any:
        commands.append(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_one_process_trains_here(ground: Any, tmp_path: Path, started: list[list[str]]) -> None:
    config = ground.config(seeds=[1], epochs=1)
    options = {"data_digest": "d.dir", "code_revision": "abc", "device": "cpu"}
    found = launch_plan("campplus_only", ground.index, ground.features, tmp_path / "plan", config, **options)
    assert (found.plan, list(found.outcomes)) == ("campplus_only", [1])
    assert started == []


def test_several_processes_get_every_option(ground: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, target = ground.config(seeds=[1], epochs=1, processes=3), tmp_path / "plan"
    given: list[Any] = []

    def run(command: list[str]) -> Any:
        assert command[:5] == [sys.executable, "-m", "audioscore.training", "--processes", "3"]
        options = parse(command[5:])
        given.extend([options, load_config(options.config)])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(launch, "read_trained", lambda folder: folder)
    options = {"data_digest": "d.dir", "code_revision": "abc", "device": "cpu", "resume": True}
    assert launch_plan("hybrid", ground.index, ground.features, target, config, **options) == target
    found, resolved = given
    assert (found.plan, found.single, found.out, found.resume) == (["hybrid"], True, target, True)
    assert (found.index, found.features) == (ground.index, ground.features)
    assert (found.data_digest, found.code_revision, found.device) == ("d.dir", "abc", "cpu")
    assert resolved == config


@pytest.mark.parametrize(("returned", "code"), [(2, 2), (70, 70), (-9, 137)])
def test_the_exit_code_of_failed_processes_is_kept(monkeypatch: pytest.MonkeyPatch, returned: int, code: int) -> None:
    monkeypatch.setattr(subprocess, "run", lambda _: SimpleNamespace(returncode=returned))
    with pytest.raises(ProcessesFailed, match=r"\b4\b") as fault:
        train_together(["--out", "x"], 4)
    assert fault.value.exit_code == code
    assert ProcessesFailed.exit_code == 2, "of the class, for the next failure"


def test_torchrun_starts_one_process_too_where_it_is_named(
    ground: Any, tmp_path: Path, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "read_trained", lambda folder: folder)
    config = ground.config(seeds=[1], epochs=1, launcher="torchrun")
    options = {"data_digest": "d.dir", "code_revision": "abc", "device": "cpu"}
    launch_plan("campplus_only", ground.index, ground.features, tmp_path / "plan", config, **options)
    ((*_, processes, number),) = (command[:5] for command in started)
    assert [processes, number] == ["--processes", "1"]
