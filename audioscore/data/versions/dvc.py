"""Open and lock the DVC repository around a data folder, and convert DVC's errors to DataError."""

import contextlib
import functools
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

LONGEST = 300  # characters of a third-party message
LIBRARIES = ("dvc", "dvc_data", "dvc_objects")  # they log the cause where their exception only counts failures


@contextlib.contextmanager
def open_repository(folder: Path) -> "Iterator[Repo]":
    """Open the DVC repository around a folder, without analytics, DVC's log output and its deprecation warnings."""
    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from dvc.exceptions import DvcException, NotDvcRepoError
        from dvc.repo import Repo

        above = Path(os.path.abspath(folder)).parent
        try:
            repository = Repo(str(above))
        except NotDvcRepoError as error:
            raise DataError(
                f"{folder}: there is no DVC repository at {above} or above it. Run `dvc init` there (`dvc init "
                f"--no-scm` without git), or work without versions (--no-version)."
            ) from error
        except (DvcException, OSError) as error:  # invalid settings, or a missing git repository
            raise DataError(
                f"{folder}: its DVC repository cannot be opened ({_reason(error)}). Correct .dvc/config; without git, "
                f"set `dvc config core.no_scm true`."
            ) from error
        with contextlib.closing(repository), _captured_log():
            yield repository


def is_dvc_link(path: Path, folder: str | Path) -> bool:
    """Whether a path is a link into the cache of a data folder's DVC repository, as with `cache.type symlink`."""
    cache = _cache_of(os.path.realpath(folder)) if path.is_symlink() else None
    return cache is not None and Path(os.path.realpath(path)).is_relative_to(cache)


@functools.cache  # opening a repository takes a second
def _cache_of(folder: str) -> str | None:
    try:
        with open_repository(Path(folder, "recording")) as repository:
            return os.path.realpath(str(repository.cache.local_cache_dir))
    except (DataError, ImportError):  # no repository, or an installation without DVC
        return None


@contextlib.contextmanager
def dvc_errors(what: str, fix: str) -> Iterator[None]:
    """Convert every exception of DVC and of the storage libraries below it to a DataError: `what` (reason). `fix`."""
    with _captured_log() as logged:
        try:
            yield
        except AudioscoreError:
            raise
        except Exception as error:  # exceptions of aiohttp, botocore and git have no common base class
            raise DataError(f"{what} ({_reason(logged[0] if logged else error)}). {fix}") from error


def await_remote(repository: "Repo", name: str | None = None) -> None:
    """Check that a remote's server responds: DVC's clients retry for minutes. Raises AudioscoreError if it does not."""
    from audioscore.data.transfer.network import await_server
    from audioscore.data.transfer.s3 import connect

    name = name or repository.config["core"].get("remote")
    settings = repository.config["remote"].get(name, {})
    url, address = str(settings.get("url", "")), settings.get("endpointurl")
    if url.startswith("s3://") and not address:
        connect(1).close()  # checks the endpoint of the environment
    elif url.startswith(("s3://", "http://", "https://")):
        await_server(address or url, f"the address of DVC remote {name}", uses_requests=False)


@contextlib.contextmanager
def _captured_log() -> Iterator[list[BaseException]]:
    """Collect the exceptions that DVC logs instead of raising, and suppress its log output."""
    logged: list[BaseException] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and record.exc_info[1] is not None:
                logged.append(record.exc_info[1])

    importlib.import_module("dvc")  # the import adds handlers that write to standard output
    loggers = [(logger, logger.handlers, logger.propagate) for logger in map(logging.getLogger, LIBRARIES)]
    for logger, _, _ in loggers:
        logger.handlers, logger.propagate = [Collector(logging.WARNING)], False
    try:
        yield logged
    finally:
        for logger, handlers, propagate in loggers:
            logger.handlers, logger.propagate = handlers, propagate


def _reason(error: BaseException) -> str:
    """The first paragraph of an exception's message, on one line of limited length."""
    text = " ".join(str(error).strip().split("\n\n")[0].split()).rstrip(".")
    return (text if len(text) <= LONGEST else f"{text[:LONGEST]} ...") or type(error).__name__


@contextlib.contextmanager
def locked(repository: "Repo") -> Iterator[None]:
    """Hold the repository's DVC lock. Raises DataError that names the process when another process holds it."""
    from dvc.lock import LockError
    from dvc.repo import lock_repo

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock_repo(repository))
        except LockError as error:
            raise DataError(
                f"{repository.root_dir}: locked by another DVC process{_lock_holder(repository)}. Wait until it ends, "
                f"and run the command again."
            ) from error
        yield


def _lock_holder(repository: "Repo") -> str:
    """Number and command of the process that holds the repository's lock, if they can be read."""
    from dvc.rwlock import psutil

    with contextlib.suppress(OSError, ValueError, psutil.Error):
        number = int((Path(repository.tmp_dir) / "lock").read_text(encoding="utf-8"))
        return f" (process {number}: {' '.join(psutil.Process(number).cmdline())[:120]})"
    return ""


def repair_rwlock(folder: Path) -> None:
    """Remove entries of ended processes from DVC's list of busy paths, `rwlock` in its temporary folder.

    A list that is not JSON was truncated by a kill: writers hold the list's lock, which this function holds. An entry
    is stale if no process has its number, or that process started after the list was last written.
    """
    from dvc.lock import LockError, make_lock
    from dvc.rwlock import psutil  # DVC uses the same library to find the owners

    busy = folder / "rwlock"

    def is_alive(entry: dict[str, Any]) -> bool:
        with contextlib.suppress(psutil.Error, OSError):
            return bool(psutil.Process(int(entry["pid"])).create_time() <= busy.stat().st_mtime)
        return False

    # A process that holds this lock for seconds is running; DVC then reports the busy path itself.
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
