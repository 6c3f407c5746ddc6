"""Download the published encoders into their hubs' usual caches, and report exactly which files are there.

A downloaded encoder is loaded once and hashed, so a later run needs no network and finds no damaged file.
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

from audioscore.data.transfer.network import network_settings
from audioscore.encoders import campplus, muq
from audioscore.encoders.campplus import load_campplus
from audioscore.encoders.compute import quiet_imports
from audioscore.encoders.features import EncoderReference, Kind, is_folder
from audioscore.encoders.hubs import await_hub, hub_address
from audioscore.encoders.muq import COMMIT, load_muq
from audioscore.encoders.muq import FILES as MUQ_FILES
from audioscore.errors import AudioscoreError, ModelError, ServerUnreachable, first_line
from audioscore.files import read_json, sha256_of

PUBLISHED: dict[Kind, str] = {
    "muq": "OpenMuQ/MuQ-large-msd-iter",
    "campplus": "iic/speech_campplus_sv_zh-cn_16k-common",
}
HUBS: dict[Kind, str] = {"muq": "Hugging Face", "campplus": "ModelScope"}
DEFAULT_LAYER = 6
LFS_BLOB = re.compile(r"[0-9a-f]{64}")  # Hugging Face's cache names a large file by its published SHA-256
MAIN, BRANCH = "main", "master"  # the default revisions of Hugging Face and ModelScope
TAGS_NAMED = 5


@dataclass(frozen=True)
class PulledFile:
    """One file of an encoder."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Pulled:
    """An encoder that is complete on this machine and loads.

    Args:
        id: hub id; None for a folder.
        asked: the requested revision.
        revision: the downloaded revision: a commit on Hugging Face; on ModelScope the requested tag, commit or branch,
            since its cache does not record more; None for a folder.
        sha256: as in EncoderReference.
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
    """Download the missing files of an encoder, load it, and hash it; a folder is only loaded and hashed.

    Complete files are not downloaded again, and interrupted downloads are resumed. If the hub cannot be reached, the
    cached files are used, with a note.

    Args:
        source: a hub id, or a folder in the hub's layout.
        layer: MuQ's layer; None means 6.
        sha256: expected hash, as in EncoderReference.

    Raises: ModelError where no usable encoder is found, where weights differ from the published ones or from `sha256`,
        or where they do not load.
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
    """Load an encoder strictly and return its reference."""
    try:
        if kind == "muq":
            return load_muq(str(folder), layer=layer or DEFAULT_LAYER, sha256=sha256).reference
        return load_campplus(str(folder), sha256=sha256).reference
    except ModelError as error:
        if is_folder(source):
            raise
        raise ModelError(f"{source}: is in the cache, but does not load: {error}") from error


def _fetch(kind: Kind, source: str, revision: str | None) -> tuple[Path, str, tuple[str, ...]]:
    """Complete a snapshot in the hub's cache. Returns its folder, its revision, and notes for the user."""
    fetch = _from_hugging_face if kind == "muq" else _from_modelscope
    try:
        with _bars_only_on_a_terminal():
            folder, note = fetch(source, revision)
    except Exception as error:  # two hub clients and two HTTP libraries, each with its own error classes
        if isinstance(error, AudioscoreError):  # it names the variables to check
            reason = str(error).removesuffix(".").replace(". ", "; ")
        else:
            reason = f"{first_line(error)}; check {network_settings(*hub_address(kind))}"
        remedy = "Check its id, its revision and your access." if _refused(error) else how_to_go_offline(kind, source)
        raise ModelError(f"{source}: download from {HUBS[kind]} failed ({reason}). {remedy}") from error
    missing = _missing(kind, folder)
    if missing:
        raise ModelError(
            f"{source}: {folder} is incomplete, {' and '.join(missing)} missing. "
            f"Pull again where {HUBS[kind]} can be reached; existing files are kept."
        )
    # Both caches store a revision in a folder of that name; ModelScope's older layouts do not.
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
        # A commit never changes: a complete copy in the cache needs no request.
        with contextlib.suppress(LocalEntryNotFoundError):
            folder = snapshot(local=True)
            if not _missing("muq", folder):
                return folder, None
        await_hub("muq")
        _resume_weights(source, revision)
        return snapshot(local=False), None
    try:
        await_hub("muq")
        # Requested here because the download would silently fall back to the cache.
        commit = HfApi().model_info(source, revision=revision or MAIN).sha
    except Exception as error:
        if _refused(error):
            raise
        return _cached(snapshot, error)
    _resume_weights(source, commit)
    folder = snapshot(local=False)
    return folder, f"{revision or MAIN} is a branch or tag and may change; pin encoders.muq.revision: {folder.name}"


