import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from audioscore import errors
from pipelines.local_run import StepFailed, _failure
from pipelines.steplog import Step, StepLog, steps_table

CYAN, GREEN, RED, END = "\x1b[96m", "\x1b[92m", "\x1b[91m", "\x1b[0m"
RULE = "-" * 80
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
    """A log that has been fed a text in pieces of `size` characters, and what it told the console."""
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
    assert all(step.fault is None and step.seconds is not None for step in log.steps)
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
    assert failed.fault == ("GateRefused", message)
    assert re.search("failed +validate_data", shown)
    fault = _failure(log.steps, RuntimeError("Inner task failed"))
    assert isinstance(fault, errors.GateRefused)
    assert str(fault) == message


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


def test_a_terminal_sees_what_runs(tmp_path: Path) -> None:
    screen = io.StringIO()
    with StepLog(tmp_path, Console(file=screen, force_terminal=True, width=120)) as log:
        log.write(started("train-scorer") + f"    {STEP} INFO]: hybrid, seed [1]: 30 clips to train on\n")
        assert log.running is log.steps[0]
        assert log.steps[0].last == "hybrid, seed [1]: 30 clips to train on"
        log.write(finished("train-scorer"))
    assert "train_scorer" in screen.getvalue()


def test_a_fault_of_the_program_names_the_log(tmp_path: Path) -> None:
    log, _ = feed(tmp_path, started("a") + "    ZeroDivisionError: division by zero\n" + finished("a", "FAILURE"))
    fault = _failure(log.steps, RuntimeError("Inner task failed"))
    assert isinstance(fault, StepFailed)
    assert fault.exit_code == 70
    assert str(fault).startswith("step a ")
    assert str(log.steps[0].log) in str(fault)
    assert str(_failure([], RuntimeError("no such task"))).endswith(": no such task")


def test_the_table_adds_the_seconds_up(tmp_path: Path) -> None:
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
