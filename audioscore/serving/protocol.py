"""HTTP/1.1 as uvicorn speaks it, with an end to patience: for headers, idle bodies, and too many connections."""

import asyncio
import json
from collections.abc import Callable

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

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
