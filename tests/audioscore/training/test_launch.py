import json
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


def test_several_are_torchruns_and_get_all_that_was_asked(
    ground: Any, tmp_path: Path, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ground.config(seeds=[1], epochs=1, processes=3)
    told: list[Any] = []

    def read(folder: Path) -> Any:
        ((*program, processes, number), options) = started[0][:5], started[0][5:]
        assert [*program, processes, number] == [sys.executable, "-m", "audioscore.training", "--processes", "3"]
        told.append(parse(options))
        return folder

    monkeypatch.setattr(launch, "read_trained", read)

    class Kept:
        """The folder of the resolved configuration, which outlives the run here."""

        def __enter__(self) -> str:
            (tmp_path / "kept").mkdir()
            return str(tmp_path / "kept")

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(launch.tempfile, "TemporaryDirectory", Kept)
    options = {"data_digest": "d.dir", "code_revision": "abc", "device": "cpu", "resume": True}
    target = tmp_path / "plan"
    assert launch_plan("hybrid", ground.index, ground.features, target, config, **options) == target
    (said,) = told
    assert (said.plan, said.single, said.out, said.resume, said.device) == (["hybrid"], True, target, True, "cpu")
    assert (said.index, said.features) == (ground.index, ground.features)
    assert (said.data_digest, said.code_revision) == ("d.dir", "abc")
    assert load_config(said.config) == config
    json.loads(said.config.read_text())


@pytest.mark.parametrize(("returned", "code"), [(2, 2), (70, 70), (-9, 137)])
def test_the_exit_code_of_what_failed_is_kept(monkeypatch: pytest.MonkeyPatch, returned: int, code: int) -> None:
    monkeypatch.setattr(subprocess, "run", lambda _: SimpleNamespace(returncode=returned))
    expected = r"^training by 4 processes failed; what went wrong is said above\.$"
    with pytest.raises(ProcessesFailed, match=expected) as fault:
        train_together(["--out", "x"], 4)
    assert fault.value.exit_code == code
    assert ProcessesFailed.exit_code == 2, "another failure starts anew"


def test_torchrun_starts_one_process_too_where_it_is_named(
    ground: Any, tmp_path: Path, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "read_trained", lambda folder: folder)
    config = ground.config(seeds=[1], epochs=1, launcher="torchrun")
    options = {"data_digest": "d.dir", "code_revision": "abc", "device": "cpu"}
    launch_plan("campplus_only", ground.index, ground.features, tmp_path / "plan", config, **options)
    ((*_, processes, number),) = (command[:5] for command in started)
    assert [processes, number] == ["--processes", "1"]
