"""Names for what a run was made of: the data by DVC's own digest, the code by its git revision."""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Sequence
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
    try:
        listed = [{"md5": _md5_of(path), "relpath": name} for name, path in data_files(folder).items()]
    except OSError as fault:
        raise DataError(f"{fault.filename}: cannot be read ({fault.strerror}). Mend or remove it.") from fault
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _md5_of(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def data_revision(folder: Path) -> str | None:
    """The MD5 that the `.dvc` file beside a folder records for it; None where there is no such file.

    It is what was last added, which the folder may have left since: compare it with `folder_digest`.
    """
    record = folder.with_name(f"{folder.name}.dvc")
    if not record.is_file():
        return None
    import yaml

    try:
        outs = yaml.safe_load(record.read_text(encoding="utf-8"))["outs"]
        return next(str(out["md5"]) for out in outs if out["path"] == folder.name)
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, StopIteration) as fault:
        raise DataError(f"{record.name} records no MD5 for {folder.name}. Write it again with `dvc add`.") from fault


def code_revision(root: Path) -> str:
    """The git commit of the code under `root`; `unknown` where there is none.

    Uncommitted work, new files included, adds `-dirty-` and 8 hexadecimal digits that change with it.
    """
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


def _git(folder: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True).stdout


def pull_missing(path: Path, say: Callable[[str], object]) -> None:
    """Pull `path` where it is not there, but it or a folder above it is recorded in a `.dvc` file.

    What is there but differs from its record is left alone, and that is said.
    """
    for folder in (path, *path.parents):
        if not folder.name:
            return  # the root of the file system, or of a relative path: it has no record
        record = folder.with_name(f"{folder.name}.dvc")
        if not record.is_file():
            continue
        if not path.exists():
            say(f"pulling {folder.name} from the DVC remote")
            pull([record])
        elif folder_digest(folder) != data_revision(folder):
            say(f"note: {folder.name} is not what {record.name} records; `audioscore data pull` fetches that")
        return


def pull(records: Sequence[Path]) -> int:
    """Pull what `.dvc` files record into the working tree; returns how many files that put in place.

    Files that differ from the record are never overwritten. Raises DataError where the remote lacks something or a
    local change is in the way.
    """
    import contextlib

    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with contextlib.closing(Repo(str(records[0].parent))) as repository:
            stats = repository.pull(targets=[str(record) for record in records])["stats"]
    except (DvcException, OSError) as fault:
        reason = (str(fault).strip() or type(fault).__name__).splitlines()[0]
        raise DataError(
            f"{', '.join(record.name for record in records)}: cannot be pulled ({reason}). Check `dvc remote list`, "
            f"and keep or remove local changes first."
        ) from fault
    return int(stats["added"]) + int(stats["modified"])
