"""`--resume`: a run continues where it stopped, with the outputs of finished steps from KFP's cache.

KFP's cache key of a step consists of its code, image and inputs, and an entry is written only after the step has
finished. KFP names a run's folder after the time, which would change the inputs of every step: here the name is fixed.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audioscore.config import rename_deprecated
from audioscore.errors import UsageError
from audioscore.files import read_json, sha256_of, uri_to_path
from pipelines.scorer_pipeline import NAME

if TYPE_CHECKING:
    import psutil

OWNER = "AUDIOSCORE_RUN_FOLDER"  # environment variable of every process of a run
END_SECONDS = 10.0  # that a process may take to end before it is killed
CACHE, STEPS, CODE = "cache", "steps", "code.json"
PACKAGES = ("audioscore", "components", "pipelines")
CODE_SUFFIXES, PINS = {".py", ".js", ".css", ".html", ".svg"}, "requirements.txt"
KEPT = ("train-scorer",)  # it continues from the checkpoints that it saved before it was stopped
HIT = re.compile(r"Task '?(?P<name>[\w-]+)'? cache hit")


def find_unfinished(runs: Path, settings: dict[str, Any] | None = None) -> Path:
    """Return the folder of the newest unfinished run with these settings, or with any settings for None.

    Raises:
        UsageError: there is no such run.
    """
    started = sorted(path.parent for path in runs.glob("*/config.json"))
    if not started:
        raise UsageError(f"{runs}: no run was started, so there is nothing to resume. Run without --resume.")
    unfinished = [folder for folder in started if not (folder / "result.json").is_file()]
    if not unfinished:
        raise UsageError(f"run {started[-1].name}: is the newest and is finished. Run without --resume.")
    for folder in reversed(unfinished):
        if settings is None or not list(_different(_settings_of(folder), settings)):
            return folder
    different = sorted(_different(_settings_of(unfinished[-1]), settings))
    raise UsageError(
        f"run {unfinished[-1].name}: was started with other settings ({', '.join(different[:5])}). Give the same "
        "options again, or --resume alone to continue it with its own settings, or run without --resume."
    )


def _settings_of(run: Path) -> dict[str, Any]:
    """Read a run's settings, under the current names of keys."""
    return rename_deprecated(read_json(run / "config.json"), run.name, logging.DEBUG)


def _different(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """Dotted keys whose values differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            yield from _different(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif before != now:
        yield path


def code_digest(repository: Path) -> str:
    """SHA-256 of the files that steps run and of the pinned requirements.

    A commit of other files, for instance of data, does not change it.
    """
    files = [path for package in PACKAGES for path in (repository / package).rglob("*") if path.suffix in CODE_SUFFIXES]
    digest = hashlib.sha256()
    for path in sorted([*files, repository / PINS]):
        if path.is_file():
            digest.update(f"{path.relative_to(repository)}\0{sha256_of(path)}\0".encode())
    return digest.hexdigest()


def discard_other_code(folder: Path, code: dict[str, str]) -> dict[str, str] | None:
    """Return a run's recorded code if it is this code; else delete the run's step outputs and return None.

    With the same digest it is the same code, whatever was committed since.
    """
    before: dict[str, str] = read_json(folder / CODE) if (folder / CODE).is_file() else {}
    if before == code or (before.get("digest") and {**before, "code_rev": ""} == {**code, "code_rev": ""}):
        return before
    for name in (STEPS, CACHE):
        shutil.rmtree(folder / name, ignore_errors=True)
    return None


def discard_moved(folder: Path) -> bool:
    """Delete a run's cache if it names another folder, and return whether it did: the run was moved or copied."""
    uris: list[str] = []
    for path in (folder / CACHE).glob("*.json"):
        with contextlib.suppress(ValueError):  # KFP ignores a damaged entry too
            json.loads(path.read_text(encoding="utf-8"), object_hook=lambda one: uris.append(str(one.get("uri"))))
    local = [uri_to_path(uri) or Path(uri) for uri in uris if uri.startswith(("/", "file:"))]
    moved = any(not path.is_relative_to(folder) for path in local)
    if moved:
        shutil.rmtree(folder / CACHE)
    return moved


def end_processes(folder: Path) -> int:
    """End the running steps of a run, which would write to the same files as a resumed run; return their number.

    Their exit codes are left to their parent: if this function waited for a child, KFP would regard the step as
    successful and cache its incomplete outputs.
    """
    import psutil

    running = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(OWNER) == str(folder):
                process.terminate()
                running.append(process)
    for process in _await_end(running):
        with contextlib.suppress(psutil.Error):
            process.kill()
    _await_end(running)
    return len(running)


def _await_end(processes: "Sequence[psutil.Process]") -> "list[psutil.Process]":
    """Wait up to END_SECONDS without collecting exit codes; return the processes that still run."""
    deadline = time.monotonic() + END_SECONDS
    while (left := [process for process in processes if _runs(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _runs(process: "psutil.Process") -> bool:
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@contextlib.contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Lock a run's folder for this process; the system releases the lock when the process ends.

    Raises:
        UsageError: another process has the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"run {folder.name}: is running in another process. Wait for it to end.") from error
        yield


@contextlib.contextmanager
def fixed_folders(reused: Callable[[str], None]) -> Iterator[None]:
    """Make KFP's local runner use fixed folder names, and clear a step's folder before the step starts.

    Args:
        reused: called with the step's name for each cache hit.
    """
    from kfp.local import executor_input_utils as names

    before = names.get_local_pipeline_resource_name, names.construct_local_task_root
    construct, log = before[1], logging.getLogger()
    handler = _CacheHits(reused)
    level = log.level

    def cleared(pipeline_root: str, pipeline_resource_name: str, task_resource_name: str) -> str:
        folder = str(construct(pipeline_root, pipeline_resource_name, task_resource_name))
        if not task_resource_name.startswith(KEPT):
            shutil.rmtree(folder, ignore_errors=True)
        return folder

    names.get_local_pipeline_resource_name = lambda name: NAME
    names.construct_local_task_root = cleared
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
        names.get_local_pipeline_resource_name, names.construct_local_task_root = before


class _CacheHits(logging.Handler):
    """Reports cache hits, which KFP only logs, at level INFO of the root logger."""

    def __init__(self, reused: Callable[[str], None]) -> None:
        super().__init__()
        self.reused = reused

    def emit(self, record: logging.LogRecord) -> None:
        if found := HIT.search(record.getMessage()):
            self.reused(found["name"])
