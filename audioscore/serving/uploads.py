"""A multipart body, written to disk as it arrives: recordings as files, whatever else it holds refused.

No more than a chunk of it is ever in memory. Refusals are HTTPExceptions of one sentence.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException
from starlette.requests import Request

from audioscore.serving.metrics import Settings

FIELD = "file"
NAME_CHARACTERS = 200  # of a file's name, that an answer repeats


@dataclass(frozen=True)
class Upload:
    """One recording on disk, and what its sender calls it."""

    file: str
    path: Path


async def receive_uploads(request: Request, folder: Path, settings: Settings) -> list[Upload]:
    """Write a request's recordings into `folder`, in the order of its parts.

    Raises HTTPException: 415 not multipart, 413 too large or too many, 408 too slow, 400 malformed, or no recording;
    starlette's ClientDisconnect where the sender hangs up.
    """
    boundary = _boundary(request)
    refuse_large(request, settings)
    parts = _Parts(folder, settings.max_files)
    try:
        parser = MultipartParser(boundary, {
            "on_part_begin": parts.begin, "on_header_field": parts.header_field, "on_header_value": parts.header_value,
            "on_header_end": parts.header_end, "on_headers_finished": parts.headers_finished,
            "on_part_data": parts.data, "on_part_end": parts.end, "on_end": parts.finish,
        })  # fmt: skip
        await _feed(request, parser, settings)
        parser.finalize()
    except FormParserError as fault:
        raise HTTPException(400, f"POST /score: the multipart body is malformed ({fault}).") from fault
    except OSError as fault:  # the disk is full
        raise HTTPException(503, f"the upload cannot be kept ({fault.strerror}). Try again later.") from fault
    finally:
        parts.close()
    if not parts.finished:
        raise HTTPException(400, "POST /score: the multipart body ends before its last boundary. Send it again.")
    if not parts.uploads:
        raise HTTPException(400, f"POST /score: holds no recording. Send each as a part named {FIELD!r}.")
    return parts.uploads


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        said = kind.decode("utf-8", "replace")[:NAME_CHARACTERS]
        raise HTTPException(
            415, f"POST /score: needs multipart/form-data; got {said or 'no content type'}. Send parts named {FIELD!r}."
        )
    if not options.get(b"boundary"):
        raise HTTPException(400, "POST /score: the content type names no boundary. Let the HTTP library write it.")
    return options[b"boundary"]


def refuse_large(request: Request, settings: Settings) -> None:
    """Raise 413 where the request says itself that it is larger than is taken."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > settings.max_bytes:
        raise _too_large(settings)


def _too_large(settings: Settings) -> HTTPException:
    return HTTPException(
        413, f"POST /score: the request is larger than {settings.max_bytes / 2**20:g} MiB, the most that is taken."
    )


async def _feed(request: Request, parser: MultipartParser, settings: Settings) -> None:
    """Read the body, within its size and its time."""
    now, stream, received = asyncio.get_running_loop().time, request.stream(), 0
    started = now()
    while True:
        patience = started + settings.body_seconds + received / settings.slowest - now()
        try:
            chunk = await asyncio.wait_for(anext(stream), max(patience, 0.001))
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise HTTPException(
                408, f"POST /score: only {received} bytes came in {now() - started:.0f} s. Send it faster, or less.",
                headers={"Connection": "close"},
            ) from None  # fmt: skip
        received += len(chunk)
        if received > settings.max_bytes:
            raise _too_large(settings)
        parser.write(chunk)


def shown_name(given: bytes | None, place: int) -> str:
    """What an answer calls a recording: the last part of its file's name; its place, from 1, where it has none.

    >>> shown_name(b"../../etc/passwd", 1), shown_name(b"C:\\\\takes\\\\one.wav", 1), shown_name(b"", 2)
    ('passwd', 'one.wav', 'recording 2')
    """
    last = (given or b"").decode("utf-8", "replace").replace("\\", "/").rsplit("/", 1)[-1]
    kept = "".join(letter for letter in last if letter.isprintable()).strip()[:NAME_CHARACTERS]
    return kept or f"recording {place}"


class _Parts:
    """The parser's callbacks: what of the body has been understood so far."""

    def __init__(self, folder: Path, most: int) -> None:
        self.uploads: list[Upload] = []
        self.finished = False
        self._folder, self._most = folder, most
        self._open: BinaryIO | None = None
        self._field = self._value = self._disposition = b""
        self._unnamed = False

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
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name != FIELD:
            said = repr(name[:NAME_CHARACTERS]) if name else "without a name"
            raise HTTPException(400, f"POST /score: a part is called {said}. Recordings are parts named {FIELD!r}.")
        if b"filename" not in options:
            raise HTTPException(
                400, f"POST /score: a part {FIELD!r} has no filename, so it is no file. Send it as one."
            )
        if len(self.uploads) == self._most:
            raise HTTPException(413, f"POST /score: holds more than {self._most} recordings. Send fewer at a time.")
        place = len(self.uploads) + 1
        # No suffix: FFmpeg would let a name like x.m3u8 choose how the bytes are read.
        upload = Upload(shown_name(options.get(b"filename"), place), self._folder / str(place))
        self.uploads.append(upload)
        self._unnamed = not options.get(b"filename")
        self._open = upload.path.open("wb")

    def data(self, data: bytes, start: int, end: int) -> None:
        assert self._open is not None
        self._open.write(memoryview(data)[start:end])

    def end(self) -> None:
        assert self._open is not None
        nothing = self._open.tell() == 0
        self.close()
        if self._unnamed and nothing:  # what a form sends where no file was chosen
            self.uploads.pop()

    def finish(self) -> None:
        self.finished = True

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None
