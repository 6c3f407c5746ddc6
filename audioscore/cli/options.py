"""Which recordings a command means: files, folders, patterns, s3:// links, or a list of these on standard input."""

import glob
import sys
from collections.abc import Iterable, Iterator
from functools import cache, partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from audioscore.data.transfer import s3
from audioscore.errors import UsageError, shorten
from audioscore.scoring.input import Take

# What is taken of a folder; a file that is named is taken whatever it is called.
SUFFIXES = frozenset({
    ".aac", ".ac3", ".aif", ".aiff", ".amr", ".ape", ".au", ".caf", ".flac", ".m4a", ".m4b", ".mka",
    ".mp2", ".mp3", ".mp4", ".oga", ".ogg", ".opus", ".tta", ".wav", ".webm", ".weba", ".wma", ".wv",
})  # fmt: skip
LIST = "-"
client = cache(s3.connect)


def takes_of(arguments: Iterable[str]) -> list[Take]:
    """Every recording that is meant, in order; folders and patterns by name. What s3:// holds is fetched when its turn
    comes.

    Raises UsageError where a folder, a pattern, a prefix or the list names none.
    """
    found: list[Take] = []
    for argument in arguments:
        if argument == LIST:
            found += takes_of(_lines())
        elif argument.startswith("s3://"):
            found += _in_bucket(argument)
        else:
            found += (Take(name, name) for name in _on_disk(argument))
    if not found:
        raise UsageError("no recordings are named. Give files, folders, patterns, s3:// links, or - for a list.")
    return found


def _lines() -> Iterator[str]:
    """Names on standard input, one a line. Names that are no UTF-8 are kept as the file system has them."""
    names = [line.decode("utf-8", "surrogateescape").rstrip("\r\n") for line in sys.stdin.buffer]
    if LIST in names:
        raise UsageError(f"{LIST}: standard input cannot be read within itself. Name files in the list.")
    yield from (name for name in names if name.strip())


def _on_disk(argument: str) -> list[str]:
    path = Path(argument)
    if path.is_dir():
        found = sorted(str(one) for one in path.rglob("*") if one.suffix.lower() in SUFFIXES and one.is_file())
        if not found:
            raise UsageError(f"{argument}: no recordings in this folder ({shorten(sorted(SUFFIXES))}). Name another.")
        return found
    if glob.has_magic(argument) and not path.exists():
        found = sorted(name for name in glob.glob(argument, recursive=True) if Path(name).is_file())
        if not found and not {"*", "?"} & set(argument):  # brackets are common in names
            return [argument]
        if not found:
            raise UsageError(f"{argument}: no file matches this pattern. Check it.")
        return found
    return [argument]


def _in_bucket(uri: str) -> list[Take]:
    if PurePosixPath(uri).suffix.lower() in SUFFIXES:
        return [Take(uri, partial(_fetch, uri))]
    bucket, _ = s3.split_uri(uri)
    keys = sorted(
        one.key for one in s3.list_objects(client(), uri) if PurePosixPath(one.key).suffix.lower() in SUFFIXES
    )
    if not keys:
        raise UsageError(f"{uri}: no recordings under this prefix. Check it, and AWS_ENDPOINT_URL.")
    return [Take(f"s3://{bucket}/{key}", partial(_fetch, f"s3://{bucket}/{key}")) for key in keys]


def _fetch(uri: str) -> bytes:
    """An object's bytes. Raises AudioError, one sentence naming it, where it cannot be had."""
    bucket, key = s3.split_uri(uri)
    with TemporaryDirectory(prefix="audioscore-") as scratch:
        target = Path(scratch) / "object"
        s3.download_object(client(), bucket, key, target, partial=Path(scratch) / "partial")
        return target.read_bytes()
