"""What a data folder holds already: its recordings by content, wherever they are written down."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from audioscore.data.clips import Clip
from audioscore.data.index import read_index, write_index
from audioscore.data.ingest.labels_file import LABELS
from audioscore.data.labels import Fault, read_labels
from audioscore.errors import DataError
from audioscore.files import read_json, sha256_of, write_json

ORDER = "order.json"  # groups of recordings without scores, each high to low
WITHDRAWN = "withdrawn.json"  # removed recordings by content: none of them is added again unasked


@dataclass(frozen=True)
class Withdrawn:
    """A removed recording: the day, and DVC's MD5 and the size by which its copies are found (None: it was missing)."""

    removed: str
    md5: str | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Known:
    """A data folder's recordings, each with its hash where that can be told: scored ones, and groups without scores.

    `faults` are rows of labels.csv that cannot be used; they stay in the table. `missing` names recordings whose files
    are not there. `withdrawn` maps the SHA-256 of removed recordings to what is remembered of them.
    """

    clips: list[Clip] = field(default_factory=list)
    groups: list[list[Clip]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    missing: frozenset[str] = frozenset()
    withdrawn: dict[str, Withdrawn] = field(default_factory=dict)

    @property
    def by_content(self) -> dict[str, Clip]:
        """The recording of each hash; a scored one goes before an unscored one."""
        ordered = [clip for group in self.groups for clip in group]
        return {clip.sha256: clip for clip in [*ordered, *self.clips] if clip.sha256}

    @property
    def by_origin(self) -> dict[str, Clip]:
        """The recording that was downloaded from each link, where it is still there."""
        there = [clip for clip in self.by_content.values() if clip.audio_file not in self.missing]
        return {clip.origin: clip for clip in there if clip.origin}


def read_known(folder: Path) -> Known:
    """Read a data folder's tables; an empty or absent folder holds nothing.

    A recording whose row gives no hash is hashed here; one that is missing keeps None.
    """
    if not folder.exists():
        return Known()
    if not folder.is_dir():
        raise DataError(f"{folder} is a file. Name the data folder.")
    path = folder / LABELS
    table = read_labels(path) if path.is_file() and path.read_bytes().strip() else None
    groups = read_index(folder / ORDER) if (folder / ORDER).is_file() else []
    clips = [_hashed(folder, clip) for clip in table.clips] if table else []
    groups = [[_hashed(folder, clip) for clip in group] for group in groups]
    every = [*clips, *(clip for group in groups for clip in group)]
    missing = frozenset(clip.audio_file for clip in every if not (folder / clip.audio_file).is_file())
    return Known(clips, groups, table.faults if table else [], missing, read_withdrawn(folder))


def _hashed(folder: Path, clip: Clip) -> Clip:
    path = folder / clip.audio_file
    if clip.sha256 or not path.is_file():
        return clip
    return replace(clip, sha256=sha256_of(path))


def read_withdrawn(folder: Path) -> dict[str, Withdrawn]:
    """Removed recordings by their SHA-256."""
    path = folder / WITHDRAWN
    try:
        value = read_json(path) if path.is_file() else {}
        return {str(content): Withdrawn(**told) for content, told in value.items()}
    except (ValueError, TypeError, AttributeError) as fault:
        raise DataError(f"{path} cannot be read ({fault}). Restore it from the data's last version.") from fault


def write_withdrawn(folder: Path, withdrawn: Mapping[str, Withdrawn]) -> None:
    """Write the removed recordings atomically, unless they stand there already; no file where there is none."""
    path = folder / WITHDRAWN
    if not withdrawn:
        path.unlink(missing_ok=True)
    elif not path.is_file() or read_withdrawn(folder) != withdrawn:
        write_json(path, {content: asdict(told) for content, told in sorted(withdrawn.items())})


def write_order(folder: Path, groups: Sequence[Sequence[Clip]]) -> None:
    """Write the groups without scores atomically, unless they stand there already; no file where there is none."""
    path = folder / ORDER
    kept = [[replace(clip, row=None, score=None) for clip in group] for group in groups if group]
    if not kept:
        path.unlink(missing_ok=True)
    elif not path.is_file() or _as_groups(path) != kept:
        write_index(path, kept)


def _as_groups(path: Path) -> list[list[Clip]] | None:
    try:
        return read_index(path)
    except (DataError, json.JSONDecodeError):
        return None
