"""Names for what a run was made of: the data by DVC's own digest, the code by its git revision."""

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from audioscore.errors import DataError
from audioscore.files import sha256_of

NEVER_TRACKED = frozenset({".git", ".hg", ".dvc"})  # folders that DVC skips; of these, `.git` also where it is a file


def data_files(folder: Path) -> dict[str, Path]:
    """The files that DVC would track in a folder, by path relative to it (with /), sorted.

    Hidden files count; `.git`, `.hg` and `.dvc` do not, nor folders with a DVC project of their own, nor links to
    folders. Patterns of a .dvcignore above the folder are not looked at: the folder may lie anywhere. Raises DataError
    where there is no such folder, or a .dvcignore lies inside it, which DVC refuses as well.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Give the folder that holds the labels and the audio.")
    found: dict[str, Path] = {}
    for root, folders, names in os.walk(folder):
        here = Path(root)
        folders[:] = [name for name in folders if name not in NEVER_TRACKED and not (here / name / ".dvc").is_dir()]
        for name in names:
            if name == ".dvcignore":
                raise DataError(f"{here / name}: DVC takes no .dvcignore inside a data folder. Move it above {folder}.")
            if name != ".git":
                found[(here / name).relative_to(folder).as_posix()] = here / name
    return dict(sorted(found.items()))


def folder_digest(folder: Path) -> str:
    """DVC's MD5 of a folder, `<md5>.dir`: the same that `dvc add` records, whether or not the folder is under DVC.

    It is the MD5 of a JSON list of every file's MD5 and relative path, so names and contents count, and dates do not.
    Raises DataError as `data_files` does, and where a file cannot be read.
    Source: dvc-data 3.18, dvc_data/hashfile/tree.py (Tree.as_bytes, Tree.digest).
    """
    return digest_of(file_md5s(folder))


def file_md5s(folder: Path) -> dict[str, str]:
    """MD5 of every file that DVC would track in a folder, by relative path. Raises DataError as `folder_digest`."""
    try:
        return {name: _md5_of(path) for name, path in data_files(folder).items()}
    except OSError as fault:
        raise DataError(f"{fault.filename}: cannot be read ({fault.strerror}). Mend or remove it.") from fault


def digest_of(md5s: Mapping[str, str]) -> str:
    """The digest of a folder that holds these files: MD5 by relative path.

    >>> digest_of({})
    'd751713988987e9331980363e24189ce.dir'
    """
    listed = [{"md5": md5s[name], "relpath": name} for name in sorted(md5s)]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _md5_of(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def data_revision(folder: Path) -> str | None:
    """The MD5 that the `.dvc` file beside a folder records for it; None where there is no such file.

    It is what was last added, which the folder may have left since: compare it with `folder_digest`.
    """
    record = folder.with_name(f"{folder.name}.dvc")
    return recorded_md5(record.read_bytes(), folder.name) if record.is_file() else None


def recorded_md5(record: bytes, name: str) -> str:
    """The MD5 that the text of a `.dvc` file records for the folder `name`; DataError where it records none.

    >>> recorded_md5(b"outs: [{md5: 5fd2.dir, path: data}]", "data")
    '5fd2.dir'
    """
    import yaml

    try:
        outs = yaml.safe_load(record.decode())["outs"]
        return next(str(out["md5"]) for out in outs if out["path"] == name)
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, StopIteration) as fault:
        raise DataError(f"{name}.dvc records no MD5 for {name}. Write it again: `dvc add {name}`.") from fault


def code_revision(root: Path) -> str:
    """The image's revision in one, else the git commit of the code under `root`; `unknown` where there is none.

    Uncommitted work, new files included, adds `-dirty-` and 8 hexadecimal digits that change with it.
    """
    if noted := image_revision():
        return noted
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
    """The revision of the container image that this runs in, as its build noted it; None elsewhere, or if it did not.

    A pipeline's steps ask for it themselves: who submits a run to a cluster cannot read what an image says of itself.
    """
    said = os.environ.get("AUDIOSCORE_CODE_REVISION", "")
    return None if said in ("", "unknown") else said


def _git(folder: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True).stdout
