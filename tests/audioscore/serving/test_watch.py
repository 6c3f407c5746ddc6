import asyncio
import contextlib
from typing import Any

import pytest

from audioscore.errors import ModelError
from audioscore.serving import server as watch
from audioscore.serving.metrics import Settings
from audioscore.serving.model import Which
from audioscore.serving.server import keep_current
from audioscore.serving.service import Service


def followed(
    monkeypatch: pytest.MonkeyPatch, pointed_at: list[int | Exception], models: dict[int, Any], **settings: Any
) -> Service:
    """Run a service that follows an alias: at each poll it points at the next of these, at last for good."""
    looks = iter([*pointed_at])
    last: list[Any] = []

    def which_model(_: str | None) -> Which:
        last.append(next(looks, last[-1] if last else None))
        if isinstance(last[-1], Exception):
            raise last[-1]
        return Which("singers", last[-1], "models:/singers@champion", f"models:/singers/{last[-1]}")

    def load_served(which: Which, *_: Any, **__: Any) -> Any:
        found = models[which.version or 0]
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(watch, "which_model", which_model)
    monkeypatch.setattr(watch, "load_served", load_served)

    async def run() -> Service:
        service = Service(Settings(watch_seconds=0.001, **settings))
        async with service.running():
            watching = asyncio.create_task(keep_current(service, "models:/singers@champion", device="cpu", fast=False))
            for _ in range(1000):
                await asyncio.sleep(0.002)
                if len(last) > len(pointed_at) + 2 or watching.done():
                    break
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
        return service

    return asyncio.run(run())


def test_a_moved_alias_is_followed(monkeypatch: pytest.MonkeyPatch, a_model: Any) -> None:
    first, second = a_model(1), a_model(2)
    service = followed(monkeypatch, [1, 1, 2], {1: first, 2: second})
    assert service.model is second
    assert first.decoder.closed
    assert service.failure is None
    assert 'version="2"} 1.0' in service.metrics.page().decode()
    assert 'audioscore_model_switches_total{outcome="done"} 1.0' in service.metrics.page().decode()


@pytest.mark.parametrize("fault", [ModelError("no weights."), None])
def test_a_broken_champion_is_not_used_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, a_model: Any, caplog: pytest.LogCaptureFixture, fault: Exception | None
) -> None:
    first, broken = a_model(1), fault or a_model(2, fault=RuntimeError("NaN"))
    service = followed(monkeypatch, [1, 2, 2, 2], {1: first, 2: broken})
    assert service.model is first
    (record,) = [record for record in caplog.records if str(fault or "(NaN)") in record.getMessage()]
    assert "models:/singers/1 " in record.getMessage()
    assert 'outcome="failed"} 1.0' in service.metrics.page().decode()


def test_an_unreachable_registry_is_tried_again(monkeypatch: pytest.MonkeyPatch, a_model: Any) -> None:
    second = a_model(2)
    service = followed(monkeypatch, [1, ModelError("unreachable."), 2], {1: a_model(1), 2: second})
    assert service.model is second


def test_without_a_first_model_there_is_no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    service = followed(monkeypatch, [1], {1: ModelError("no weights.")})
    assert service.model is None
    assert str(service.failure) == "no weights."
