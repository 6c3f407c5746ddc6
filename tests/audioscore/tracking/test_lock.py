import os
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from audioscore.errors import ModelError
from audioscore.tracking.connection import connect
from audioscore.tracking.lock import Hold, promotion_lock, server_lock

FIRST = "singers.promotion-lock"
HELD = """
import sys
from types import SimpleNamespace
from audioscore.tracking.lock import promotion_lock
with promotion_lock(SimpleNamespace(tracking_uri=sys.argv[1]), "singers"):
    print("held", flush=True)
    sys.stdin.read()
"""


def links(client: MlflowClient) -> list[str]:
    return sorted(found.name for found in client.search_registered_models() if "lock" in found.name)


def dead(client: MlflowClient, link: str, holder: str) -> None:
    """What a holder that died left behind."""
    client.create_registered_model(link, tags={"holder": holder})


def test_another_process_holds_a_sqlite_registry(tracking_uri: str, client: MlflowClient) -> None:
    command = [sys.executable, "-c", HELD, tracking_uri]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        held = pytest.raises(ModelError, match=r"mlflow\.db\.singers\.promotion-lock: .*\b0 s\b")
        with held, promotion_lock(client, "singers", wait=0):
            pass
        with promotion_lock(client, "duets", wait=0):
            pass  # another model's aliases
        process.kill()
        process.wait()
        with promotion_lock(client, "singers"):
            pass  # the system has freed it


def test_the_servers_lock_is_held_by_one_and_left_clean(client: MlflowClient) -> None:
    with server_lock(client, "singers", lease=60, wait=1) as hold:
        hold.check()
        assert links(client) == [FIRST]
        assert client.get_registered_model(FIRST).tags["place"].split()[1] == str(os.getpid())
        held = pytest.raises(ModelError, match=rf"^{FIRST}: .*\b0 s\b")
        with held, server_lock(client, "singers", lease=60, wait=0.3):
            pass
    assert links(client) == []
    with pytest.raises(ZeroDivisionError), server_lock(client, "singers", lease=60, wait=1):
        raise ZeroDivisionError
    assert links(client) == []


def test_dead_holders_have_one_successor(client: MlflowClient) -> None:
    dead(client, FIRST, "a")
    dead(client, f"{FIRST}.a", "b")
    with server_lock(client, "singers", lease=3, wait=60):
        assert links(client) == [FIRST, f"{FIRST}.a", f"{FIRST}.b"]
    assert links(client) == []


def test_a_link_behind_a_cleared_chain_holds_nothing(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The successor of the dead holder ends, and another holds the first link, just as the second is created."""
    dead(client, FIRST, "a")
    create = client.create_registered_model
    raced: list[str] = []

    def late(link: str, **options: Any) -> RegisteredModel:
        if link == f"{FIRST}.a" and not raced:
            raced.append(link)
            client.delete_registered_model(FIRST)
            create(FIRST, tags={"holder": "c"})
        return create(link, **options)

    monkeypatch.setattr(client, "create_registered_model", late)
    with server_lock(client, "singers", lease=3, wait=60):
        assert links(client) == [FIRST, f"{FIRST}.c"]
    assert raced


def test_a_lock_freed_while_it_is_requested_is_requested_again(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's store finds that the name exists, reads it, and finds nothing."""
    dead(client, FIRST, "a")
    store = SqlAlchemyStore(client.tracking_uri)
    read = SqlAlchemyStore.get_registered_model
    freed: list[str] = []

    def late(one: SqlAlchemyStore, name: str) -> RegisteredModel:
        if not freed:
            freed.append(name)
            store.delete_registered_model(name)
        return read(one, name)

    monkeypatch.setattr(SqlAlchemyStore, "get_registered_model", late)
    with server_lock(client, "singers", lease=60, wait=20):
        assert links(client) == [FIRST]
    assert freed == [FIRST]


def test_a_lock_whose_answer_was_lost_is_held(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    create = client.create_registered_model

    def twice(link: str, **options: Any) -> RegisteredModel:
        create(link, **options)
        return create(link, **options)  # refused, as where MLflow's client asks again

    monkeypatch.setattr(client, "create_registered_model", twice)
    with server_lock(client, "singers", lease=60, wait=0):
        assert links(client) == [FIRST]
    assert links(client) == []


@pytest.mark.parametrize("before", [None, "7"])
def test_a_lock_is_released_without_retries(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    """Asked again after a lost answer, MLflow's client would remove what another holds by then."""
    name, tries = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", list[str | None]()
    monkeypatch.setenv(name, str(before))
    if before is None:
        monkeypatch.delenv(name)

    def delete(_: str) -> None:
        tries.append(os.environ.get(name))
        raise MlflowException("the server is gone")

    monkeypatch.setattr(client, "delete_registered_model", delete)
    with server_lock(client, "singers", lease=60, wait=0):
        pass
    assert os.environ.get(name) == before
    assert tries == ["0"]


def test_only_one_of_many_holds_it_at_a_time(tracking_uri: str, client: MlflowClient) -> None:
    inside, seen, faults = [0], list[int](), list[Exception]()

    def work() -> None:
        try:
            with server_lock(connect(tracking_uri), "singers", lease=30, wait=60):
                inside[0] += 1
                seen.append(inside[0])
                time.sleep(0.05)
                inside[0] -= 1
        except Exception as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert seen == [1] * 4


def test_an_expired_lease_changes_nothing_more(client: MlflowClient) -> None:
    Hold("singers", time.monotonic(), 60).check()
    with pytest.raises(ModelError, match=r"^singers: .*\b4\d s\b"):
        Hold("singers", time.monotonic() - 40, 60).check()
    with server_lock(client, "singers", lease=0.1, wait=1):
        time.sleep(0.15)
    assert links(client) == [FIRST]  # its successor removes it
