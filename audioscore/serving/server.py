"""The server process: a socket, connections with timeouts, the current model, and a clean stop.

After a signal, all accepted requests are finished before the process ends.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from audioscore.errors import UsageError
from audioscore.serving.app import build_app
from audioscore.serving.metrics import ServiceSettings
from audioscore.serving.model import ModelReference, load_served, resolve_model
from audioscore.serving.service import Service

log = logging.getLogger(__name__)

HEADER_SECONDS = 10.0  # from the connection, or the first byte of a further request, to the end of its headers
LINGER_SECONDS = 10.0  # to receive the rest of a body after an early response, so that the client reads the response
CONNECTIONS = 512
HEADER_BYTES = 16 << 10
LONGEST_WAIT = 3600.0  # s between attempts to load a version that fails


def serve(
    model: str | None,
    settings: ServiceSettings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    fast: bool = False,
    listening: Callable[[str], None] = log.info,
) -> None:
    """Serve until SIGTERM or SIGINT; calls `listening` with the address before the model is loaded.

    Raises UsageError if the address is not available, and the errors of loading the first model.
    """
    with _bound(host, port) as bound:
        found = bound.getsockname()
        listening(f"http://{f'[{found[0]}]' if ':' in found[0] else found[0]}:{found[1]}")
        asyncio.run(_run(bound, model, settings, device, fast))


async def keep_current(service: Service, model: str | None, *, device: str, fast: bool) -> None:
    """Load `model` into the service, then follow its alias until cancelled.

    If the first model cannot be loaded, `service.failure` is the error. Later errors keep the model in use, and each
    new error is logged once.
    """
    try:
        reference = await asyncio.to_thread(resolve_model, model)
        await _use(service, reference, device, fast)
    except Exception as error:  # ends the process
        service.failure = error
        return
    log.warning("%s is in use", reference.source)
    logged, failures = "", 0
    while service.settings.watch_seconds and (model is None or "@" in model):
        every = service.settings.watch_seconds
        await asyncio.sleep(min(every * 2**failures, max(every, LONGEST_WAIT)))
        try:
            current = await asyncio.to_thread(resolve_model, model)
            if current.source == reference.source:
                failures = 0
                continue
            await _use(service, current, device, fast)
        except Exception as error:  # an unreachable registry or a broken champion must not stop the service
            failures = min(failures + 1, 12)
            if str(error) != logged:
                logged = str(error)
                log.warning("%s stays in use: %s", reference.source, logged)
                service.metrics.count_switch("failed")
            continue
        log.warning("%s replaces %s", current.source, reference.source)
        service.metrics.count_switch("done")
        reference, logged, failures = current, "", 0


async def _use(service: Service, reference: ModelReference, device: str, fast: bool) -> None:
    served = await asyncio.to_thread(load_served, reference, service.settings, device=device, fast=fast)
    await service.use(served)


def _bound(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (while ")[0]
        raise UsageError(
            f"{host}:{port}: cannot listen on this address ({reason}). Choose another --host or --port."
        ) from error


async def _run(bound: socket.socket, model: str | None, settings: ServiceSettings, device: str, fast: bool) -> None:
    # Clients could fill the log with malformed requests.
    for name in ("python_multipart", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.ERROR)
    service = Service(settings)
    server = _Server(
        uvicorn.Config(
            build_app(service), http=TimeoutProtocol, ws="none", lifespan="off", log_config=None, access_log=False,
            server_header=False, h11_max_incomplete_event_size=HEADER_BYTES,
            timeout_graceful_shutdown=int(settings.stop_seconds) + 1,
        ),
        service,
    )  # fmt: skip
    async with service.running():
        watching = asyncio.create_task(keep_current(service, model, device=device, fast=fast))
        try:
            await server.serve(sockets=[bound])
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
    if service.failure is not None:
        raise service.failure
    if service.in_flight:
        log.warning("%d requests were not finished after %g s", service.in_flight, settings.stop_seconds)
    if service.in_flight or service.model is None:
        os._exit(0)  # Python would wait for threads that still compute or load a model


class _Server(uvicorn.Server):
    """After a first signal, refuse new requests with 503 and finish accepted ones; after a second, stop immediately."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._latest = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Record the signal; uvicorn's own method would raise it again at the end, so that the exit code is not 0."""
        if self._service.stopping:
            self.should_exit = self.force_exit = True
        self._service.stopping = True
        self._latest = time.monotonic() + self._service.settings.stop_seconds
        log.warning("stopping on %s: %d requests to finish", signal.Signals(sig).name, self._service.in_flight)

    async def on_tick(self, counter: int) -> bool:
        """Return True to end the server; uvicorn calls this ten times per second."""
        service = self._service
        done = service.stopping and (not service.in_flight or time.monotonic() > self._latest)
        return await super().on_tick(counter) or done or service.failure is not None


class TimeoutProtocol(H11Protocol):
    """Close connections whose client does not finish its headers, or the body of a refused request, in time."""

    _timer: asyncio.TimerHandle | None = None
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as its base does
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            self._refuse(503, "service: too many connections. Try again later.")
            return
        self._start_timer(HEADER_SECONDS, self._late_headers)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused or self.transport.is_closing():
            return
        super().data_received(data)
        if self._refused:
            return
        if self.conn.their_state is not h11.IDLE:  # headers are complete
            if self.cycle is None or not self.cycle.response_complete:
                self._stop_timer()
        elif self._timer is None and self.conn.trailing_data[0]:
            self._start_timer(HEADER_SECONDS, self._late_headers)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._stop_timer()
        if self.conn.their_state is h11.SEND_BODY:
            self._start_timer(LINGER_SECONDS, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """Answer 431 if the headers are too long, else 400 because the request is not HTTP; as JSON."""
        if len(self.conn.trailing_data[0]) > HEADER_BYTES:
            self._refuse(431, "request: the headers are too large. Send fewer or shorter headers.")
        else:
            self._refuse(400, "request: is not HTTP/1.1. Send an HTTP/1.1 request.")

    def _late_headers(self) -> None:
        self._refuse(408, f"request: the headers were not complete after {HEADER_SECONDS:g} s. Send them faster.")

    def _refuse(self, status: int, message: str) -> None:
        """Answer without the application, and ignore all further data."""
        if self.transport.is_closing():
            return
        body = json.dumps({"error": message}).encode()
        head = f"HTTP/1.1 {status} Refused\r\nContent-Type: application/json\r\nConnection: close\r\n"
        self.transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        self._refused = True
        # Closing now would reset the connection while the client still sends, before it reads the response.
        self.transport.write_eof()
        self._start_timer(LINGER_SECONDS, self.transport.close)

    def _start_timer(self, seconds: float, then: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, then)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
