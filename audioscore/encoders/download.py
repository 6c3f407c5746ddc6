"""Fetching the published encoders into their hubs' usual caches, and saying exactly what came.

What was pulled is loaded once and hashed, so that a later run needs no network and meets no damaged file.
"""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from audioscore.encoders.campplus import load_campplus, missing_files
from audioscore.encoders.compute import quiet_imports
from audioscore.encoders.features import EncoderReference, Kind, is_folder
from audioscore.encoders.muq import COMMIT, load_muq
from audioscore.encoders.muq import FILES as MUQ_FILES
from audioscore.errors import ModelError
from audioscore.files import read_json, sha256_of

PUBLISHED: dict[Kind, str] = {
    "muq": "OpenMuQ/MuQ-large-msd-iter",
    "campplus": "iic/speech_campplus_sv_zh-cn_16k-common",
}
HUBS: dict[Kind, str] = {"muq": "Hugging Face", "campplus": "ModelScope"}
DEFAULT_LAYER = 6
LFS_BLOB = re.compile(r"[0-9a-f]{64}")  # Hugging Face's cache names a large file by its published SHA-256
MAIN, BRANCH = "main", "master"  # what Hugging Face and ModelScope give to those who name no revision
TAGS_NAMED = 5


@dataclass(frozen=True)
class PulledFile:
    """One file that the encoder reads."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Pulled:
    """An encoder that is here, whole, and loads.

    `id` and `revision` are None for a folder. `revision` is what the hub gave: a commit on Hugging Face; on ModelScope
    the tag, commit or branch that was asked for, since its cache knows no more. `sha256` is that of EncoderReference.
    """

    kind: Kind
    source: str
    id: str | None
    asked: str | None
    revision: str | None
    folder: Path
    licence: str
    sha256: str
    files: tuple[PulledFile, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"folder": str(self.folder)}


def pull_encoder(
    kind: Kind, source: str, *, revision: str | None = None, layer: int | None = None, sha256: str | None = None
) -> Pulled:
    """Fetch what is missing of an encoder, load it, and hash it; a folder is only loaded and hashed.

    `source` is a hub id, or a folder in the hub's layout; `layer` is MuQ's, 6 where None; `sha256` is the reference's
    that is expected. What is whole already is not fetched again, what was cut off is resumed; where the hub cannot be
    reached, what its cache holds is used, and a note says so. Raises ModelError where nothing usable is there, where
    weights differ from what the hub published or from `sha256`, or where they do not load.
    """
    if is_folder(source):
        folder = Path(source).expanduser().resolve()
        got: str | None = None
        notes: tuple[str, ...] = ()
        reference = _load(kind, source, folder, layer, sha256)
    else:
        folder, got, notes = _fetch(kind, source, revision)
        reference = replace(_load(kind, source, folder, layer, sha256), id=source, revision=got)
    files = tuple(
        PulledFile(name, (folder / name).stat().st_size, sha256_of(folder / name)) for name in _names(kind, folder)
    )
    about = (reference.id, revision, got, folder, reference.licence, reference.sha256)
    return Pulled(kind, source, *about, files, notes)


def _load(kind: Kind, source: str, folder: Path, layer: int | None, sha256: str | None) -> EncoderReference:
    """The reference of what the folder holds, once that has loaded strictly."""
    try:
        if kind == "muq":
            return load_muq(str(folder), layer=layer or DEFAULT_LAYER, sha256=sha256).reference
        return load_campplus(str(folder), sha256=sha256).reference
    except ModelError as fault:
        if is_folder(source):
            raise
        raise ModelError(f"{source} is in the cache, but cannot be used: {fault}") from fault


def _fetch(kind: Kind, source: str, revision: str | None) -> tuple[Path, str, tuple[str, ...]]:
    """A whole snapshot in the hub's cache: its folder, its revision, and what is to be said of it."""
    fetch = _from_hugging_face if kind == "muq" else _from_modelscope
    try:
        with _bars_only_on_a_terminal():
            folder, note = fetch(source, revision)
    except Exception as fault:  # two hubs' clients and two HTTP libraries, each with errors of its own
        remedy = "Check its id, its revision and your access." if _refused(fault) else how_to_go_offline(kind, source)
        raise ModelError(f"{source}: cannot be fetched from {HUBS[kind]} ({_reason(fault)}). {remedy}") from fault
    missing = _missing(kind, folder)
    if missing:
        raise ModelError(
            f"{source}: {folder} is incomplete, {' and '.join(missing)} missing. "
            f"Pull again where {HUBS[kind]} can be reached; what is there already is kept."
        )
    # Both caches keep a revision in a folder of its name; ModelScope's older layouts name none.
    got = folder.name if folder.parent.name == "snapshots" else revision or BRANCH
    _check_published(source, folder)
    return folder, got, (note,) if note else ()


def _from_hugging_face(source: str, revision: str | None) -> tuple[Path, str | None]:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot(local: bool) -> Path:
        return Path(
            snapshot_download(source, revision=revision, allow_patterns=list(MUQ_FILES), local_files_only=local)
        )

    if revision is not None and COMMIT.fullmatch(revision):
        # A commit never changes: what the cache holds of it needs no question to the hub.
        with contextlib.suppress(LocalEntryNotFoundError):
            folder = snapshot(local=True)
            if not _missing("muq", folder):
                return folder, None
        _resume_weights(source, revision)
        return snapshot(local=False), None
    try:
        # Asked here because the download would fall back to the cache without a word.
        commit = HfApi().model_info(source, revision=revision or MAIN).sha
    except Exception as fault:
        if _refused(fault):
            raise
        return _cached(snapshot, fault)
    _resume_weights(source, commit)
    folder = snapshot(local=False)
    return folder, f"{revision or MAIN} is a name that may move; pin it: encoders.muq.revision: {folder.name}"


