"""Workbooks of openpyxl and LibreOffice compared with LibreOffice's csv: a sample in CI, all by `make test-long`."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.reference import workbooks

SAMPLE, PARTS, EACH = 24, 8, 60  # workbooks; each is compared twice: as written, and as LibreOffice saves it


@pytest.fixture(scope="module")
def _office() -> None:
    """Skip without LibreOffice; fail in CI, which installs it."""
    if shutil.which("soffice") is None:
        reason = "LibreOffice is not installed: see .ci/packages"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


def check(folder: Path, seeds: range, record: Callable[[str, object], None]) -> None:
    written, saved, shown, shown_saved = (folder / name for name in ("written", "saved", "shown", "shown_saved"))
    for one in (written, saved, shown, shown_saved):
        one.mkdir()
    cases = [workbooks.build(written, seed) for seed in seeds]
    resaved = [replace(case, path=saved / case.path.name) for case in cases]
    workbooks.convert([case.path for case in cases], "xlsx", saved)
    workbooks.convert([case.path for case in cases], workbooks.CSV, shown)
    workbooks.convert([case.path for case in resaved], workbooks.CSV, shown_saved)
    found = {f"written {case.path.name}": workbooks.find_problems(case, computed=False, shown=shown) for case in cases}
    for case in resaved:
        found[f"saved {case.path.name}"] = workbooks.find_problems(case, computed=True, shown=shown_saved)
    record("files compared", len(found))
    problems = [f"{name}: {problem}" for name, listed in found.items() for problem in listed]
    assert not problems, "\n".join(problems)
    assert len(found) == 2 * len(seeds)


@pytest.mark.services
@pytest.mark.usefixtures("_office")
def test_a_sample_of_workbooks(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    check(tmp_path, range(SAMPLE), record_property)


@pytest.mark.long
@pytest.mark.usefixtures("_office")
@pytest.mark.parametrize("part", range(PARTS))
def test_all_workbooks(tmp_path: Path, record_property: Callable[[str, object], None], part: int) -> None:
    check(tmp_path, range(1000 + part * EACH, 1000 + (part + 1) * EACH), record_property)
