"""Identify the data and the code of a run: DVC's digest of a data folder, and the git revision of the code."""

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from audioscore.errors import DataError
from audioscore.files import digest_of_file, sha256_of

NEVER_TRACKED = frozenset({".git", ".hg", ".dvc"})  # folders that DVC skips; it skips a file named .git, too


def data_files(folder: Path) -> dict[str, Path]:
    """List the files that DVC would track in a folder, sorted by relative path (with /).

    Hidden files are included. `.git`, `.hg`, `.dvc`, folders with a DVC project of their own and links to folders are
    not. A .dvcignore above the folder is not applied, because the folder may be anywhere.

    Raises DataError when the folder does not exist or contains a .dvcignore, which DVC refuses as well.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Give the folder that holds the labels and the audio.")
    found: dict[str, Path] = {}
    for root, folders, names in os.walk(folder):
        here = Path(root)
        folders[:] = [name for name in folders if name not in NEVER_TRACKED and not (here / name / ".dvc").is_dir()]
        for name in names:
            if name == ".dvcignore":
                raise DataError(
                    f"{here / name}: DVC does not allow a .dvcignore inside a data folder. Move it above {folder}."
                )
            if name != ".git":
                found[(here / name).relative_to(folder).as_posix()] = here / name
    return dict(sorted(found.items()))


def folder_digest(folder: Path) -> str:
    """Compute DVC's MD5 of a folder, `<md5>.dir`, as `dvc add` records it; the folder need not be under DVC.

    It is the MD5 of a JSON list with the MD5 and relative path of every file: it depends on names and contents, not on
    dates. Raises DataError as `data_files`, and when a file cannot be read.

    Source: dvc-data 3.18, dvc_data/hashfile/tree.py (Tree.as_bytes, Tree.digest).
    """
    return digest_of(file_md5s(folder))


def file_md5s(folder: Path) -> dict[str, str]:
    """Compute the MD5 of every file that DVC would track, by relative path. Raises DataError as `folder_digest`."""
    try:
        return {name: digest_of_file(path, "md5") for name, path in data_files(folder).items()}
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}). Repair or remove it.") from error


def digest_of(md5s: Mapping[str, str]) -> str:
    """Compute the digest of a folder from the MD5 of its files by relative path.

    >>> digest_of({})
    'd751713988987e9331980363e24189ce.dir'
    """
    listed = [{"md5": md5s[name], "relpath": name} for name in sorted(md5s)]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def data_revision(folder: Path) -> str | None:
    """Read the MD5 that the `.dvc` file beside a folder records; None without such a file.

    The folder may have changed since it was recorded: compare with `folder_digest`.
    """
    record = folder.with_name(f"{folder.name}.dvc")
    return recorded_md5(record.read_bytes(), folder.name) if record.is_file() else None


def recorded_md5(record: bytes, name: str) -> str:
    """Read the MD5 of the folder `name` from the text of a `.dvc` file. Raises DataError when there is no MD5.

    >>> recorded_md5(b"outs: [{md5: 5fd2.dir, path: data}]", "data")
    '5fd2.dir'
    """
    import yaml

    try:
        outs = yaml.safe_load(record.decode())["outs"]
        return next(str(out["md5"]) for out in outs if out["path"] == name)
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, StopIteration) as error:
        raise DataError(f"{name}.dvc records no MD5 for {name}. Write it again: `dvc add {name}`.") from error


def code_revision(root: Path) -> str:
    """Return the revision of the container image, else the git commit of the code under `root`, else `unknown`.

    Uncommitted changes, new files included, add `-dirty-` and 8 hexadecimal digits of their hash.
    """
    if revision := image_revision():
        return revision
    try:
        top = Path(_git(root, "rev-parse", "--show-toplevel").decode().rstrip("\n"))
        commit = _git(top, "rev-parse", "HEAD").decode().strip()
        change = hashlib.sha256(_git(top, "diff", "HEAD", "--binary", "--no-color", "--no-ext-diff", "--no-textconv"))
        new = [os.fsdecode(name) for name in _git(top, "ls-files", "--others", "--exclude-standard", "-z").split(b"\0")]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    for name in sorted(filter(None, new)):
        content = sha256_of(top / name) if (top / name).is_file() else ""
        change.update(f"{name}\0{content}\0".encode(errors="surrogateescape"))
    clean = change.digest() == hashlib.sha256().digest()
    return commit if clean else f"{commit}-dirty-{change.hexdigest()[:8]}"


def image_revision() -> str | None:
    """Return the code revision that the build of this container image recorded; None outside an image.

    The steps of a pipeline call this themselves, because the submitting machine cannot read it from the image.
    """
    revision = os.environ.get("AUDIOSCORE_CODE_REVISION", "")
    return None if revision in ("", "unknown") else revision


def _git(folder: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True).stdout
