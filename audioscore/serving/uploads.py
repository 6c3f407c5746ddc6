"""Receive a multipart body: write its recordings to disk as they arrive, and refuse other parts.

Only one chunk of the body is in memory at a time. A refused request is an HTTPException.
"""

import asyncio
import contextlib
import re
from email.message import Message
from email.utils import collapse_rfc2231_value
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException
from starlette.requests import Request

from audioscore.scoring.input import InputRecording
from audioscore.serving.metrics import ServiceSettings

FIELD = "file"
MAX_HEADER_BYTES = 1 << 16  # of one part; the names of files in responses are cut
NAME_CHARACTERS = 200  # of a file name in responses and messages


async def receive_uploads(request: Request, folder: Path, settings: ServiceSettings) -> list[InputRecording]:
    """Write the recordings of a request into `folder`; returns them with the sender's names, in the order of the parts.

    Raises: HTTPException 415 (not multipart), 413 (too large, too many), 408 (too slow), 400 (malformed, no recording);
        starlette's ClientDisconnect if the client closes the connection.
    """
    boundary = _boundary(request)
    refuse_large(request, settings)
    parts = _Parts(folder, settings.max_files)
    try:
        parser = MultipartParser(boundary, {
            "on_part_begin": parts.begin, "on_header_field": parts.header_field, "on_header_value": parts.header_value,
            "on_header_end": parts.header_end, "on_headers_finished": parts.headers_finished,
            "on_part_data": parts.data, "on_part_end": parts.end, "on_end": parts.finish,
        }, max_header_size=MAX_HEADER_BYTES)  # fmt: skip
        await _feed(request, parser, settings)
        parser.finalize()
    except FormParserError as error:
        raise HTTPException(400, f"POST /score: the multipart body is malformed ({error}). Correct it.") from error
    except OSError as error:  # the disk is full
        raise HTTPException(503, f"upload: cannot be stored ({error.strerror}). Try again later.") from error
    finally:
        parts.close()
    if not parts.finished:
        raise HTTPException(400, "POST /score: the multipart body ends before its last boundary. Send it again.")
    if not parts.uploads:
        raise HTTPException(400, f"POST /score: has no recording. Send each recording as a part named {FIELD!r}.")
    return parts.uploads


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        given = kind.decode("utf-8", "replace")[:NAME_CHARACTERS] or "no content type"
        raise HTTPException(415, f"POST /score: needs multipart/form-data; got {given}. Send parts named {FIELD!r}.")
    if not options.get(b"boundary"):
        raise HTTPException(400, "POST /score: the content type has no boundary. Let the HTTP library set it.")
    return options[b"boundary"]


def refuse_large(request: Request, settings: ServiceSettings) -> None:
    """Raise 413 if the Content-Length is larger than the limit."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > settings.max_bytes:
        raise _too_large(settings)


def _too_large(settings: ServiceSettings) -> HTTPException:
    return HTTPException(
        413, f"POST /score: the request is larger than {settings.max_bytes / 2**20:g} MiB. Send fewer recordings."
    )


async def _feed(request: Request, parser: MultipartParser, settings: ServiceSettings) -> None:
    """Read the body, within the limits of size and time."""
    now, stream, received = asyncio.get_running_loop().time, request.stream(), 0
    started = now()
    while True:
        timeout = started + settings.body_seconds + received / settings.slowest - now()
        try:
            chunk = await asyncio.wait_for(anext(stream), max(timeout, 0.001))
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise HTTPException(
                408, f"POST /score: only {received} bytes arrived in {now() - started:.0f} s. Use a faster connection.",
                headers={"Connection": "close"},
            ) from None  # fmt: skip
        received += len(chunk)
        if received > settings.max_bytes:
            raise _too_large(settings)
        parser.write(chunk)


def parse_disposition(header: bytes) -> tuple[str, str | None]:
    """Return the field and file names of a part's Content-Disposition; the file name is None where it has none.

    Clients should send UTF-8 (RFC 7578), but some send `filename*` (RFC 8187), which is preferred, or GBK.

    >>> parse_disposition(b"form-data; name=file; filename*=utf-8'zh'%E6%AD%8C.m4a")
    ('file', '歌.m4a')
    """
    message = Message()
    message["Content-Disposition"] = header.decode("latin-1")
    plain: dict[str, str] = {}
    extended = ""
    for key, value in message.get_params([], "content-disposition"):
        if isinstance(value, str):
            plain.setdefault(key.lower(), _decode(value.encode("latin-1")))
        elif key.lower() == "filename":
            with contextlib.suppress(ValueError):  # the name of its encoding is invalid
                extended = extended or collapse_rfc2231_value(value)
    escaped = plain.get("filename")
    # The characters that browsers escape, and no others.
    given = None if escaped is None else re.sub("%0D|%0A", "", escaped.replace("%22", '"'), flags=re.IGNORECASE)
    return plain.get("name", ""), extended or given


def _decode(text: bytes) -> str:
    for encoding in ("utf-8", "gb18030"):
        with contextlib.suppress(UnicodeDecodeError):
            return text.decode(encoding)
    return text.decode("latin-1")


def display_name(given: str | None, number: int) -> str:
    """Name of an upload in responses: the last part of its file name, or its number, from 1, if there is no name.

    >>> display_name("../../etc/passwd", 1), display_name("C:\\\\songs\\\\one.wav", 1), display_name("", 2)
    ('passwd', 'one.wav', 'recording 2')
    """
    last = (given or "").replace("\\", "/").rsplit("/", 1)[-1]
    kept = "".join(letter for letter in last if letter.isprintable()).strip()[:NAME_CHARACTERS]
    return kept or f"recording {number}"


class _Parts:
    """Callbacks of the multipart parser, which write the parts to files."""

    def __init__(self, folder: Path, most: int) -> None:
        self.uploads: list[InputRecording] = []
        self.finished = False
        self._folder, self._most = folder, most
        self._open: BinaryIO | None = None
        self._field = self._value = self._disposition = b""
        self._unnamed, self._size = False, 0

    def begin(self) -> None:
        self._field = self._value = self._disposition = b""

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def headers_finished(self) -> None:
        name, filename = parse_disposition(self._disposition)
        if name != FIELD:
            shown = repr(name[:NAME_CHARACTERS]) if name else "without a name"
            raise HTTPException(400, f"POST /score: unexpected part {shown}. Send recordings as parts named {FIELD!r}.")
        if len(self.uploads) == self._most:
            raise HTTPException(413, f"POST /score: has more than {self._most} recordings. Send fewer at a time.")
        number = len(self.uploads) + 1
        # Without a suffix, because FFmpeg would select the format of a name like x.m3u8 by its suffix.
        path = self._folder / str(number)
        self.uploads.append(InputRecording(display_name(filename, number), path))
        self._unnamed = filename == ""
        self._open, self._size = path.open("wb"), 0

    def data(self, data: bytes, start: int, end: int) -> None:
        assert self._open is not None
        self._open.write(memoryview(data)[start:end])
        self._size += end - start

    def end(self) -> None:
        assert self._open is not None
        empty = self._size == 0
        self.close()
        if self._unnamed and empty:  # an HTML form without a chosen file sends this
            self.uploads.pop()

    def finish(self) -> None:
        self.finished = True

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None
