import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from audioscore import errors
from audioscore.errors import UsageError
from audioscore.platforms import ContainersSection
from pipelines.steplog import (
    KILLED,
    OUT_OF_MEMORY,
    Step,
    StepFailed,
    StepLog,
    container_cause,
    step_error,
    steps_table,
)

CYAN, GREEN, RED, END = "\x1b[96m", "\x1b[92m", "\x1b[91m", "\x1b[0m"
RULE = "-" * 80
SECTION = ContainersSection(image="localhost/python-old:1", memory="4g")
STEP = "[KFP Executor 2026-03-02 10:11:12,413"


def started(name: str) -> str:
    return f"10:11:12.042 - INFO - Executing task {CYAN}'{name}'{END}\n10:11:12.042 - INFO - Streamed logs:\n\n"


def finished(name: str, status: str = "SUCCESS") -> str:
    colour = GREEN if status == "SUCCESS" else RED
    return f"10:11:19.284 - INFO - Task {CYAN}'{name}'{END} finished with status {colour}{status}{END}\n{RULE}\n"


RECORDED = (
    f"10:11:12.001 - INFO - Running pipeline: \x1b[95m'audioscore'{END}\n{RULE}\n"
    + started("extract-features")
    + f"    {STEP} INFO]: Looking for component `extract_features` in --component_module_path `step.py`\n"
    + f"    {STEP} INFO]: Got executor_input:\n"
    + '    {\n        "inputs": {\n            "parameterValues": {\n                "code_rev": "12ab"\n'
    + "            }\n        }\n    }\n"
    + f"    {STEP} INFO]: features: 40 of 48 clips reused from the store, 8 to extract\n"
    + f"    {STEP} INFO]: extracted 8 of 8 clips\n"
    + f"    {STEP} INFO]: Wrote executor output file to out.json.\n\n"
    + finished("extract-features")
    + started("train-scorer")
    + '    {\n                "plan": "hybrid",\n    }\n'
    + f"    {STEP} WARNING]: val split: only 3 singers\n"
    + finished("train-scorer")
)
FAILED = (
    started("validate-data")
    + "    Traceback (most recent call last):\n"
    + '      File "accepted.py", line 36, in run_gate\n'
    + "    audioscore.errors.GateRefused: data gate: 12 of 48 clips are rejected. See [the] report.\n\n"
    + finished("validate-data", "FAILURE")
)


def feed(folder: Path, text: str, size: int = 1 << 20) -> tuple[StepLog, str]:
    """Write a text in pieces of `size` characters; returns the log and the console's output."""
    screen = io.StringIO()
    with StepLog(folder / "logs", Console(file=screen, width=200)) as log:
        assert log.writable()
        for start in range(0, len(text), size):
            piece = text[start : start + size]
            assert log.write(piece) == len(piece)
    return log, screen.getvalue()


@pytest.mark.parametrize("size", [1, 7, 64, 1 << 20])
def test_steps_statuses_notes_and_files(tmp_path: Path, size: int) -> None:
    log, shown = feed(tmp_path, RECORDED, size)
    statuses = [(step.name, step.status) for step in log.steps]
    assert statuses == [("extract_features", "done"), ("train_scorer (hybrid)", "done")]
    assert [step.log.name for step in log.steps] == ["01-extract_features.log", "02-train_scorer.log"]
    assert sorted((tmp_path / "logs").iterdir()) == [step.log for step in log.steps]
    assert log.steps[0].notes == ["features: 40 of 48 clips reused from the store, 8 to extract"]
    assert log.steps[0].last == "extracted 8 of 8 clips"
    assert log.steps[1].notes == ["val split: only 3 singers"]
    assert all(step.error is None and step.seconds is not None for step in log.steps)
    assert re.search(r"done  extract_features +\d+\.\d s\n +features: 40 of 48 clips reused", shown)
    assert log.running is None


def test_a_steps_file_holds_its_lines_without_colours(tmp_path: Path) -> None:
    log, _ = feed(tmp_path, RECORDED)
    text = log.steps[0].log.read_text(encoding="utf-8")
    assert "\x1b" not in text
    assert f"\n{STEP} INFO]: extracted 8 of 8 clips\n" in text
    assert '\n{\n    "inputs": {\n' in text
    assert "hybrid" not in text


def test_a_failed_step_keeps_the_error_and_its_message(tmp_path: Path) -> None:
    log, shown = feed(tmp_path, RECORDED + FAILED)
    failed, message = log.steps[-1], "data gate: 12 of 48 clips are rejected. See [the] report."
    assert (failed.name, failed.status) == ("validate_data", "failed")
    assert failed.error == ("GateRefused", message)
    assert re.search("failed +validate_data", shown)
    error = step_error(log.steps, RuntimeError("Inner task failed"))
    assert isinstance(error, errors.GateRefused)
    assert str(error) == message


