"""Receive a file in several attempts: a `.part` file keeps the received bytes, a note beside it describes the whole."""

import json
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from audioscore.data.transfer.pool import TransientError, with_retries
from audioscore.errors import AudioError
from audioscore.files import digest_of_file, read_json

LARGEST = 2 << 30  # bytes: an hour of 24-bit stereo at 96 kHz is 2.07e9
CHUNK = 1 << 16  # bytes read at once


@dataclass(frozen=True)
class RemoteFile:
    """A file as its server describes it; written as JSON beside the partial file.

    `version` is an ETag or a date. Without it, two responses may belong to different files, so a download cannot be
    resumed. `checksums` maps names of hashlib to hexadecimal digests.
    """

    uri: str
    version: str | None = None
    size: int | None = None  # bytes
    checksums: dict[str, str] = field(default_factory=dict)


class ServerResponse(NamedTuple):
    """An open response: the file that it belongs to, the offset of its first byte, and its bytes."""

    file: RemoteFile
    offset: int
    chunks: Iterable[bytes]


# Request a file from a byte offset on; the second argument describes the partial file, if there is one.
# Errors that may not recur are raised as TransientError, also while the bytes are read.
OpenResponse = Callable[[int, RemoteFile | None], AbstractContextManager[ServerResponse]]


class RestartDownload(TransientError):
    """The file has changed, or the server cannot resume: the received bytes are unusable."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, after=0.0)


def receive(
    name: str,
    uri: str,
    open_response: OpenResponse,
    target: Path,
    partial: Path,
    *,
    sleep: Callable[[float], object],
    progress: Callable[[int], object],
    limit: int = LARGEST,
    check: Callable[[Path], None] = lambda path: None,
) -> None:
    """Write a complete file to `target`, resuming from `partial`; `name` stands for the file in messages.

    Size and checksums are compared first; then `check` may reject the file with AudioError. After an error and after
    a killed process, `partial` keeps the received bytes.

    Raises:
        AudioError: The file cannot be received or is rejected.
        OSError: The file cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial.parent.mkdir(parents=True, exist_ok=True)

    def attempt() -> None:
        offset, file = resume_point(partial, uri)
        try:
            with open_response(offset, file) as response:
                _check_size(name, response.file.size or 0, limit)
                _append(name, partial, response, limit, progress)
            _check_complete(partial, response.file)
        except RestartDownload:
            discard(partial)
            raise

    with_retries(attempt, lambda: _size(partial), name, sleep)
    try:
        check(partial)
    except AudioError:
        discard(partial)
        raise
    with partial.open("rb") as handle:
        os.fsync(handle.fileno())  # otherwise a power failure may leave the target's name without its bytes
    os.replace(partial, target)
    _note(partial).unlink(missing_ok=True)


def resume_point(partial: Path, uri: str) -> tuple[int, RemoteFile | None]:
    """Return the number of usable received bytes and their file; (0, None) when the bytes cannot be used.

    Of a complete file, the last byte is requested again: the server thereby confirms that the file has not changed.
    """
    try:
        file = RemoteFile(**read_json(_note(partial)))
        size = _size(partial)
    except (OSError, ValueError, TypeError):
        return 0, None
    offset = size - 1 if size == file.size else size
    usable = file.uri == uri and file.version is not None and offset > 0 and size <= (file.size or size)
    return (offset, file) if usable else (0, None)


def partial_path(target: Path) -> Path:
    """Return the path of the partial file for a target."""
    return target.with_name(f"{target.name}.part")


def missing_bytes(folder: Path) -> int:
    """Count the bytes that the partial files below a folder lack, as far as servers reported sizes."""
    missing = 0
    for note in folder.rglob("*.part.json"):
        partial = note.with_suffix("")
        try:
            missing += max(0, (json.loads(note.read_text(encoding="utf-8"))["size"] or 0) - _size(partial))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return missing


def discard(partial: Path) -> None:
    """Delete a partial file and its note."""
    partial.unlink(missing_ok=True)
    _note(partial).unlink(missing_ok=True)


def _note(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _size(partial: Path) -> int:
    return partial.stat().st_size if partial.exists() else 0


def _append(name: str, partial: Path, response: ServerResponse, limit: int, progress: Callable[[int], object]) -> None:
    if response.offset == 0:
        # In this order, a kill between the two writes leaves an empty partial file, never the bytes of one file with
        # the note of another. The note needs no temporary file: a truncated note is invalid JSON, and ignored.
        partial.write_bytes(b"")
        _note(partial).write_text(json.dumps(asdict(response.file)), encoding="utf-8")
    else:
        os.truncate(partial, response.offset)
    total = response.offset
    with partial.open("ab", buffering=0) as handle:  # unbuffered: received bytes survive a kill
        for chunk in response.chunks:
            total += len(chunk)
            if total > limit:
                discard(partial)
                _check_size(name, total, limit)
            rest = chunk
            while rest:
                rest = rest[handle.write(rest) :]  # an almost full disk accepts only some of the bytes
            progress(len(chunk))  # last, because it may raise to stop the download


def _check_size(name: str, size: int, limit: int) -> None:
    if size > limit:
        raise AudioError(f"{name}: the file has at least {size} bytes; the limit is {limit}. Shorten the recording.")


def _check_complete(partial: Path, file: RemoteFile) -> None:
    """Compare size and checksums with the server's. Raises TransientError, or RestartDownload for unusable bytes."""
    size = _size(partial)
    if file.size is not None and size < file.size:
        raise TransientError(f"the connection ended after {size} of {file.size} bytes")
    if file.size is not None and size > file.size:
        raise RestartDownload(f"{size} bytes arrived, not {file.size}")
    for algorithm, expected in file.checksums.items():
        if (found := digest_of_file(partial, algorithm)) != expected:
            raise RestartDownload(f"arrived with {algorithm.upper()} {found}, not {expected}")
