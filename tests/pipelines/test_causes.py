from pathlib import Path

import pytest

from audioscore.errors import UsageError
from audioscore.places import ContainersSection
from pipelines.causes import OUT_OF_MEMORY, WAS_KILLED, outside_cause
from pipelines.local_run import StepFailed, _failure
from pipelines.steplog import Step

SECTION = ContainersSection(image="localhost/python-old:1", memory="4g")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (OUT_OF_MEMORY, "was killed for memory: it needed more than its 4g. Raise containers.memory"),
        (WAS_KILLED, "was killed from outside, most likely for memory"),
        ("ModuleNotFoundError: No module named 'audioscore.config'", "found no module audioscore.config in the image"),
        ("/usr/bin/python3: No module named kfp", "found no module kfp in the image localhost/python-old:1. Build it"),
    ],
)
def test_a_cause_outside_the_step_is_one_sentence_with_its_log(text: str, told: str, tmp_path: Path) -> None:
    log = tmp_path / "01-a.log"
    log.write_text(f"Traceback (most recent call last):\n{text}\n", encoding="utf-8")
    fault = _failure([Step("a", log, 0.0)], RuntimeError("inner"), SECTION)
    assert isinstance(fault, UsageError)
    assert str(fault).startswith(f"step a {told}")
    assert str(fault).endswith(f"Its log is {log}.")


def test_a_fault_of_the_program_stays_one(tmp_path: Path) -> None:
    log = tmp_path / "01-a.log"
    log.write_bytes(b"\xff ZeroDivisionError: division by zero\nthere is No module named here\n")
    assert outside_cause(log, SECTION) is None
    assert isinstance(_failure([Step("a", log, 0.0)], RuntimeError("inner"), SECTION), StepFailed)
    caught = "ModuleNotFoundError: No module named 'apex'\ngoing on without\nZeroDivisionError: division by zero\n"
    log.write_text(caught, encoding="utf-8")
    assert outside_cause(log, SECTION) is None
    log.write_text("ModuleNotFoundError: No module named 'kfp'\n", encoding="utf-8")
    assert isinstance(_failure([Step("a", log, 0.0)], RuntimeError("inner")), StepFailed), "no image is to blame"


def test_without_a_limit_the_machine_is_named(tmp_path: Path) -> None:
    log = tmp_path / "01-a.log"
    log.write_text(OUT_OF_MEMORY, encoding="utf-8")
    assert "more than what this machine has" in str(outside_cause(log, ContainersSection()))
