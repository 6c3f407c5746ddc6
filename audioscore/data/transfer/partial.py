"""A file that is still arriving: its beginning, and beside it what the server said of the whole."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from audioscore.data.transfer.pool import TryAgain, persist
from audioscore.errors import AudioError
from audioscore.files import read_json

LARGEST = 2 << 30  # bytes: an hour of 24-bit stereo at 96 kHz is 2.07e9
CHUNK = 1 << 16  # bytes read at once


@dataclass(frozen=True)
class Whole:
    """What a server says of a file: where it is, which version (ETag or date), bytes, and checksums in hexadecimal."""

    uri: str
    version: str | None = None  # without it, two answers may be of two files, and nothing can be resumed
    size: int | None = None
    checksums: dict[str, str] = field(default_factory=dict)  # hashlib's name -> digest


class Answer(NamedTuple):
    """An open answer: of what, from which byte on, and the bytes."""

    whole: Whole
    offset: int
    chunks: Iterable[bytes]


# From byte N on, of the file known so far, if any. What may pass is raised as TryAgain, also while the bytes are read.
Ask = Callable[[int, Whole | None], AbstractContextManager[Answer]]


class StartOver(TryAgain):
    """The file has changed, or the server cannot go on where it was: what is there is of no use."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, after=0.0)


def receive(
    name: str,
    uri: str,
    ask: Ask,
    target: Path,
    partial: Path,
    *,
    sleep: Callable[[float], object],
    progress: Callable[[int], object],
    limit: int = LARGEST,
    check: Callable[[Path], None] = lambda path: None,
) -> None:
    """Bring a file to `target`, whole, going on where `partial` ends; `name` is what messages call it.

    `check` may refuse it by AudioError; size and checksums are compared first. Raises AudioError, and OSError where it
    cannot be written: then, and when the process is killed, `partial` keeps what arrived.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial.parent.mkdir(parents=True, exist_ok=True)

    def attempt() -> None:
        offset, known = resume_point(partial, uri)
        try:
            if known is None or known.size != offset:
                with ask(offset, known) as answer:
                    known = answer.whole
                    _check_size(name, known.size or 0, limit)
                    _append(name, partial, answer, limit, progress)
            _check_arrived(partial, known)
        except StartOver:
            discard(partial)
            raise

    persist(attempt, lambda: _size(partial), name, sleep)
    try:
        check(partial)
    except AudioError:
        discard(partial)
        raise
    _finish(partial, target)


def _finish(partial: Path, target: Path) -> None:
    with partial.open("rb") as handle:
        os.fsync(handle.fileno())  # or a power cut may leave the name without the bytes
    os.replace(partial, target)
    _note(partial).unlink(missing_ok=True)


def resume_point(partial: Path, uri: str) -> tuple[int, Whole | None]:
    """How many bytes there are, and of which file; (0, None) where they cannot be used."""
    try:
        whole = Whole(**read_json(_note(partial)))
        size = _size(partial)
    except (OSError, ValueError, TypeError):
        return 0, None
    usable = whole.uri == uri and (whole.version is not None or whole.size == size)
    return (size, whole) if usable and size and size <= (whole.size or size) else (0, None)


def partial_of(target: Path) -> Path:
    """Where a file's beginning lies while it arrives."""
    return target.with_name(f"{target.name}.part")


def still_missing(folder: Path) -> int:
    """Bytes that the partial files below a folder lack, as far as servers said how long they are."""
    lacking = 0
    for note in folder.rglob("*.part.json"):
        partial = note.with_suffix("")
        try:
            lacking += max(0, (json.loads(note.read_text(encoding="utf-8"))["size"] or 0) - _size(partial))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return lacking


def discard(partial: Path) -> None:
    """Forget what arrived."""
    partial.unlink(missing_ok=True)
    _note(partial).unlink(missing_ok=True)


def _note(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _size(partial: Path) -> int:
    return partial.stat().st_size if partial.exists() else 0


def _append(name: str, partial: Path, answer: Answer, limit: int, progress: Callable[[int], object]) -> None:
    if answer.offset == 0:
        # In this order, a kill between the two leaves an empty beginning, never the bytes of one file with the note
        # of another. The note is written in place: cut short it is no JSON and not used, and no temporary file is left.
        partial.write_bytes(b"")
        _note(partial).write_text(json.dumps(asdict(answer.whole)), encoding="utf-8")
    total = answer.offset
    with partial.open("ab", buffering=0) as handle:  # unbuffered: what was received is there after a kill
        for chunk in answer.chunks:
            total += len(chunk)
            if total > limit:
                discard(partial)
                _check_size(name, total, limit)
            rest = chunk
            while rest:
                rest = rest[handle.write(rest) :]  # a disk that is nearly full takes a part
            progress(len(chunk))  # last, since it may raise: that is how a download is stopped


def _check_size(name: str, size: int, limit: int) -> None:
    if size > limit:
        raise AudioError(f"{name}: is {size} bytes or more; at most {limit} are taken. Cut it.")


def _check_arrived(partial: Path, whole: Whole) -> None:
    """Raises StartOver where size or a checksum is another than was said."""
    size = _size(partial)
    if whole.size is not None and size < whole.size:
        raise TryAgain(f"the connection ended after {size} of {whole.size} bytes")
    if whole.size is not None and size > whole.size:
        raise StartOver(f"{size} bytes arrived, not {whole.size}")
    for algorithm, expected in whole.checksums.items():
        found = _hash(partial, algorithm)
        if found != expected:
            raise StartOver(f"arrived with {algorithm.upper()} {found}, not {expected}")


def _hash(path: Path, algorithm: str) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
