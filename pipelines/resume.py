"""A broken run goes on where it stopped: the steps that finished are taken from KFP's cache.

KFP keys a step's cached outputs by its code, image and inputs, and files them only once the step has ended well. It
names a run's folder after the time, though, which would make the inputs of every step new: here the name is fixed.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audioscore.errors import UsageError
from audioscore.files import read_json, sha256_of
from pipelines.scorer_pipeline import NAME

if TYPE_CHECKING:
    import psutil

OWNER = "AUDIOSCORE_RUN_FOLDER"  # what every process of a run has among its variables
PATIENCE = 10.0  # seconds that a step left over may take to end
CACHE, STEPS, CODE = "cache", "steps", "code.json"
PACKAGES = ("audioscore", "components", "pipelines")
CODE_SUFFIXES, PINS = {".py", ".js", ".css", ".html", ".svg"}, "requirements.txt"
KEPT = ("train-scorer",)  # what it had saved when it was stopped is what it goes on from
HIT = re.compile(r"Task '?(?P<name>[\w-]+)'? cache hit")


def find_unfinished(runs: Path, settings: dict[str, Any] | None = None) -> Path:
    """The folder of the newest run that has no result and was started with these settings, whichever they are for None.

    Raises UsageError where there is none.
    """
    begun = sorted(path.parent for path in runs.glob("*/config.json"))
    if not begun:
        raise UsageError(f"nothing to resume: no run was started in {runs}. Run without --resume.")
    unfinished = [folder for folder in begun if not (folder / "result.json").is_file()]
    if not unfinished:
        raise UsageError(f"nothing to resume: the newest run, {begun[-1].name}, is finished. Run without --resume.")
    for folder in reversed(unfinished):
        if settings is None or not list(_different(read_json(folder / "config.json"), settings)):
            return folder
    different = sorted(_different(read_json(unfinished[-1] / "config.json"), settings))
    raise UsageError(
        f"run {unfinished[-1].name} was started with other settings ({', '.join(different[:5])}). "
        "Give the same options as then, --resume alone for that run as it was started, or run without --resume."
    )


def code_digest(repository: Path) -> str:
    """Of the files that steps run, and of the versions of what they import: a commit of something else, data for
    instance, does not change it.
    """
    files = [path for package in PACKAGES for path in (repository / package).rglob("*") if path.suffix in CODE_SUFFIXES]
    found = hashlib.sha256()
    for path in sorted([*files, repository / PINS]):
        if path.is_file():
            found.update(f"{path.relative_to(repository)}\0{sha256_of(path)}\0".encode())
    return found.hexdigest()


def forget_other_code(folder: Path, code: dict[str, str]) -> dict[str, str] | None:
    """What a run's folder says of the code that it was begun with, if that is this code, whatever was committed since.

    None where it was other code: what that has done is taken away.
    """
    before: dict[str, str] = read_json(folder / CODE) if (folder / CODE).is_file() else {}
    if before == code or (before.get("digest") and {**before, "code_rev": ""} == {**code, "code_rev": ""}):
        return before
    for name in (STEPS, CACHE):
        shutil.rmtree(folder / name, ignore_errors=True)
    return None


def end_leftovers(folder: Path) -> int:
    """End the steps of a run that run: a resumed one writes where they would. How many.

    Whoever started them learns how they ended: a child that were waited for here would look to KFP as if it had ended
    well, and what it left would be filed as finished.
    """
    import psutil

    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(OWNER) == str(folder):
                process.terminate()
                left.append(process)
    for process in _await_end(left):
        with contextlib.suppress(psutil.Error):
            process.kill()
    _await_end(left)
    return len(left)


def _await_end(processes: "Sequence[psutil.Process]") -> "list[psutil.Process]":
    """Watch processes end, without taking their exit codes; those that have not after PATIENCE."""
    until = time.monotonic() + PATIENCE
    while (left := [process for process in processes if _runs(process)]) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def _runs(process: "psutil.Process") -> bool:
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _different(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """The keys whose values differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            yield from _different(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif before != now:
        yield path


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold a run's folder; the system lets go of it when its holder ends, however it ends.

    Raises UsageError where another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            raise UsageError(f"run {folder.name} is under way in another process. Wait for it to end.") from fault
        yield


@contextlib.contextmanager
def repeatable(reused: Callable[[str], None]) -> Iterator[None]:
    """KFP's local runner with fixed names of folders, cleared before a step begins; `reused` is told of each hit."""
    from kfp.local import executor_input_utils as names

    before = names.get_local_pipeline_resource_name, names.construct_local_task_root
    root, log = before[1], logging.getLogger()
    listener = _Hits(reused)
    level = log.level

    def cleared(pipeline_root: str, pipeline_resource_name: str, task_resource_name: str) -> str:
        folder = str(root(pipeline_root, pipeline_resource_name, task_resource_name))
        if not task_resource_name.startswith(KEPT):
            shutil.rmtree(folder, ignore_errors=True)
        return folder

    names.get_local_pipeline_resource_name = lambda name: NAME
    names.construct_local_task_root = cleared
    log.addHandler(listener)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(listener)
        names.get_local_pipeline_resource_name, names.construct_local_task_root = before


class _Hits(logging.Handler):
    """KFP says at level INFO of its root logger, and nowhere else, that it took a step from its cache."""

    def __init__(self, reused: Callable[[str], None]) -> None:
        super().__init__()
        self.reused = reused

    def emit(self, record: logging.LogRecord) -> None:
        if found := HIT.search(record.getMessage()):
            self.reused(found["name"])
