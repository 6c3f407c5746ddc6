"""The process: a socket, a model, and an end in which nothing that was accepted is lost."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from audioscore.errors import UsageError
from audioscore.serving.app import build_app
from audioscore.serving.protocol import HEADER_BYTES, PatientProtocol
from audioscore.serving.service import Service
from audioscore.serving.settings import Settings
from audioscore.serving.watch import keep_current

log = logging.getLogger(__name__)


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