def _resume_weights(source: str, commit: str) -> None:
    """Bring MuQ's weights into the cache, going on where an earlier pull was cut off: the client would start anew.

    What is joined from parts takes its place only where its SHA-256 is the published one.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    cache, url = _hugging_face_cache(source), hf_hub_url(source, MUQ_FILES[1], revision=commit)
    if (cache / "snapshots" / commit / MUQ_FILES[1]).is_file():
        return
    try:
        about = get_hf_file_metadata(url)
    except EntryNotFoundError:
        return  # the snapshot will lack it, and that is said
    if not LFS_BLOB.fullmatch(about.etag or ""):
        return  # nothing to check the parts by
    blob = cache / "blobs" / about.etag
    if blob.exists():
        return
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(f"{blob.name}.part")
    if part.is_file() and part.stat().st_size > (about.size or 0):
        part.unlink()  # no part of it: the hub would refuse to go on from its end
    with part.open("ab") as handle:
        http_get(url, handle, resume_size=handle.tell(), headers=build_hf_headers(), expected_size=about.size)
    if sha256_of(part) == blob.name:
        part.replace(blob)
    else:
        part.unlink()  # the client fetches it whole


def _hugging_face_cache(source: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser() / f"models--{source.replace('/', '--')}"


def _from_modelscope(source: str, revision: str | None) -> tuple[Path, str | None]:
    with quiet_imports():
        from modelscope.hub.snapshot_download import snapshot_download
        from modelscope_hub.errors import NetworkError, ServerError

    def snapshot(local: bool) -> Path:
        return Path(snapshot_download(source, revision=revision, local_files_only=local))

    try:
        folder = snapshot(local=False)
    except (NetworkError, ServerError) as fault:
        return _cached(snapshot, fault)
    if revision not in (None, BRANCH):
        return folder, None
    tags = _modelscope_tags(source)
    choice = f"a tag ({', '.join(tags)})" if tags else "a tag or commit"
    return folder, f"{BRANCH} is a branch, which may move; pin {choice} as encoders.campplus.revision"


def _modelscope_tags(source: str) -> list[str]:
    """The hub's names for fixed versions, newest first as it lists them; none where it does not say."""
    from modelscope_hub.api import HubApi

    try:
        names = [str(entry["Revision"]) for entry in HubApi().list_repo_revisions(source, "model")]
    except Exception:  # a convenience: the encoder itself is here
        return []
    return [name for name in names if name != BRANCH][:TAGS_NAMED]


def _cached(snapshot: Callable[[bool], Path], fault: Exception) -> tuple[Path, str]:
    """What the cache holds although the hub could not be asked; the hub's fault where that is nothing."""
    try:
        folder = snapshot(True)
    except Exception:
        raise fault from None
    return folder, f"the hub could not be asked ({_reason(fault)}): this is what its cache holds"


def _check_published(source: str, folder: Path) -> None:
    """Compare the weights with the SHA-256 that Hugging Face published and its cache names them by."""
    blob = (folder / MUQ_FILES[1]).resolve()
    if blob.parent.name != "blobs" or not LFS_BLOB.fullmatch(blob.name):
        return  # ModelScope's cache, or one without links: nothing is known of what was published
    found = sha256_of(blob)
    if found != blob.name:
        raise ModelError(
            f"{source}: {MUQ_FILES[1]} is damaged, its SHA-256 is {found} and {blob.name} was published. "
            f"Delete {blob} and pull again."
        )


def _names(kind: Kind, folder: Path) -> tuple[str, ...]:
    """The files that decide what an encoder hears; the folder holds a readable configuration."""
    if kind == "muq":
        return MUQ_FILES
    return "configuration.json", read_json(folder / "configuration.json")["model"]["pretrained_model"]


def _missing(kind: Kind, folder: Path) -> list[str]:
    return (
        missing_files(folder) if kind == "campplus" else [name for name in MUQ_FILES if not (folder / name).is_file()]
    )


def cache_of(kind: Kind, source: str) -> Path:
    """The folder in which its hub's client keeps an encoder."""
    if kind == "muq":
        return _hugging_face_cache(source)
    home = Path(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope").expanduser()
    return home / "models" / source.replace("/", "--")


def is_cached(kind: Kind, source: str) -> bool:
    """Whether some revision of an encoder is in its cache, no file missing; it is not loaded, and no hub is asked."""
    return any(not _missing(kind, folder) for folder in (cache_of(kind, source) / "snapshots").glob("*"))


def how_to_go_offline(kind: Kind, source: str) -> str:
    """One sentence: how to bring an encoder to a machine without network."""
    files = " and ".join(MUQ_FILES) if kind == "muq" else "configuration.json and the weights it names"
    return (
        f"Offline, pull it on another machine and copy that machine's cache folder to {cache_of(kind, source)}, or "
        f"copy a folder with {files} and give its path as encoders.{kind}.source."
    )


@contextlib.contextmanager
def _bars_only_on_a_terminal() -> Iterator[None]:
    """Keep standard output free, and progress bars off where nobody watches: ModelScope draws them everywhere."""
    errors = sys.stderr if sys.stderr.isatty() else io.StringIO()
    with contextlib.redirect_stdout(sys.stderr), contextlib.redirect_stderr(errors):
        yield


def _refused(fault: Exception) -> bool:
    """Whether a hub was reached, and said no: a 4xx status."""
    status = getattr(getattr(fault, "response", None), "status_code", None)
    return isinstance(status, int) and 400 <= status < 500


def _reason(fault: Exception) -> str:
    lines = str(fault).strip().splitlines()
    return lines[0][:200].rstrip(".") if lines else type(fault).__name__
