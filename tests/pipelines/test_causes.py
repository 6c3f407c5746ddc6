from pathlib import Path

import pytest

from audioscore.errors import UsageError
from audioscore.platforms import ContainersSection
from pipelines.causes import OUT_OF_MEMORY, WAS_KILLED, outside_cause
from pipelines.local_run import StepFailed, _failure
from pipelines.steplog import Step

SECTION = ContainersSection(image="localhost/python-old:1", memory="4g")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (OUT_OF_MEMORY, ("memory", "4g", "containers.memory")),
        (WAS_KILLED, ("killed", "memory")),
        ("ModuleNotFoundError: No module named 'audioscore.config'", ("audioscore.config", "image")),
        ("/usr/bin/python3: No module named kfp", ("kfp", "image localhost/python-old:1")),
    ],
)
def test_a_cause_outside_the_step_is_named_with_its_log(text: str, names: tuple[str, ...], tmp_path: Path) -> None:
    log = tmp_path / "01-a.log"
    log.write_text(f"Traceback (most recent call last):\n{text}\n", encoding="utf-8")
    fault = _failure([Step("a", log, 0.0)], RuntimeError("inner"), SECTION)
    assert isinstance(fault, UsageError)
    assert [name for name in ("step a ", *names, str(log)) if name not in str(fault)] == []
    assert ("4g" in str(fault)) == ("4g" in names)


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


def test_without_a_limit_no_limit_is_named(tmp_path: Path) -> None:
    log = tmp_path / "01-a.log"
    log.write_text(OUT_OF_MEMORY, encoding="utf-8")
    cause = str(outside_cause(log, ContainersSection()))
    assert "machine" in cause
    assert "None" not in cause
