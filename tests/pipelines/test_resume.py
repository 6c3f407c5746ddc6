"""What `--resume` reuses, what it runs again, and how runs are locked."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from audioscore.errors import UsageError
from pipelines.request import SubmitRequest
from pipelines.resume import (
    CACHE,
    CODE,
    OWNER,
    STEPS,
    code_digest,
    discard_moved,
    discard_other_code,
    end_processes,
    find_unfinished,
    fixed_folders,
    lock_run,
)

SETTINGS = {"data": {"uri": "/songs"}, "training": {"epochs": 3}}


def begun(runs: Path, name: str, settings: dict[str, Any], *, finished: bool = False) -> Path:
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    if finished:
        (folder / "result.json").write_text("{}", encoding="utf-8")
    return folder


def test_the_newest_run_without_a_result_is_resumed(tmp_path: Path) -> None:
    begun(tmp_path, "20260101-000000-aaaa", SETTINGS)
    begun(tmp_path, "20260102-000000-bbbb", SETTINGS, finished=True)
    newest = begun(tmp_path, "20260103-000000-cccc", SETTINGS)
    assert find_unfinished(tmp_path, SETTINGS) == newest


@pytest.mark.parametrize(
    ("finished", "settings", "named"),
    [
        (None, SETTINGS, "{folder}"),
        (True, SETTINGS, "20260101-000000-aaaa.*finished"),
        (
            False,
            {"data": {"uri": "/songs"}, "training": {"epochs": 5}, "split": {"seed": 3}},
            r"20260101-000000-aaaa.*\(split, training.epochs\)",
        ),
    ],
)
def test_nothing_to_resume(finished: bool | None, settings: dict[str, Any], named: str, tmp_path: Path) -> None:
    if finished is not None:
        begun(tmp_path, "20260101-000000-aaaa", SETTINGS, finished=finished)
    with pytest.raises(UsageError, match=named.replace("{folder}", str(tmp_path))):
        find_unfinished(tmp_path, settings)


def test_a_run_with_deprecated_keys_has_the_same_settings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = {"training": {"head_epochs": 5, "head": "predecessor"}, "evaluation": {"probes": {"clips": 9}}}
    new = {"training": {"head_warmup_epochs": 5, "head": "legacy"}, "evaluation": {"robustness": {"clips": 9}}}
    older = begun(tmp_path, "20260101-000000-aaaa", old)
    assert find_unfinished(tmp_path, new) == older
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_later_run_with_other_settings_is_skipped(tmp_path: Path) -> None:
    older = begun(tmp_path, "20260101-000000-aaaa", SETTINGS)
    newest = begun(tmp_path, "20260102-000000-bbbb", {**SETTINGS, "split": {"seed": 9}})
    assert find_unfinished(tmp_path, SETTINGS) == older
    assert find_unfinished(tmp_path) == newest


def test_the_code_digest_covers_the_files_that_steps_run(tmp_path: Path) -> None:
    for name, text in (("pipelines/a.py", "1"), ("components/b.py", "2"), ("data.dvc", "3")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    first = code_digest(tmp_path)
    (tmp_path / "data.dvc").write_text("4", encoding="utf-8")
    assert code_digest(tmp_path) == first
    (tmp_path / "requirements.txt").write_text("torch==3", encoding="utf-8")
    other = code_digest(tmp_path)
    (tmp_path / "pipelines" / "a.py").rename(tmp_path / "pipelines" / "c.py")
    assert len({first, other, code_digest(tmp_path)}) == 3


@pytest.mark.parametrize(
    ("code", "same", "other"),
    [
        ({"code_rev": "abc", "on": "local", "digest": "12"}, {"code_rev": "def"}, {"digest": "34"}),  # data committed
        ({"code_rev": "abc", "on": "docker", "image": "songs 0123"}, {}, {"code_rev": "def"}),
    ],
)
def test_outputs_of_other_code_are_deleted(
    tmp_path: Path, code: dict[str, str], same: dict[str, str], other: dict[str, str]
) -> None:
    for name in (STEPS, CACHE):
        (tmp_path / name).mkdir()
    (tmp_path / CODE).write_text(json.dumps(code), encoding="utf-8")
    assert discard_other_code(tmp_path, code) == code
    assert discard_other_code(tmp_path, {**code, **same}) == code
    assert (tmp_path / STEPS).is_dir()
    assert discard_other_code(tmp_path, {**code, **other}) is None
    assert not (tmp_path / STEPS).exists()
    assert not (tmp_path / CACHE).exists()


def test_a_run_is_one_process_at_a_time(tmp_path: Path) -> None:
    with lock_run(tmp_path / "night"), pytest.raises(UsageError, match="run night"), lock_run(tmp_path / "night"):
        pass
    with lock_run(tmp_path / "night"):
        pass


def test_steps_of_a_killed_run_are_ended(tmp_path: Path) -> None:
    sleeping = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
    ours, other = (
        subprocess.Popen(sleeping, env={**os.environ, OWNER: str(folder)}, stdout=subprocess.PIPE)
        for folder in (tmp_path / "run", tmp_path / "another")
    )
    try:
        for process in (ours, other):
            assert process.stdout is not None
            process.stdout.readline()
        assert end_processes(tmp_path / "run") == 1
        assert ours.poll() == -signal.SIGTERM
        assert other.poll() is None
    finally:
        for process in (ours, other):
            process.kill()
            process.communicate()


def test_folders_have_fixed_names_and_are_cleared_except_for_training(tmp_path: Path) -> None:
    from kfp.local import executor_input_utils as names

    before = names.get_local_pipeline_resource_name, names.construct_local_task_root
    with fixed_folders(lambda _: None):
        pipeline = names.get_local_pipeline_resource_name("audioscore")
        assert pipeline == names.get_local_pipeline_resource_name("audioscore") == "audioscore"
        for step, kept in (("sort-data", False), ("train-scorer", True)):
            folder = tmp_path / pipeline / step
            folder.mkdir(parents=True)
            (folder / "half").touch()
            assert Path(names.construct_local_task_root(str(tmp_path), pipeline, step)) == folder
            assert (folder / "half").exists() == kept
    assert (names.get_local_pipeline_resource_name, names.construct_local_task_root) == before


def test_each_hit_of_the_cache_is_reported() -> None:
    hits: list[str] = []
    level = logging.getLogger().level
    with fixed_folders(hits.append):
        logging.getLogger().info("Task sort-data cache hit (key=0123456789ab); skipping execution.")
        logging.getLogger().info("Task 'train-scorer' finished")
    assert hits == ["sort-data"]
    assert logging.getLogger().level == level


def program(request: SubmitRequest, home: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "AUDIOSCORE_HOME": str(home), "AUDIOSCORE_CODE_REVISION": "test"}
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", "submit", json.dumps(asdict(request))],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.services
def test_a_run_killed_in_every_step_has_the_same_result(small_run: SubmitRequest, tmp_path: Path) -> None:
    """Each attempt is killed at another time after the start of the next step; the last one is not killed."""
    whole = program(small_run, tmp_path / "undisturbed")
    out, printed = whole.communicate()
    assert whole.returncode == 0, printed
    expected, home = json.loads(out), tmp_path / "killed"
    steps = ["fetch", "validate", "sort", "extract_shard", "extract_features", "train", "evaluate", "register"]
    for number, step in enumerate(steps):
        attempt = program(replace(small_run, resume=number > 0), home)
        while not list(home.glob(f"runs/*/logs/*{step}*.log")):
            assert attempt.poll() is None, attempt.communicate()
            time.sleep(0.05)
        time.sleep(0.3 + 0.9 * (number % 4))
        attempt.kill()
        attempt.communicate()
    last = program(replace(small_run, resume=True), home)
    out, printed = last.communicate()
    assert last.returncode == 0, printed
    found = json.loads(out)
    assert len(list(home.glob("runs/*"))) == 1
    resumed = [line.split()[1] for line in printed.splitlines() if line.startswith("  kept")]
    assert resumed[:4] == ["validate_data", "sort_data", "extract_shard", "extract_features"]
    assert resumed.count("train_scorer") == 3
    assert "fetch_data" not in resumed  # the same address may hold new data
    assert found["plans"] == expected["plans"]
    assert (found["winner"], found["data"]) == (expected["winner"], expected["data"])


@pytest.mark.services
def test_sigterm_ends_a_run_and_its_steps(small_run: SubmitRequest, tmp_path: Path) -> None:
    """A service manager sends it to the process that it started only."""
    home = tmp_path / "home"
    settings = [part for setting in small_run.overrides for part in ("--set", setting)]
    arguments = ["--data", str(small_run.data), "--json", *settings]
    run = subprocess.Popen(
        [Path(sys.executable).with_name("audioscore"), "run", *arguments],
        env={**os.environ, "AUDIOSCORE_HOME": str(home)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while not list(home.glob("runs/*/logs/*validate*.log")):
            assert run.poll() is None, run.communicate()
            time.sleep(0.05)
        (folder,) = home.glob("runs/*")
        run.terminate()
        _, printed = run.communicate(timeout=120)
    finally:
        run.kill()
    assert run.returncode == 128 + signal.SIGTERM, printed
    assert "--resume" in printed.splitlines()[-1]
    assert end_processes(folder) == 0


@pytest.mark.parametrize("name", ["run", 'C#proj 新 %20"'])
def test_the_cache_of_a_moved_run_is_discarded(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    (folder / CACHE).mkdir(parents=True)
    output = {"__kfp_artifact__": True, "uri": str(folder / STEPS / "data"), "metadata": {}}
    stored = {"__kfp_artifact__": True, "uri": "s3://bucket/steps/data", "metadata": {}}
    listed = {"listed": [output | {"uri": (folder / STEPS / "more").as_uri()}], "text": '"uri": "/elsewhere"'}
    for number, entry in enumerate(({"data": output}, {"digest": "5f"}, {"stored": stored}, listed)):
        (folder / CACHE / f"{number}.json").write_text(json.dumps(entry), encoding="utf-8")
    assert not discard_moved(folder)
    (folder / CACHE / "damaged.json").write_text('{"uri": "/else', encoding="utf-8")
    assert not discard_moved(folder)
    assert len(list((folder / CACHE).iterdir())) == 5
    folder.rename(tmp_path / "moved")
    assert discard_moved(tmp_path / "moved")
    assert not (tmp_path / "moved" / CACHE).exists()
    assert not discard_moved(tmp_path / "moved")
