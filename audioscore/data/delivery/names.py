"""Names for recordings in a data folder: readable, on any file system, and the same whenever they are made."""

import re
import unicodedata
from collections.abc import Container
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

AUDIO = "audio"  # the folder of the recordings
UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|\s]+')  # what some file system or shell takes for something else
LONGEST = 120  # bytes; file systems take 255, and a temporary name adds some


def recording_name(delivered: str, sha256: str, taken: Container[str]) -> str:
    """Where a delivered recording goes: `audio/` and its own base name, with 8 digits of its hash where that is taken.

    `taken` holds names in `folded` form.

    >>> recording_name("https://host/a/my%20song.M4A?key=1", "5fd2" * 16, set())
    'audio/my_song.m4a'
    >>> recording_name("takes/a.wav", "5fd2" * 16, {"audio/a.wav"})
    'audio/a-5fd25fd2.wav'
    """
    path = unquote(urlsplit(delivered).path) if "://" in delivered else delivered
    base = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
    base = UNSAFE.sub("_", unicodedata.normalize("NFC", base)).strip("._- ")
    stem, suffix = PurePosixPath(base).stem, PurePosixPath(base).suffix.lower()
    stem = _shorten(stem, LONGEST - len(suffix.encode())) or sha256[:16]
    name = f"{AUDIO}/{stem}{suffix}"
    return name if folded(name) not in taken else f"{AUDIO}/{stem}-{sha256[:8]}{suffix}"


def folded(name: str) -> str:
    """A name as file systems that ignore case and normal form compare it.

    >>> folded("audio/A.m4a") == folded("audio/a.M4A")
    True
    """
    return unicodedata.normalize("NFC", name).casefold()


def _shorten(text: str, limit: int) -> str:
    return text.encode()[:limit].decode(errors="ignore")
