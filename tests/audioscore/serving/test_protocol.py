import asyncio
import json
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from audioscore.serving import protocol
from audioscore.serving.protocol import HEADER_BYTES, PatientProtocol


async def said_to(*sent: bytes, pause: float = 0.0, reads_body: bool = True) -> tuple[int, Any]:
    """Status and body that a server with this protocol answers to bytes."""

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


def test_requests_are_answered_as_ever() -> None:
    assert asyncio.run(said_to(b"GET / HTTP/1.1\r\n", b"Host: x\r\n\r\n", pause=0.01)) == (200, {})


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.05)
    late = "the request's headers were not complete after 0.05 s. Send them at once."
    assert asyncio.run(said_to()) == (408, {"error": late})
    assert asyncio.run(said_to(b"GET / HTTP/1.1\r\nHost:")) == (408, {"error": late})
    assert asyncio.run(said_to(b"GET / HTTP/1.1\r\n", b"Ho", b"st: x\r\n", pause=0.03)) == (408, {"error": late})


def test_an_early_answer_waits_for_its_reader_but_not_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LINGER_SECONDS", 0.05)
    sent = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + bytes(1000)
    assert asyncio.run(said_to(sent, reads_body=False)) == (200, {})


def test_what_is_no_request_is_told_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LINGER_SECONDS", 0.05)
    huge = "the request's headers are too large. Send fewer, or shorter ones."
    assert asyncio.run(said_to(b"GET / HTTP/1.1\r\nX: " + b"y" * 10**6)) == (431, {"error": huge})
    assert asyncio.run(said_to(b"hello\r\n\r\n")) == (400, {"error": "this is no HTTP/1.1 request. Send one."})
    monkeypatch.setattr(protocol, "CONNECTIONS", 0)
    many = "the service has too many connections. Try again later."
    assert asyncio.run(said_to(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")) == (503, {"error": many})
