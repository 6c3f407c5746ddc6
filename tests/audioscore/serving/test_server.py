import asyncio
import contextlib
import json
import socket
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from audioscore.errors import ModelError, UsageError
from audioscore.serving import server as server_module
from audioscore.serving.metrics import ServiceSettings
from audioscore.serving.model import ModelReference
from audioscore.serving.server import HEADER_BYTES, TimeoutProtocol, keep_current, serve
from audioscore.serving.service import Service


def test_an_unavailable_address_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"^127\.0\.0\.1:{port}: .*\(.*in use\).*--host.*--port"):
            serve("anything", ServiceSettings(), port=port)
    with pytest.raises(UsageError, match=r"^no\.such\.host\.invalid:0: "):
        serve("anything", ServiceSettings(), host="no.such.host.invalid", port=0)


def test_a_missing_model_ends_the_server() -> None:
    addresses: list[str] = []
    with pytest.raises(UsageError, match=r"^gone: "):
        serve("gone", ServiceSettings(), port=0, listening=addresses.append)
    assert addresses[0].startswith("http://127.0.0.1:")


def followed(
    monkeypatch: pytest.MonkeyPatch, pointed_at: list[int | Exception], models: dict[int, Any], **settings: Any
) -> Service:
    """Run a service that follows an alias; each poll finds the next of these versions, then always the last one."""
    versions = iter([*pointed_at])
    last: list[Any] = []

    def resolve_model(_: str | None) -> ModelReference:
        last.append(next(versions, last[-1] if last else None))
        if isinstance(last[-1], Exception):
            raise last[-1]
        return ModelReference("singers", last[-1], "models:/singers@champion", f"models:/singers/{last[-1]}")

    def load_served(reference: ModelReference, *_: Any, **__: Any) -> Any:
        found = models[reference.version or 0]
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(server_module, "resolve_model", resolve_model)
    monkeypatch.setattr(server_module, "load_served", load_served)

    async def run() -> Service:
        service = Service(ServiceSettings(watch_seconds=0.001, **settings))
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


@pytest.mark.parametrize("error", [ModelError("no weights."), None])
def test_a_broken_champion_is_not_used_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, a_model: Any, caplog: pytest.LogCaptureFixture, error: Exception | None
) -> None:
    first, broken = a_model(1), error or a_model(2, error=RuntimeError("NaN"))
    service = followed(monkeypatch, [1, 2, 2, 2], {1: first, 2: broken})
    assert service.model is first
    (record,) = [record for record in caplog.records if str(error or "(NaN)") in record.getMessage()]
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


async def answer_to(*sent: bytes, pause: float = 0.0, reads_body: bool = True) -> tuple[int, Any]:
    """Send bytes to a server with this protocol; return its status and body."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while reads_body and (await receive()).get("more_body"):
            pass
        head = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": b"{}"})

    settings = uvicorn.Config(app, http=TimeoutProtocol, ws="none", h11_max_incomplete_event_size=HEADER_BYTES)
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: TimeoutProtocol(settings, state, {}), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    for part in sent:
        writer.write(part)
        await asyncio.sleep(pause)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-len"))
    body = await reader.readexactly(length)
    ended = b"" if b"connection: close" not in head.lower() and reads_body else await asyncio.wait_for(reader.read(), 5)
    assert ended == b""
    writer.close()
    server.close()
    return int(head.split()[1]), json.loads(body)


def test_a_request_in_parts_is_answered() -> None:
    assert asyncio.run(answer_to(b"GET / HTTP/1.1\r\n", b"Host: x\r\n\r\n", pause=0.01)) == (200, {})


@pytest.mark.parametrize(
    ("sent", "pause"),
    [((), 0.0), ((b"GET / HTTP/1.1\r\nHost:",), 0.0), ((b"GET / HTTP/1.1\r\n", b"Ho", b"st: x\r\n"), 0.03)],
)
def test_incomplete_headers_time_out(monkeypatch: pytest.MonkeyPatch, sent: tuple[bytes, ...], pause: float) -> None:
    monkeypatch.setattr(server_module, "HEADER_SECONDS", 0.05)
    status, body = asyncio.run(answer_to(*sent, pause=pause))
    assert (status, list(body)) == (408, ["error"])
    assert " 0.05 s" in body["error"]


def test_after_an_early_response_the_rest_of_the_body_has_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "LINGER_SECONDS", 0.05)
    sent = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + bytes(1000)
    assert asyncio.run(answer_to(sent, reads_body=False)) == (200, {})


@pytest.mark.parametrize(
    ("sent", "connections", "status"),
    [
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 10**6, 1, 431),
        (b"hello\r\n\r\n", 1, 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 0, 503),
    ],
    ids=["large", "malformed", "many"],
)
def test_refusals_are_json(monkeypatch: pytest.MonkeyPatch, sent: bytes, connections: int, status: int) -> None:
    monkeypatch.setattr(server_module, "LINGER_SECONDS", 0.05)
    monkeypatch.setattr(server_module, "CONNECTIONS", connections)
    answered, body = asyncio.run(answer_to(sent))
    assert (answered, list(body)) == (status, ["error"])
