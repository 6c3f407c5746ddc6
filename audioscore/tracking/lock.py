"""The promotion lock: one promotion at a time, on a SQLite registry and on a server (docs/adr/0010-promotion-lock.md).

MLflow sets an alias unconditionally, so that two processes that have read the same champion would both replace it. A
SQLite registry is locked by a file beside it. On a server, creating a registered model of a given name succeeds for one
of several callers only; that name is the lock.
"""

import contextlib
import fcntl
import os
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from audioscore.errors import ModelError
from audioscore.tracking.connection import database_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

LEASE_SECONDS = 30.0  # setting aliases takes about a second; a process that holds the lock longer has ended
WAIT_SECONDS = 120.0  # longer than two leases
POLL_SECONDS = 0.1
LOCK = "promotion-lock"
HOLDER, PROCESS = "holder", "place"  # tags: a random token, and the process that holds the lock


@dataclass(frozen=True)
class Hold:
    """A lock that is held. On a server another process may take it over after the lease."""

    name: str
    since: float  # on this process's monotonic clock
    lease: float

    def check(self) -> None:
        """Raise ModelError once half of the lease has passed. Call it before each write."""
        held = time.monotonic() - self.since
        if held > self.lease / 2:
            raise ModelError(
                f"{self.name}: the registry took {held:.0f} s, and the promotion lock may have expired. Check "
                "`audioscore models --history`, then run the command again."
            )


@contextlib.contextmanager
def promotion_lock(
    client: "MlflowClient", name: str, *, lease: float = LEASE_SECONDS, wait: float = WAIT_SECONDS
) -> Iterator[Hold]:
    """Hold the lock of a registered model's aliases; other processes wait for it.

    Args:
        lease: seconds after which others may take the lock over (server only).
        wait: seconds to wait for the lock.

    Raises:
        ModelError: the lock was not available within `wait` seconds.
    """
    database = database_file(client.tracking_uri)
    held = _file_lock(database, name, wait) if database is not None else server_lock(client, name, lease, wait)
    with held as hold:
        yield hold


@contextlib.contextmanager
def _file_lock(database: Path, name: str, wait: float) -> Iterator[Hold]:
    """Lock a file beside the database by `flock`; the system releases it when the process ends."""
    path = database.with_name(f"{database.name}.{name}.{LOCK}")
    deadline = time.monotonic() + wait
    with path.open("a") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise ModelError(
                        f"{path}: held by another promotion for {wait:.0f} s. Wait for it to end, or end it."
                    ) from error
                time.sleep(POLL_SECONDS)
        yield Hold(name, time.monotonic(), float("inf"))


@contextlib.contextmanager
def server_lock(client: "MlflowClient", name: str, lease: float, wait: float) -> Iterator[Hold]:
    """Hold the lock by creating the registered model `NAME.promotion-lock`, which only one process can.

    A process that was killed leaves that model behind. A process that sees the same holder for a whole lease, by its
    own clock, takes over by creating `NAME.promotion-lock.HOLDER`, which again only one process can. The last model of
    such a chain is the lock.
    """
    token = secrets.token_hex(8)
    chain, since = _acquire(client, f"{name}.{LOCK}", token, lease, wait)
    hold = Hold(name, since, lease)
    try:
        yield hold
    finally:
        # After a lease another process may hold it and will delete it. The first link is deleted first: see _is_intact.
        if time.monotonic() - hold.since < lease:
            for link in chain:
                _delete(client, link)


def _acquire(client: "MlflowClient", first: str, token: str, lease: float, wait: float) -> tuple[list[str], float]:
    """Create a link; return the chain of names that ends with it, and the time before the request was sent.

    Raises ModelError if that was not possible within `wait` seconds.
    """
    chain, holders = [first], list[str]()
    watched, since = "", time.monotonic()
    deadline = since + wait
    first_try = True
    while True:
        if not first_try:
            if time.monotonic() > deadline:
                raise ModelError(
                    f"{chain[-1]}: held by another promotion for {wait:.0f} s. Wait for it to end, or end it."
                )
            time.sleep(POLL_SECONDS)
        first_try, requested = False, time.monotonic()
        holder = token if _create(client, chain[-1], token) else _holder(client, chain[-1])
        if holder == token:  # also if the response was lost and MLflow's client repeated the request
            if _is_intact(client, chain[:-1], holders):
                return chain, requested
            _delete(client, chain[-1])
            chain, holders = [first], []
            continue
        if holder is None:  # released in between
            chain, holders = [first], []
            continue
        if holder != watched:
            watched, since = holder, time.monotonic()
        elif time.monotonic() - since > lease:  # its process has ended
            chain, holders = [*chain, f"{first}.{holder}"], [*holders, holder]
            continue


def _is_intact(client: "MlflowClient", links: list[str], holders: list[str]) -> bool:
    """Return whether the links of the ended processes still exist.

    If not, another process has taken over, finished, and deleted the chain from its first link on; a link that was
    created after that locks nothing.
    """
    return [_holder(client, link) for link in links] == holders


def _create(client: "MlflowClient", link: str, token: str) -> bool:
    from mlflow.exceptions import MlflowException

    process = f"process {os.getpid()} on {socket.gethostname()}"
    try:
        client.create_registered_model(
            link,
            tags={HOLDER: token, PROCESS: process},
            description="Lock of a running promotion. It is deleted at the end.",
        )
    except MlflowException as error:
        # The server reads an existing model to report it; if it was deleted in between, it reports that it is missing.
        if error.error_code in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
            return False
        raise ModelError(
            f"{link}: the registry refused the lock ({error.error_code}). Run the command again."
        ) from error
    return True


def _holder(client: "MlflowClient", link: str) -> str | None:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_registered_model(link).tags.get(HOLDER, ""))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise ModelError(f"{link}: the registry cannot be read ({error.error_code}). Run the command again.") from error


def _delete(client: "MlflowClient", link: str) -> None:
    from mlflow.exceptions import MlflowException

    # A model that cannot be deleted is taken over after a lease. MLflow would repeat a request whose response was lost
    # for minutes; by then another process may hold the name.
    with _without_retries(), contextlib.suppress(MlflowException):
        client.delete_registered_model(link)


@contextlib.contextmanager
def _without_retries() -> Iterator[None]:
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
