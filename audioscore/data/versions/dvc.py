"""DVC's repository around a data folder: opening it quietly, locking it, and saying in one sentence what went wrong."""

import contextlib
import importlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audioscore.errors import AudioscoreError, DataError
from audioscore.files import write_text

if TYPE_CHECKING:
    from dvc.repo import Repo

LONGEST = 300  # characters of somebody else's message
LIBRARIES = ("dvc", "dvc_data", "dvc_objects")  # whose log holds the reason where their exception is only a count


@contextlib.contextmanager
def open_repository(folder: Path) -> "Iterator[Repo]":
    """The DVC repository around a folder, without analytics; DVC's own deprecations are not its caller's."""
    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from dvc.exceptions import DvcException, NotDvcRepoError
        from dvc.repo import Repo

        above = Path(os.path.abspath(folder)).parent
        try:
            repository = Repo(str(above))
        except NotDvcRepoError as fault:
            raise DataError(
                f"{folder}: there is no DVC repository at {above} or above it. Run `dvc init` in the folder that shall "
                f"be one (`dvc init --no-scm` where there is no git), or work without versions (--no-version)."
            ) from fault
        except (DvcException, OSError) as fault:  # its settings, or a git repository that is not there
            raise DataError(
                f"{folder}: its DVC repository cannot be opened ({_reason(fault)}). Mend .dvc/config; without git it "
                f"needs `dvc config core.no_scm true`."
            ) from fault
        with contextlib.closing(repository), _overheard():
            yield repository


@contextlib.contextmanager
def explained(what: str, advice: str) -> Iterator[None]:
    """Whatever DVC, or a storage library beneath it, raises becomes one sentence: `what` (reason). `advice`."""
    with _overheard() as heard:
        try:
            yield
        except AudioscoreError:
            raise
        except Exception as fault:  # aiohttp's, botocore's and git's among them: they share no base class
            raise DataError(f"{what} ({_reason(heard[0] if heard else fault)}). {advice}") from fault


@contextlib.contextmanager
def _overheard() -> Iterator[list[BaseException]]:
    """The exceptions that DVC logs instead of raising; its log goes nowhere else meanwhile."""
    heard: list[BaseException] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and record.exc_info[1] is not None:
                heard.append(record.exc_info[1])

    importlib.import_module("dvc")  # which gives its loggers handlers that write to standard output
    loggers = [(logger, logger.handlers, logger.propagate) for logger in map(logging.getLogger, LIBRARIES)]
    for logger, _, _ in loggers:
        logger.handlers, logger.propagate = [Listener(logging.WARNING)], False
    try:
        yield heard
    finally:
        for logger, handlers, propagate in loggers:
            logger.handlers, logger.propagate = handlers, propagate


def _reason(fault: BaseException) -> str:
    """The first paragraph of what an exception says, on one line, and no more of it than one can read."""
    told = " ".join(str(fault).strip().split("\n\n")[0].split()).rstrip(".")
    return (told if len(told) <= LONGEST else f"{told[:LONGEST]} ...") or type(fault).__name__


@contextlib.contextmanager
def locked(repository: "Repo") -> Iterator[None]:
    """The repository's lock, as DVC takes it; names who has it where that is another process."""
    from dvc.lock import LockError
    from dvc.repo import lock_repo

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock_repo(repository))
        except LockError as fault:
            raise DataError(
                f"{repository.root_dir}: locked by another DVC process{_holder(repository)}. Wait until it has ended, "
                f"and run the command again."
            ) from fault
        yield


def _holder(repository: "Repo") -> str:
    """Number and command of the process that has the repository's lock, where they can be told."""
    from dvc.rwlock import psutil

    with contextlib.suppress(OSError, ValueError, psutil.Error):
        number = int((Path(repository.tmp_dir) / "lock").read_text(encoding="utf-8"))
        return f" (process {number}: {' '.join(psutil.Process(number).cmdline())[:120]})"
    return ""


def mend_rwlock(folder: Path) -> None:
    """Drop from DVC's list of busy paths what its owner's death left there.

    A list that is no JSON was cut by a kill: whoever writes it holds its lock, and we have that now. An entry is stale
    if no process has its number, or the one that has it was started after the list was last written.
    """
    from dvc.lock import LockError, make_lock
    from dvc.rwlock import psutil  # with which DVC itself looks for owners

    busy = folder / "rwlock"

    def is_alive(entry: dict[str, Any]) -> bool:
        with contextlib.suppress(psutil.Error, OSError):
            return bool(psutil.Process(int(entry["pid"])).create_time() <= busy.stat().st_mtime)
        return False

    # Whoever keeps that lock for seconds is alive, and what follows will say so.
    with contextlib.suppress(FileNotFoundError, LockError), make_lock(str(folder / "rwlock.lock")):
        try:
            entries = json.loads(busy.read_text(encoding="utf-8"))
            reading = {path: [one for one in all_ if is_alive(one)] for path, all_ in entries.get("read", {}).items()}
            writing = {path: one for path, one in entries.get("write", {}).items() if is_alive(one)}
        except (ValueError, AttributeError, KeyError, TypeError):
            busy.unlink()
        else:
            kept = {"write": writing, "read": {path: found for path, found in reading.items() if found}}
            if kept != {"write": entries.get("write", {}), "read": entries.get("read", {})}:
                write_text(busy, json.dumps(kept))
