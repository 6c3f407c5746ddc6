"""Who may move the champion: one at a time, on a SQLite registry and on a server. See docs/adr/0010-promotion-lock.md.

MLflow sets an alias unconditionally, so that two who have read the same champion would both replace it. A SQLite
registry is locked by a file beside it. A server offers one thing that only one of two callers can do: create a
registered model of a given name. That name is the lock.
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
from urllib.parse import quote

from audioscore.errors import ModelError
from audioscore.tracking.connection import database_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

LEASE_SECONDS = 30.0  # moving aliases takes a second; who holds the lock for longer has died
WAIT_SECONDS = 120.0  # longer than two leases
POLL_SECONDS = 0.1
LOCK = "promotion-lock"
HOLDER, PLACE = "holder", "place"  # tags: a random token, and where its process runs


@dataclass(frozen=True)
class Hold:
    """A lock that is held. On a server it may be taken over after a lease."""

    name: str
    since: float  # on this process's monotonic clock
    lease: float

    def check(self) -> None:
        """Raise ModelError once so much of the lease is over that others may soon take over; called before writing."""
        held = time.monotonic() - self.since
        if held > self.lease / 2:
            raise ModelError(
                f"{self.name}: the registry took {held:.0f} s, and the lock may be another's by now. Nothing was "
                "changed further; look at `audioscore models --history`, then try again."
            )


@contextlib.contextmanager
def promotion_lock(
    client: "MlflowClient", name: str, *, lease: float = LEASE_SECONDS, wait: float = WAIT_SECONDS
) -> Iterator[Hold]:
    """Hold the lock of a registered model's aliases; others wait for it.

    Raises ModelError where it cannot be had within `wait` seconds.
    """
    database = database_file(client.tracking_uri)
    held = _file_lock(database, name, wait) if database is not None else server_lock(client, name, lease, wait)
    with held as hold:
        yield hold


@contextlib.contextmanager
def _file_lock(database: Path, name: str, wait: float) -> Iterator[Hold]:
    """`flock` on a file beside the database; the system frees it when its holder ends, however it ends."""
    path = database.with_name(f"{database.name}.{quote(name, safe='')}.{LOCK}")
    deadline = time.monotonic() + wait
    with path.open("a") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as fault:
                if time.monotonic() > deadline:
                    raise ModelError(
                        f"{path}: held by another promotion for {wait:.0f} s. Wait for it to end, or end it."
                    ) from fault
                time.sleep(POLL_SECONDS)
        yield Hold(name, time.monotonic(), float("inf"))


@contextlib.contextmanager
def server_lock(client: "MlflowClient", name: str, lease: float, wait: float) -> Iterator[Hold]:
    """The lock as a registered model that only one can create, `NAME.promotion-lock`.

    A holder that died leaves it behind. Whoever sees the same holder for a whole lease, by its own clock, stands in by
    creating `NAME.promotion-lock.HOLDER`, which again only one can; the last of such a chain holds the lock.
    """
    token = secrets.token_hex(8)
    chain, since = _acquire(client, f"{name}.{LOCK}", token, lease, wait)
    hold = Hold(name, since, lease)
    try:
        yield hold
    finally:
        # After a lease it may be another's, who then clears it away. The first link goes first: see `_is_intact`.
        if time.monotonic() - hold.since < lease:
            for link in chain:
                _delete(client, link)


def _acquire(client: "MlflowClient", first: str, token: str, lease: float, wait: float) -> tuple[list[str], float]:
    """The chain of names that ends with one's own, and since when it is held: others count from before the answer.

    Raises ModelError where there was none within `wait` seconds.
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
        first_try, asked = False, time.monotonic()
        holder = token if _create(client, chain[-1], token) else _holder(client, chain[-1])
        if holder == token:  # also where the answer was lost on its way and MLflow's client asked again
            if _is_intact(client, chain[:-1], holders):
                return chain, asked
            _delete(client, chain[-1])
            chain, holders = [first], []
            continue
        if holder is None:  # released in between
            chain, holders = [first], []
            continue
        if holder != watched:
            watched, since = holder, time.monotonic()
        elif time.monotonic() - since > lease:  # it has died
            chain, holders = [*chain, f"{first}.{holder}"], [*holders, holder]
            continue


def _is_intact(client: "MlflowClient", links: list[str], holders: list[str]) -> bool:
    """Whether those who died still stand before one's own link.

    Where not, their successor has done its work and cleared the chain from its first link on, which somebody else may
    hold anew: a link that was created after that holds nothing.
    """
    return [_holder(client, link) for link in links] == holders


def _create(client: "MlflowClient", link: str, token: str) -> bool:
    from mlflow.exceptions import MlflowException

    place = f"process {os.getpid()} on {socket.gethostname()}"
    try:
        client.create_registered_model(
            link, tags={HOLDER: token, PLACE: place}, description="A promotion is under way. It removes this by itself."
        )
    except MlflowException as fault:
        # To say that it exists, the server reads it; where it was removed in between, it says instead that it does not.
        if fault.error_code in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
            return False
        raise ModelError(f"{link}: the registry gives no lock ({fault.error_code}). Try again.") from fault
    return True


def _holder(client: "MlflowClient", link: str) -> str | None:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_registered_model(link).tags.get(HOLDER, ""))
    except MlflowException as fault:
        if fault.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise ModelError(f"{link}: the registry cannot be read ({fault.error_code}). Try again.") from fault


def _delete(client: "MlflowClient", link: str) -> None:
    from mlflow.exceptions import MlflowException

    # What cannot be removed is taken over after a lease. MLflow would ask again for minutes where an answer is lost: by
    # then the name may be another's.
    with _tried_once(), contextlib.suppress(MlflowException):
        client.delete_registered_model(link)


@contextlib.contextmanager
def _tried_once() -> Iterator[None]:
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
