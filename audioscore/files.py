"""Atomic writing of files and folders, and their hashes."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote

SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)  # at least two letters: C:// is a drive
URI = re.compile(r"(?:file:(?://(?:localhost)?(?=/)|(?=/(?!/)))|sqlite(?:\+\w+)?:///)(?P<path>[^?#]*)")


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary file in the folder of `target`: it replaces `target` if the block succeeds, or is deleted."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent)
    except OSError as error:
        error.filename = str(target)  # the user does not need the temporary name
        raise
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp creates a private file; set the permissions of any other new file.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        error.filename = error.filename or str(target)  # the error of a full disk has no file name
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`: it replaces `target` if the block succeeds, or is deleted."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(folder: Path) -> None:
    """Check that files can be written into a folder, which may not exist yet, before long work whose result it holds.

    Nothing remains on disk. Raises OSError with the path that prevents writing.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".writable."):
            pass
    except OSError as error:
        error.filename = str(existing)  # the user does not need the temporary name
        raise


def check_can_be_file(target: Path) -> None:
    """Check that a file can be written. Raises OSError with the path that prevents writing."""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    check_writable(target.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(target: Path, text: str, errors: Literal["strict", "backslashreplace"] = "strict") -> None:
    """Write UTF-8 text atomically; `errors` concerns the bytes of file names that are not UTF-8."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=errors)


def write_json(target: Path, value: Any) -> None:
    """Write a JSON document atomically; names that are not UTF-8 become escapes, which are read back.

    Raises ValueError for NaN, which JSON does not have.
    """
    text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    write_text(target, text, errors="backslashreplace")


def read_json(source: Path) -> Any:
    """Read a JSON document in UTF-8, with or without a byte-order mark."""
    return json.loads(source.read_text(encoding="utf-8-sig"))


def sha256_of(*sources: Path) -> str:
    """Return the SHA-256 of the concatenated bytes of the files, in hexadecimal."""
    digest = hashlib.sha256()
    for source in sources:
        with source.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def digest_of_file(source: Path, algorithm: str) -> str:
    """Return the digest of a file by an algorithm of hashlib, in hexadecimal; not for protection against attacks."""
    with source.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def link_or_copy(source: Path, target: Path) -> None:
    """Create `target` as a hard link to `source`, or as a copy if the file system does not allow the link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def path_to_uri(path: Path, scheme: Literal["file", "sqlite"] = "file") -> str:
    """Return the `file:` URI of a path, or the database URI that MLflow and SQLAlchemy use.

    >>> path_to_uri(Path("/srv/C#/mlflow.db"), "sqlite"), path_to_uri(Path("/srv/a b"))
    ('sqlite+pysqlite:////srv/C%23/mlflow.db', 'file:///srv/a%20b')
    """
    if scheme == "file":
        return path.absolute().as_uri()
    text = str(path.absolute())
    quoted = re.sub(r"[%?#\x00-\x1f]", lambda found: quote(found[0]), text)
    # For `sqlite:///PATH` MLflow creates the parent folders of PATH without removing its quotes.
    return f"sqlite{'' if quoted == text else '+pysqlite'}:///{quoted}"


def lower_scheme(uri: str) -> str:
    """Return a URI with its scheme in lower case; other texts, and the rest of the URI, do not change.

    Source: RFC 3986, section 3.1: schemes are case-insensitive.

    >>> lower_scheme("S3://bucket/Song.WAV"), lower_scheme("Songs/S3"), lower_scheme("C://Songs")
    ('s3://bucket/Song.WAV', 'Songs/S3', 'C://Songs')
    """
    found = SCHEME.match(uri)
    return found[0].lower() + uri[found.end() :] if found else uri


def uri_to_path(uri: str) -> Path | None:
    """Return the path of a `file:` or SQLite URI; None for any other URI, or a host other than this one.

    >>> uri_to_path("sqlite+pysqlite:////srv/C%23/mlflow.db"), uri_to_path("file:/srv/a%20b")
    (PosixPath('/srv/C#/mlflow.db'), PosixPath('/srv/a b'))
    >>> uri_to_path("file://host/srv") is None, uri_to_path("http://mlflow:5000") is None
    (True, True)
    """
    found = URI.match(uri)
    return Path(unquote(found["path"], errors="surrogateescape")) if found else None