def test_a_step_that_never_finished_is_stopped(tmp_path: Path) -> None:
    log, shown = feed(tmp_path, started("fetch-data") + "    the last line has no end")
    assert [(step.name, step.status) for step in log.steps] == [("fetch_data", "stopped")]
    assert log.steps[0].log.read_text(encoding="utf-8").endswith("the last line has no end\n")
    assert re.search("stopped +fetch_data", shown)


def test_a_step_that_starts_before_the_last_one_finished_closes_it(tmp_path: Path) -> None:
    log, _ = feed(tmp_path, started("a") + "    one\n" + started("b") + "    two\n" + finished("b"))
    assert [(step.name, step.status) for step in log.steps] == [("a", "stopped"), ("b", "done")]
    assert "two" not in log.steps[0].log.read_text(encoding="utf-8")


def test_text_outside_steps_is_dropped(tmp_path: Path) -> None:
    log, shown = feed(tmp_path, f"{RULE}\nhello\n" + finished("never-started"))
    assert (log.steps, shown) == ([], "")
    assert list((tmp_path / "logs").iterdir()) == []


def test_a_terminal_shows_the_running_step(tmp_path: Path) -> None:
    screen = io.StringIO()
    with StepLog(tmp_path, Console(file=screen, force_terminal=True, width=120)) as log:
        log.write(started("train-scorer") + f"    {STEP} INFO]: hybrid, seed [1]: 30 clips to train on\n")
        assert log.running is log.steps[0]
        assert log.steps[0].last == "hybrid, seed [1]: 30 clips to train on"
        log.write(finished("train-scorer"))
    assert "train_scorer" in screen.getvalue()


def test_an_unexpected_error_names_the_log(tmp_path: Path) -> None:
    log, _ = feed(tmp_path, started("a") + "    ZeroDivisionError: division by zero\n" + finished("a", "FAILURE"))
    error = step_error(log.steps, RuntimeError("Inner task failed"))
    assert isinstance(error, StepFailed)
    assert error.exit_code == 70
    assert str(error).startswith("step a: ")
    assert str(log.steps[0].log) in str(error)
    assert "no such task" in str(step_error([], RuntimeError("no such task")))


def test_the_table_sums_the_seconds(tmp_path: Path) -> None:
    steps = [Step("a", tmp_path / "01-a.log", 0.0, 1.5, "done"), Step("b", tmp_path / "02-b.log", 0.0, 2.0, "done")]
    screen = io.StringIO()
    Console(file=screen, width=120).print(steps_table(steps))
    lines = [line.split() for line in screen.getvalue().splitlines()]
    assert lines == [
        ["step", "status", "seconds", "log"],
        ["a", "done", "1.5", "01-a.log"],
        ["b", "done", "2.0", "02-b.log"],
        ["all", "3.5"],
    ]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (OUT_OF_MEMORY, ("memory", "4g", "containers.memory")),
        (KILLED, ("killed", "memory")),
        ("ModuleNotFoundError: No module named 'audioscore.config'", ("audioscore.config", "image")),
        ("/usr/bin/python3: No module named kfp", ("kfp", "image localhost/python-old:1")),
    ],
)
def test_a_cause_outside_the_step_is_reported_with_its_log(text: str, names: tuple[str, ...], tmp_path: Path) -> None:
    log = tmp_path / "01-a.log"
    log.write_text(f"Traceback (most recent call last):\n{text}\n", encoding="utf-8")
    error = step_error([Step("a", log, 0.0)], RuntimeError("inner"), SECTION)
    assert isinstance(error, UsageError)
    assert [name for name in ("step a: ", *names, str(log)) if name not in str(error)] == []
    assert ("4g" in str(error)) == ("4g" in names)


def test_other_errors_are_unexpected(tmp_path: Path) -> None:
    log = tmp_path / "01-a.log"
    log.write_bytes(b"\xff ZeroDivisionError: division by zero\nthere is No module named here\n")
    assert container_cause(log, SECTION) is None
    assert isinstance(step_error([Step("a", log, 0.0)], RuntimeError("inner"), SECTION), StepFailed)
    caught = "ModuleNotFoundError: No module named 'apex'\ngoing on without\nZeroDivisionError: division by zero\n"
    log.write_text(caught, encoding="utf-8")
    assert container_cause(log, SECTION) is None
    log.write_text("ModuleNotFoundError: No module named 'kfp'\n", encoding="utf-8")
    assert isinstance(step_error([Step("a", log, 0.0)], RuntimeError("inner")), StepFailed), "no image is the cause"


def test_without_a_limit_the_machine_is_named(tmp_path: Path) -> None:
    log = tmp_path / "01-a.log"
    log.write_text(OUT_OF_MEMORY, encoding="utf-8")
    cause = str(container_cause(log, ContainersSection()))
    assert "machine" in cause
    assert "None" not in cause
