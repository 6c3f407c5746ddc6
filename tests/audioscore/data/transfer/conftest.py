import contextlib
import http.server
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from audioscore.data.transfer import pool


@dataclass
class Served:
    """A file of the test's web server, and the errors of the server for it."""

    content: bytes = b""
    kind: str = "audio/mp4"
    etag: str | None = '"v1"'
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # sent first, one per request
    drops: list[int] = field(default_factory=list)  # bytes of each response after which the connection is cut
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None  # a false Content-Length
    supports_range: bool = True
    next_version: bytes | None = None  # new content after the first response, with ETag "v2"
    seconds_between: float = 0.0  # between pieces of 1000 bytes


class Web:
    """A local web server: `requests` are (path, Range) in order, `sent` counts the bytes of response bodies by path."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.sent: Counter[str] = Counter()
        web = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                web.answer(self)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def serve(self, path: str, content: bytes = b"", **options: Any) -> str:
        self.files[path] = Served(content, **options)
        return f"{self.url}/{path}"

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path = request.path.lstrip("/").partition("?")[0]
        requested = request.headers.get("Range")
        self.requests.append((path, requested))
        served = self.files.get(path)
        if served is None or served.answers:
            status, headers = (404, {}) if served is None else served.answers.pop(0)
            self.start(request, status, {"Content-Length": "0"} | headers)
            return
        offset = 0
        same = request.headers.get("If-Range") in (None, served.etag)
        if requested and served.supports_range and same:
            offset = int(requested.removeprefix("bytes=").rstrip("-"))
            if offset >= len(served.content):
                self.start(request, 416, {"Content-Length": "0"})
                return
        headers = {"Content-Type": served.kind, **served.headers}
        if served.etag:
            headers["ETag"] = served.etag
        if offset:
            headers["Content-Range"] = f"bytes {offset}-{len(served.content) - 1}/{len(served.content)}"
        content = served.content
        length = len(content) if served.length is None else served.length
        headers.setdefault("Content-Length", str(length - offset))
        if served.next_version is not None:
            served.content, served.etag, served.next_version = served.next_version, '"v2"', None
        self.start(request, 206 if offset else 200, headers)
        end = offset + served.drops.pop(0) if served.drops else len(content)
        self.send(request, path, content[offset:end], served.seconds_between)
        if end < len(content) or length > len(content):
            request.close_connection = True

    def start(self, request: http.server.BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()

    def send(self, request: http.server.BaseHTTPRequestHandler, path: str, body: bytes, pause: float) -> None:
        size = 1000 if pause else len(body) or 1
        for start in range(0, len(body), size):
            piece = body[start : start + size]
            self.sent[path] += len(piece)  # before the write: a test may read it immediately
            try:
                request.wfile.write(piece)
            except OSError:
                self.sent[path] -= len(piece)
                request.close_connection = True
                return
            time.sleep(pause)


@pytest.fixture(autouse=True)
def _no_pauses_and_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def web() -> Iterator[Web]:
    found = Web()
    yield found
    found.server.shutdown()
    found.server.server_close()


class Cut:
    """A proxy that cuts each of the next connections after `cuts.pop(0)` bytes of responses."""

    def __init__(self, host: str, port: int) -> None:
        self.cuts: list[int] = []
        self.behind = (host, port)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self.listener.accept()[0]
                limit = self.cuts.pop(0) if self.cuts else None
                threading.Thread(target=self.forward, args=(client, limit), daemon=True).start()

    def forward(self, client: socket.socket, limit: int | None) -> None:
        with client, socket.create_connection(self.behind) as server:
            threading.Thread(target=self.copy, args=(client, server, None), daemon=True).start()
            self.copy(server, client, limit)
            for end in (client, server):  # unblocks the other direction
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def copy(self, source: socket.socket, target: socket.socket, limit: int | None) -> None:
        left = 1 << 62 if limit is None else limit
        with contextlib.suppress(OSError):
            while left and (block := source.recv(min(1 << 14, left))):
                target.sendall(block)
                left -= len(block)


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[tuple[str, int]]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def cut(moto_endpoint: tuple[str, int]) -> Iterator[Cut]:
    found = Cut(*moto_endpoint)
    yield found
    found.listener.close()


@pytest.fixture(scope="session")
def moto_s3(moto_endpoint: tuple[str, int]) -> Any:
    """The server's S3 without the proxy. Creating a client is slow, so tests share it."""
    import boto3

    session = boto3.session.Session("key", "secret", region_name="us-east-1")
    return session.resource("s3", endpoint_url="http://{}:{}".format(*moto_endpoint))


@pytest.fixture
def bucket(cut: Cut, moto_s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The empty bucket `transfer-songs`; the requests of the tested code go through the proxy `cut`."""
    for name, value in {
        "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1",
        "EC2_METADATA_DISABLED": "true", "CONFIG_FILE": os.devnull, "SHARED_CREDENTIALS_FILE": os.devnull,
        "ENDPOINT_URL": cut.endpoint,
    }.items():  # fmt: skip
        monkeypatch.setenv(f"AWS_{name}", value)
    found = moto_s3.create_bucket(Bucket="transfer-songs")
    yield found
    found.objects.all().delete()
