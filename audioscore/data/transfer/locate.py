"""Locate the recording that a table names: a readable file, or a link to download."""

import errno
import os
import re
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from audioscore.data.spelling import path_on_disk, unicode_forms
from audioscore.errors import AudioError
from audioscore.files import SCHEME, lower_scheme

Kind = Literal["file", "http", "s3"]
DRIVE = re.compile(r"[a-z]:(?=/)", re.IGNORECASE)
KINDS: dict[str, Kind] = {"http": "http", "https": "http", "s3": "s3"}
NOT_FILES = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
NOT_THERE = {errno.ENOENT, errno.ENOTDIR}


@dataclass(frozen=True)
class Location:
    """Where a recording is: the `path` of a file, or the `uri` of a download (kind http or s3)."""

    kind: Kind
    path: Path | None = None
    uri: str | None = None


def locate(
    audio_file: str, root: str | Path, *, absolute_allowed: bool = False, names: Collection[str] | None = None
) -> Location:
    """Find the recording that a table names `audio_file`.

    `root` is a folder or `s3://bucket/prefix`. Links (http, https, s3) are returned as they are; `file://` and other
    schemes are refused. A relative name is looked up under the root and may not leave it, neither by `..` nor by a
    symbolic link. An absolute path is used unchanged with `absolute_allowed` (for a table in its own folder).
    Otherwise it must be inside the root, or its longest suffix that exists there is used: for
    /old/disk/songs/audio/x.m4a, first ROOT/old/disk/songs/audio/x.m4a, last ROOT/x.m4a.

    Names match in both Unicode normal forms (macOS decomposes) and with the backslashes of Windows. For an `s3://`
    root, `names` are the keys under it, relative to it: they show missing recordings before any download, and are
    required for absolute paths.

    Raises AudioError when no such regular, readable file exists.
    """
    if "\0" in audio_file or not audio_file.strip():
        raise AudioError(f"{audio_file!r}: is not a file name. Correct the audio_file column of the table.")
    check_file_name(audio_file)
    if match := SCHEME.match(audio_file):
        scheme = match[1].lower()
        if scheme not in KINDS:
            raise AudioError(f"{audio_file}: {scheme}:// is not supported. Give a path, or an http, https or s3 link.")
        return Location(KINDS[scheme], uri=lower_scheme(audio_file))
    if isinstance(root, str) and root.lower().startswith("s3://"):
        return _in_bucket(audio_file, f"s3://{root[5:].rstrip('/')}", names)
    return Location("file", path=_in_folder(audio_file, Path(root), absolute_allowed))


def check_file_name(name: str) -> None:
    """Raise AudioError for characters that no file name has in this process: of an emoji's half, or of any Chinese
    name where Python decodes file names with another encoding.
    """
    try:
        os.fsencode(name)
    except UnicodeEncodeError as error:
        raise AudioError(
            f"{name!a}: is not a file name in the encoding {error.encoding}. Correct it, or set PYTHONUTF8=1."
        ) from error


def _in_folder(audio_file: str, root: Path, absolute_allowed: bool) -> Path:
    try:
        if absolute_allowed and os.path.isabs(audio_file):
            path = Path(os.path.normpath(audio_file))
            found, inside = next(_existing(Path(path.anchor), str(path)), None), None
        else:
            found, inside = next(_candidates(audio_file, root), None), Path(os.path.realpath(root, strict=True))
        if found is None:
            raise AudioError(_missing(audio_file, root))
        _check(found, audio_file, inside)
    except OSError as error:
        raise AudioError(f"{audio_file}: {_reason(error)}.") from error
    return found


def _candidates(audio_file: str, root: Path) -> Iterator[Path]:
    """Existing paths under the root, best match first."""
    for written in dict.fromkeys((audio_file, audio_file.replace("\\", "/"))):
        path, whole = os.path.normpath(written), DRIVE.sub("", os.path.normpath(written))
        if not whole.startswith("/"):
            if path == ".." or path.startswith("../"):
                raise AudioError(
                    f"{audio_file}: leads out of {root} by `..`. Name a recording inside it, or another --audio."
                )
            yield from _existing(root, path)
            continue
        if os.path.lexists(path) and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
            yield Path(path)
        parts = whole.strip("/").split("/")
        for start in range(len(parts)):
            yield from _existing(root, "/".join(parts[start:]))


def _existing(folder: Path, name: str) -> Iterator[Path]:
    """Yield the path of a name in its form on disk; yield nothing when there is no such file."""
    path = path_on_disk(folder, name)
    try:
        os.lstat(path)
    except OSError as error:  # a name that is too long or a folder without permission is not a missing file
        if error.errno not in NOT_THERE:
            raise
        return
    yield path


def _check(path: Path, audio_file: str, inside: Path | None) -> None:
    end = Path(os.path.realpath(path, strict=True))
    if inside is not None and not end.is_relative_to(inside) and not _is_dvc_link(path, inside):
        raise AudioError(
            f"{audio_file}: is a link out of {inside}, to {end}. Move the recording into it, or name its folder."
        )
    mode = end.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = NOT_FILES.get(stat.S_IFMT(mode), "a device")
        raise AudioError(f"{audio_file}: is {kind}, not a recording. Name a file.")
    if not os.access(end, os.R_OK):
        raise AudioError(f"{audio_file}: cannot be read (permission denied). Change its permissions.")


def _is_dvc_link(path: Path, folder: Path) -> bool:
    from audioscore.data.versions.dvc import is_dvc_link  # which imports the transfer of files

    return is_dvc_link(path, folder)


def _reason(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "is a circular link. Replace the link by the recording"
    if error.errno in NOT_THERE:
        return f"is a link to {error.filename}, which does not exist. Correct the link"
    return f"cannot be looked up ({error.strerror}). Check the name and the permissions of its folders"


def _missing(audio_file: str, root: Path | str) -> str:
    if audio_file.startswith(("/", "\\")) or DRIVE.match(audio_file.replace("\\", "/")):
        return f"{audio_file}: no such file, also not under {root}. Name the folder of the recordings with --audio."
    return f"{audio_file}: no such file under {root}. Check the name, or set the folder with --audio."


def _in_bucket(audio_file: str, root: str, names: Collection[str] | None) -> Location:
    path = os.path.normpath(audio_file.replace("\\", "/"))
    whole = DRIVE.sub("", path)
    parts = [part for part in whole.split("/") if part]
    if parts[:1] == [".."]:
        raise AudioError(f"{audio_file}: leads out of {root} by `..`. Name a recording inside it.")
    if names is None:
        if whole.startswith("/"):
            raise AudioError(f"{audio_file}: is an absolute path, but the recordings are in {root}. Make it relative.")
        return Location("s3", uri=f"{root}/{path}")
    for start in range(len(parts) if whole.startswith("/") else 1):
        for form in unicode_forms("/".join(parts[start:])):
            if form in names:
                return Location("s3", uri=f"{root}/{form}")
    raise AudioError(_missing(audio_file, root))
