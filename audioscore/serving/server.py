"""The process: a socket, a model, and an end in which nothing that was accepted is lost."""

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
from audioscore.serving.metrics import Settings
from audioscore.serving.model import Which, load_served, which_model
from audioscore.serving.service import Service

HEADER_SECONDS = 10.0  # from a connection, or the first byte of a next request, to the end of its headers
LINGER_SECONDS = 10.0  # for the rest of a body whose answer was given early, so that its sender comes to read it
CONNECTIONS = 512
HEADER_BYTES = 16 << 10


class PatientProtocol(H11Protocol):
    """A connection that is closed where its client neither finishes its headers nor its refused body in time."""

    _patience: asyncio.TimerHandle | None = None
    _dismissed = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as its base does
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            self._say(503, "the service has too many connections. Try again later.")
            return
        self._be_patient(HEADER_SECONDS, self._late_headers)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._dismissed or self.transport.is_closing():
            return
        super().data_received(data)
        if self._dismissed:
            return
        if self.conn.their_state is not h11.IDLE:  # headers are complete
            if self.cycle is None or not self.cycle.response_complete:
                self._stop_waiting()
        elif self._patience is None and self.conn.trailing_data[0]:
            self._be_patient(HEADER_SECONDS, self._late_headers)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._stop_waiting()
        if self.conn.their_state is h11.SEND_BODY:
            self._be_patient(LINGER_SECONDS, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP: 431 where headers are too long, else 400. In JSON, as everything here."""
        if len(self.conn.trailing_data[0]) > HEADER_BYTES:
            self._say(431, "the request's headers are too large. Send fewer, or shorter ones.")
        else:
            self._say(400, "this is no HTTP/1.1 request. Send one.")

    def _late_headers(self) -> None:
        self._say(408, f"the request's headers were not complete after {HEADER_SECONDS:g} s. Send them at once.")

    def _say(self, status: int, sentence: str) -> None:
        """Answer without the application, and listen no more."""
        if self.transport.is_closing():
            return
        body = json.dumps({"error": sentence}).encode()
        head = f"HTTP/1.1 {status} Refused\r\nContent-Type: application/json\r\nConnection: close\r\n"
        self.transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        self._dismissed = True
        # Closed at once, what the client still sends would reset the connection before it has read this.
        self.transport.write_eof()
        self._be_patient(LINGER_SECONDS, self.transport.close)

    def _be_patient(self, seconds: float, then: Callable[[], None]) -> None:
        self._stop_waiting()
        self._patience = self.loop.call_later(seconds, then)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


log = logging.getLogger(__name__)

LONGEST_WAIT = 3600.0  # s between tries to load a version that fails


async def keep_current(service: Service, model: str | None, *, device: str, fast: bool) -> None:
    """Load what `model` names into the service, then follow its alias until cancelled.

    Where the first cannot be loaded, `service.failure` says why; later the model in use is kept, and the log has one
    sentence for each fault that is new.
    """
    try:
        which = await asyncio.to_thread(which_model, model)
        await _use(service, which, device, fast)
    except Exception as fault:  # the process ends with it
        service.failure = fault
        return
    log.warning("%s scores", which.source)
    said, failures = "", 0
    while service.settings.watch_seconds and (model is None or "@" in model):
        every = service.settings.watch_seconds
        await asyncio.sleep(min(every * 2**failures, max(every, LONGEST_WAIT)))
        try:
            now = await asyncio.to_thread(which_model, model)
            if now.source == which.source:
                failures = 0
                continue
            await _use(service, now, device, fast)
        except Exception as fault:  # a registry that is away or a broken champion must not stop the service
            failures = min(failures + 1, 12)
            if str(fault) != said:
                said = str(fault)
                log.warning("%s is kept: %s", which.source, said)
                service.metrics.switch("failed")
            continue
        log.warning("%s now scores in place of %s", now.source, which.source)
        service.metrics.switch("done")
        which, said, failures = now, "", 0


async def _use(service: Service, which: Which, device: str, fast: bool) -> None:
    served = await asyncio.to_thread(load_served, which, service.settings, device=device, fast=fast)
    await service.use(served)


def serve(
    model: str | None,
    settings: Settings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    fast: bool = False,
    listening: Callable[[str], None] = log.info,
) -> None:
    """Serve until SIGTERM or SIGINT; `listening` is told the address before the model is loaded.

    Raises UsageError where the address cannot be had, and what loading the first model raises.
    """
    with _bound(host, port) as bound:
        found = bound.getsockname()
        listening(f"http://{f'[{found[0]}]' if ':' in found[0] else found[0]}:{found[1]}")
        asyncio.run(_run(bound, model, settings, device, fast))


def _bound(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as fault:
        reason = str(getattr(fault, "strerror", None) or fault).partition(" (while ")[0]
        raise UsageError(
            f"{host}:{port}: cannot be listened at ({reason}). Choose another --host or --port."
        ) from fault


async def _run(bound: socket.socket, model: str | None, settings: Settings, device: str, fast: bool) -> None:
    # A line for each malformed request would let strangers fill the log.
    for chatty in ("python_multipart", "uvicorn.error"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    service = Service(settings)
    server = _Server(
        uvicorn.Config(
            build_app(service), http=PatientProtocol, ws="none", lifespan="off", log_config=None, access_log=False,
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
        os._exit(0)  # threads still compute or load, and Python would wait for them


class _Server(uvicorn.Server):
    """Told to stop, it refuses what is new by 503 until what it accepted is answered; told again, it stops at once."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._latest = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Only notes it: uvicorn would otherwise raise the signal again at the end, and not exit with 0."""
        if self._service.stopping:
            self.should_exit = self.force_exit = True
        self._service.stopping = True
        self._latest = time.monotonic() + self._service.settings.stop_seconds
        log.warning("stopping on %s: %d requests to finish", signal.Signals(sig).name, self._service.in_flight)

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; True ends the server."""
        service = self._service
        done = service.stopping and (not service.in_flight or time.monotonic() > self._latest)
        return await super().on_tick(counter) or done or service.failure is not None