def _resume_weights(source: str, commit: str) -> None:
    """Download MuQ's weights into the cache and resume an interrupted pull, where the client would start again.

    A file completed from parts is used only if its SHA-256 is the published one.
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
        return  # reported later as a missing file
    if not LFS_BLOB.fullmatch(about.etag or ""):
        return  # the parts cannot be verified
    blob = cache / "blobs" / about.etag
    if blob.exists():
        return
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(f"{blob.name}.part")
    if part.is_file() and part.stat().st_size > (about.size or 0):
        part.unlink()  # not a part of this file: the hub would refuse to resume after its end
    with part.open("ab") as handle:
        http_get(url, handle, resume_size=part.stat().st_size, headers=build_hf_headers(), expected_size=about.size)
    if sha256_of(part) == blob.name:
        part.replace(blob)
    else:
        part.unlink()  # the client downloads the whole file


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
        await_hub("campplus")
        folder = snapshot(local=False)
    except (NetworkError, ServerError, ServerUnreachable) as error:
        return _cached(snapshot, error)
    if revision not in (None, BRANCH):
        return folder, None
    tags = _modelscope_tags(source)
    choice = f"a tag ({', '.join(tags)})" if tags else "a tag or commit"
    return folder, f"{BRANCH} is a branch and may change; pin {choice} as encoders.campplus.revision"


def _modelscope_tags(source: str) -> list[str]:
    """The hub's tags, newest first; empty if the request fails."""
    from modelscope_hub.api import HubApi

    try:
        names = [str(entry["Revision"]) for entry in HubApi().list_repo_revisions(source, "model")]
    except Exception:  # tags are optional: the encoder itself is complete
        return []
    return [name for name in names if name != BRANCH][:TAGS_NAMED]


def _cached(snapshot: Callable[[bool], Path], error: Exception) -> tuple[Path, str]:
    """The cached snapshot if the hub cannot be reached. Raises: the hub's error if the cache has no snapshot."""
    try:
        folder = snapshot(True)
    except Exception:
        raise error from None
    return folder, f"the hub could not be reached ({first_line(error)}); using the cached files"


def _check_published(source: str, folder: Path) -> None:
    """Compare the weights with the published SHA-256, which is their file name in Hugging Face's cache."""
    blob = (folder / MUQ_FILES[1]).resolve()
    if blob.parent.name != "blobs" or not LFS_BLOB.fullmatch(blob.name):
        return  # ModelScope's cache, or one without links: the published hash is unknown
    found = sha256_of(blob)
    if found != blob.name:
        raise ModelError(
            f"{source}: {MUQ_FILES[1]} is damaged: its SHA-256 is {found}, the published one {blob.name}. "
            f"Delete {blob} and pull again."
        )


def _names(kind: Kind, folder: Path) -> tuple[str, ...]:
    """The encoder's files, in a folder with a readable configuration."""
    if kind == "muq":
        return MUQ_FILES
    return "configuration.json", read_json(folder / "configuration.json")["model"]["pretrained_model"]


def _missing(kind: Kind, folder: Path) -> list[str]:
    return campplus.missing_files(folder) if kind == "campplus" else muq.missing_files(folder)


def cache_of(kind: Kind, source: str) -> Path:
    """Return the folder in which the hub's client caches an encoder."""
    if kind == "muq":
        return _hugging_face_cache(source)
    home = Path(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope").expanduser()
    return home / "models" / source.replace("/", "--")


def is_cached(kind: Kind, source: str) -> bool:
    """Whether any revision of an encoder is complete in its cache; nothing is loaded or requested."""
    return any(not _missing(kind, folder) for folder in (cache_of(kind, source) / "snapshots").glob("*"))


def how_to_go_offline(kind: Kind, source: str) -> str:
    """Describe in one sentence how to copy an encoder to a machine without network."""
    files = " and ".join(MUQ_FILES) if kind == "muq" else "configuration.json and the weights it names"
    return (
        f"Without network, pull it on another machine and copy the cache folder from there to "
        f"{cache_of(kind, source)}, or copy a folder with {files} and set encoders.{kind}.source to its path."
    )


@contextlib.contextmanager
def _bars_only_on_a_terminal() -> Iterator[None]:
    """Keep standard output free, and show progress bars only on a terminal: ModelScope draws them everywhere."""
    errors = sys.stderr if sys.stderr.isatty() else io.StringIO()
    with contextlib.redirect_stdout(sys.stderr), contextlib.redirect_stderr(errors):
        yield


def _refused(error: Exception) -> bool:
    """Whether a hub refused the request: a 4xx status."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return isinstance(status, int) and 400 <= status < 500
