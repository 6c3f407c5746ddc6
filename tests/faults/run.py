"""Put known faults into a copy of the code, one at a time, and see which of them the tests find.

Usage: python tests/faults/run.py [--only ID ...] [--root DIR] [--unchanged]

A fault counts as found where its tests fail. Exit code: 0 if all are found, 1 if not, 2 if a fault cannot be applied
or its tests cannot be run.
"""
# ruff: noqa: T201 - what it prints is its result

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
TIMEOUT_SECONDS = 90.0  # of one fault's tests
FOUND, NOT_FOUND, NOT_RUN = "found", "NOT FOUND", "ERROR"
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider")


def main() -> int:
    parser = argparse.ArgumentParser(description="Which of the known faults do the tests find?")
    parser.add_argument("--only", action="append", metavar="ID", help="this fault alone; may be repeated")
    parser.add_argument("--root", type=Path, default=HERE.parents[1], metavar="DIR", help="the working tree to copy")
    parser.add_argument("--unchanged", action="store_true", help="run the same tests without faults: all must pass")
    options = parser.parse_args()
    faults = [one for one in read_faults() if not options.only or one["id"] in options.only]
    if missing := set(options.only or ()) - {one["id"] for one in faults}:
        parser.error(f"no fault is named {', '.join(sorted(missing))}")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        tree = Path(scratch) / "tree"
        copy_tree(options.root.resolve(), tree)
        check_import(tree)
        results = [report(tree, fault, unchanged=options.unchanged) for fault in faults]
    print(f"{results.count(FOUND)} of {len(results)} found in {time.monotonic() - started:.0f} s", flush=True)
    if NOT_RUN in results:
        return 2
    wanted = NOT_FOUND if options.unchanged else FOUND
    return 0 if set(results) <= {wanted} else 1


def read_faults() -> list[dict[str, Any]]:
    """The faults of faults.yaml, each id once."""
    faults: list[dict[str, Any]] = yaml.safe_load((HERE / "faults.yaml").read_text(encoding="utf-8"))
    ids = [fault["id"] for fault in faults]
    if len(set(ids)) != len(ids):
        raise SystemExit("faults.yaml: an id occurs twice. Rename one.")
    return faults


def copy_tree(root: Path, target: Path) -> None:
    """Copy a working tree's files, tracked or new, without what git ignores."""
    listed = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, check=True, capture_output=True).stdout.split(b"\0")
    for name in map(os.fsdecode, filter(None, names)):
        if (root / name).is_file():  # a tracked file may have been deleted
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)


def check_import(tree: Path) -> None:
    """Make sure that the copy's code is what tests import."""
    command = [sys.executable, "-c", "import audioscore; print(audioscore.__file__)"]
    found = subprocess.run(command, cwd=tree, env=environment(tree), check=True, capture_output=True, text=True).stdout
    if not Path(found.strip()).is_relative_to(tree):
        raise SystemExit(f"tests would import {found.strip()}, not the copy in {tree}.")


def environment(tree: Path) -> dict[str, str]:
    """Environment in which this process and those that tests start import from the copy."""
    return {**os.environ, "PYTHONPATH": str(tree)}


def report(tree: Path, fault: dict[str, Any], *, unchanged: bool) -> str:
    """Try one fault and print the outcome."""
    started = time.monotonic()
    try:
        if unchanged:
            result, detail = run_tests(tree, fault["tests"])
        else:
            result, detail = try_fault(tree, fault)
    except (OSError, ValueError) as error:
        result, detail = NOT_RUN, str(error)
    print(f"{result:<9} {fault['id']:<30} {time.monotonic() - started:5.1f} s  {detail}", flush=True)
    return result


def try_fault(tree: Path, fault: dict[str, Any]) -> tuple[str, str]:
    """Apply a fault to the copy, run its tests, and restore the file."""
    source = tree / fault["file"]
    original = source.read_text(encoding="utf-8")
    write_source(source, changed(original, fault))
    try:
        return run_tests(tree, fault["tests"])
    finally:
        write_source(source, original)


def changed(text: str, fault: dict[str, Any]) -> str:
    """The text with the fault. Raises ValueError where `find` does not occur exactly once, or nothing changes."""
    find, replace = fault["find"].rstrip("\n"), fault["replace"].rstrip("\n")
    if (count := text.count(find)) != 1:
        raise ValueError(f"`find` occurs {count} times in {fault['file']}. Correct faults.yaml.")
    if find == replace:
        raise ValueError("`replace` equals `find`. Correct faults.yaml.")
    result = text.replace(find, replace)
    compile(result, fault["file"], "exec")
    return result


def write_source(source: Path, text: str) -> None:
    """Write a module and delete its bytecode, which may be as old and as long as the one that is wanted."""
    source.write_text(text, encoding="utf-8")
    for compiled in (source.parent / "__pycache__").glob(f"{source.stem}.*.pyc"):
        compiled.unlink()


def run_tests(tree: Path, tests: Sequence[str]) -> tuple[str, str]:
    """Run tests on the copy: whether one fails, and which."""
    for name in tests:
        if not (tree / name).exists():
            raise ValueError(f"{name}: no such test. Correct faults.yaml.")
    with tempfile.TemporaryDirectory(prefix="faults-tmp-") as scratch:
        command = [sys.executable, *PYTEST, f"--basetemp={scratch}/pytest", *tests]
        with subprocess.Popen(
            command, cwd=tree, env=environment(tree), text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        ) as process:  # fmt: skip
            try:
                output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # its own session: whatever the tests have started ends too
                process.communicate()
                return NOT_FOUND, f"no failure within {TIMEOUT_SECONDS:.0f} s"
    if process.returncode == 0:
        return NOT_FOUND, ""
    lines = output.splitlines()
    if process.returncode not in (1, 2):  # 1: a test failed, 2: a module could not be imported
        raise ValueError(textwrap.shorten(" ".join(lines[-3:]), 200))
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    if not failed:  # pytest did not run, for example because it is not installed
        raise ValueError(textwrap.shorten(" ".join(lines[-3:]), 200))
    return FOUND, textwrap.shorten(failed[0], 160)


if __name__ == "__main__":
    raise SystemExit(main())
