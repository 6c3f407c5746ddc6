import asyncio
import json
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from audioscore.serving import server as protocol
from audioscore.serving.server import HEADER_BYTES, PatientProtocol


async def answer_to(*sent: bytes, pause: float = 0.0, reads_body: bool = True) -> tuple[int, Any]:
    """Send bytes to a server with this protocol; return its status and body."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while reads_body and (await receive()).get("more_body"):
            pass
        head = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": b"{}"})

    settings = uvicorn.Config(app, http=PatientProtocol, ws="none", h11_max_incomplete_event_size=HEADER_BYTES)
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: PatientProtocol(settings, state, {}), "127.0.0.1", 0)
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
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.05)
    status, body = asyncio.run(answer_to(*sent, pause=pause))
    assert (status, list(body)) == (408, ["error"])
    assert " 0.05 s" in body["error"]


def test_an_early_answer_waits_for_its_reader_but_not_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LINGER_SECONDS", 0.05)
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
    monkeypatch.setattr(protocol, "LINGER_SECONDS", 0.05)
    monkeypatch.setattr(protocol, "CONNECTIONS", connections)
    answered, body = asyncio.run(answer_to(sent))
    assert (answered, list(body)) == (status, ["error"])
