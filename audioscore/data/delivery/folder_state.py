"""Read and write the state of a data folder: labels.csv, ordered groups, and removed recordings."""

import csv
import io
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from audioscore.data.clips import Clip
from audioscore.data.index import ORDER, read_index, write_index
from audioscore.data.labels import HEADERS, known_header, match_columns, read_labels
from audioscore.data.spelling import NamesOnDisk, id_key, path_on_disk
from audioscore.data.tables import SUFFIXES, cell_text, read_sheets
from audioscore.errors import DataError, shorten
from audioscore.files import read_json, sha256_of, write_json, write_text

LABELS = "labels.csv"
WITHDRAWN = "withdrawn.json"  # removed recordings by content, which later deliveries must not add again
TABLES = tuple(f"labels{suffix}" for suffix in SUFFIXES)  # a folder has one of these
BASE = ("audio_file", "score")
IDS = ("singer_id", "song_id", "artist")


# --- labels.csv ---


@dataclass
class LabelsFile:
    """The cells of labels.csv: its headers, and its rows by number (1 is the first row below the header).

    Unlike `read_labels`, it keeps unknown columns and unusable rows, so that changes do not lose them. `column_map`
    maps our names to headers that are not synonyms of them.
    """

    headers: list[str] = field(default_factory=lambda: list(BASE))
    rows: dict[int, list[str]] = field(default_factory=dict)
    column_map: Mapping[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> dict[str, int]:
        """The index of the column of each of our names."""
        return match_columns(self.headers, self.column_map)

    def column(self, name: str) -> dict[int, str]:
        """Return the cells of one of our columns by row number; empty cells if there is no such column."""
        index = self.columns.get(name)
        return {row: line[index] if index is not None and index < len(line) else "" for row, line in self.rows.items()}

    def append(self, clip: Clip) -> None:
        """Add a row at the end."""
        row = max(self.rows, default=0) + 1
        self.rows[row] = []
        self.update(row, _cells(clip))

    def update(self, row: int, cells: Mapping[str, str]) -> None:
        """Set cells of a row by our names; a missing column is added at the right."""
        columns = self.columns
        for name, text in cells.items():
            if name not in columns:
                columns[name] = len(self.headers)
                self.headers.append(name)
            line = self.rows[row]
            line += [""] * (columns[name] + 1 - len(line))
            line[columns[name]] = text

    def remove(self, rows: Collection[int]) -> None:
        """Remove rows by number."""
        self.rows = {row: cells for row, cells in self.rows.items() if row not in rows}

    def text(self) -> str:
        """Format the table as csv."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(self.headers)
        width = len(self.headers)
        writer.writerows([*cells, *[""] * (width - len(cells))] for cells in self.rows.values())
        return buffer.getvalue()


def read_labels_file(folder: Path, column_map: Mapping[str, str] | None = None) -> LabelsFile:
    """Read the cells of the folder's labels.csv; an empty table without the file.

    A table with rater columns and no score column gets one; otherwise, appended rows would leave its scores empty.

    Raises DataError when the labels have another format or rows cannot be separated: a change could lose data.
    """
    path = folder / LABELS
    if others := sorted(name for name in TABLES if name != LABELS and (folder / name).is_file()):
        raise DataError(
            f"{folder}: keeps labels in {', '.join(others)}, but only {LABELS} can be changed. Move that table out of "
            f"the folder, and add it: `audioscore data add {others[0]} --audio {folder} --data {folder}`."
        )
    if not path.is_file() or not path.read_bytes().strip():
        return LabelsFile()
    sheet, *further = read_sheets(path, is_known=known_header(column_map or {}))
    if outside := [*sheet.notes, *("it contains a second table." for _ in further[:1])]:
        raise DataError(f"{path}: {' '.join(outside)} A change would lose those rows: move them to another file.")
    if sheet.broken:
        broken = [f"row {row}: {reason}" for row, reason in sheet.broken]
        raise DataError(f"{path}: {len(broken)} rows cannot be separated ({shorten(broken)}). Correct them first.")
    table = LabelsFile(sheet.headers, dict(sheet.rows), dict(column_map or {}))
    if "score" not in table.columns:
        for clip in read_labels(path, column_map=dict(column_map or {}), keep_duplicates=True).clips:
            table.update(clip.row or 0, {"score": _text(clip.score)})
    return table


def write_labels_file(folder: Path, table: LabelsFile) -> bool:
    """Write labels.csv atomically if it changed; return whether it was written.

    Raises DataError for a cell that is not text, such as half of a character, which JSON can hold.
    """
    path = folder / LABELS
    text = table.text()
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.end + 20]
        raise DataError(
            f"{path}: cannot hold {around!a}, which has half of a character. Correct the delivery."
        ) from error
    if path.is_file() and path.read_bytes() == data:
        return False
    write_text(path, text)
    return True


def changed_cells(old: Clip, new: Clip) -> dict[str, str]:
    """Return the cells that a later delivery changes, by our names.

    A blank cell of the delivery, and another spelling of an id, change nothing.
    """
    before, after = _cells(old), _cells(new)
    changed = {name: after[name] for name in HEADERS if after.get(name) and after[name] != before.get(name)}
    changed = {name: text for name, text in changed.items() if name not in IDS or not _same(text, before.get(name))}
    if new.raters:  # new ratings replace all old ones
        width = max(len(old.raters), len(new.raters))
        for name in [f"rater_{number}" for number in range(1, width + 1)]:
            if after.get(name, "") != before.get(name, ""):
                changed[name] = after.get(name, "")
    return {name: text for name, text in changed.items() if name not in ("audio_file", "sha256")}


def _same(one: str, other: str | None) -> bool:
    return other is not None and id_key(one) == id_key(other)


def _cells(clip: Clip) -> dict[str, str]:
    cells = {name: _text(getattr(clip, name)) for name in HEADERS} | {"audio_file": clip.audio_file}
    # A rater without a score keeps an empty column; otherwise, the later raters would change columns.
    raters = {f"rater_{number}": _text(score) for number, score in enumerate(clip.raters, 1)}
    return {name: text for name, text in cells.items() if text or name in BASE} | raters


def _text(value: object) -> str:
    """A cell in one line: a table cannot hold the line ends that JSON can."""
    return " ".join(cell_text(value).split())


# --- the whole folder ---


@dataclass(frozen=True)
class Withdrawn:
    """A removed recording: the day, and the MD5 and size that identify its copies (None: the file was missing)."""

    removed: str
    md5: str | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class FolderState:
    """The recordings that a data folder's tables name: rows of labels.csv, and ordered groups without scores.

    Names are those of the files, also where a table spells them in another way. The `sha256` of a clip is the one in
    its row, or else that of its file. Unusable rows have no score. `missing` and `damaged` name recordings whose file
    does not exist or differs from the row's hash. `withdrawn` maps the SHA-256 of removed recordings to their entries.
    """

    rows: list[Clip] = field(default_factory=list)
    groups: list[list[Clip]] = field(default_factory=list)
    missing: frozenset[str] = frozenset()
    damaged: frozenset[str] = frozenset()
    withdrawn: dict[str, Withdrawn] = field(default_factory=dict)

    @property
    def ordered(self) -> list[Clip]:
        """The recordings of the groups without scores."""
        return [clip for group in self.groups for clip in group]

    @property
    def scored(self) -> set[str]:
        """The SHA-256 of every recording with a score."""
        return {clip.sha256 for clip in self.rows if clip.sha256 and clip.score is not None}

    @property
    def by_origin(self) -> dict[str, Clip]:
        """The recording that was downloaded from each link, if its file is intact."""
        intact = [one for one in [*self.ordered, *self.rows] if one.audio_file not in self.missing | self.damaged]
        return {clip.origin: clip for clip in intact if clip.origin}


def read_folder_state(folder: Path, table: LabelsFile, singer_from: str | None = None) -> FolderState:
    """Read the state of a data folder; `table` is its labels.csv. A missing folder has an empty state.

    Every named file is hashed, because it may have changed since its row was written.

    Raises DataError when a table cannot be read, and when order.json has scores, which belong in labels.csv.
    """
    if not folder.exists():
        return FolderState()
    if not folder.is_dir():
        raise DataError(f"{folder}: is a file. Name the data folder.")
    groups = read_index(folder / ORDER) if (folder / ORDER).is_file() else []
    if scored := [clip.audio_file for group in groups for clip in group if clip.score is not None]:
        raise DataError(
            f"{folder / ORDER}: has {len(scored)} scores ({shorten(scored)}), but is for recordings without scores. "
            f"Move the file away, and add it: `audioscore data add`."
        )
    names = NamesOnDisk(folder)
    hashes: dict[str, str | None] = {}
    rows = [_with_content(names, clip, hashes) for clip in _rows(folder, table, singer_from)]
    groups = [[_with_content(names, clip, hashes) for clip in group] for group in groups]
    every = [*rows, *(clip for group in groups for clip in group)]
    return FolderState(
        rows,
        groups,
        missing=frozenset(name for name, content in hashes.items() if content is None),
        damaged=frozenset(clip.audio_file for clip in every if hashes[clip.audio_file] not in (None, clip.sha256)),
        withdrawn=read_withdrawn(folder),
    )


def _rows(folder: Path, table: LabelsFile, singer_from: str | None) -> list[Clip]:
    """Every row that names a file; unusable rows without a score."""
    if not table.rows:
        return []
    columns = dict(table.column_map)
    read = read_labels(folder / LABELS, column_map=columns, singer_from=singer_from, keep_duplicates=True)
    usable = {clip.row: clip for clip in read.clips}
    named, singers, hashes = (table.column(name) for name in ("audio_file", "singer_id", "sha256"))
    return [
        usable.get(row) or Clip(name, singer_id=singers[row] or None, row=row, sha256=hashes[row].lower() or None)
        for row, name in named.items()
        if name
    ]


def _with_content(names: NamesOnDisk, clip: Clip, hashes: dict[str, str | None]) -> Clip:
    """A clip with the hash of its row, or else of its file; `hashes` caches the files' hashes by name."""
    if (name := names.find(clip.audio_file)) != clip.audio_file:
        clip = replace(clip, audio_file=name)
    if clip.audio_file not in hashes:
        path = path_on_disk(names.folder, clip.audio_file)
        hashes[clip.audio_file] = sha256_of(path) if path.is_file() else None
    return clip if clip.sha256 else replace(clip, sha256=hashes[clip.audio_file])


def read_withdrawn(folder: Path) -> dict[str, Withdrawn]:
    """Read the removed recordings by their SHA-256."""
    path = folder / WITHDRAWN
    try:
        value = read_json(path) if path.is_file() else {}
        return {str(content): Withdrawn(**entry) for content, entry in value.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Restore it from the data's last version.") from error


def write_withdrawn(folder: Path, withdrawn: Mapping[str, Withdrawn]) -> None:
    """Write the removed recordings atomically if they changed. No file is created without entries."""
    path = folder / WITHDRAWN
    if path.is_file() or withdrawn:
        if path.is_file() and read_withdrawn(folder) == withdrawn:
            return
        write_json(path, {content: asdict(entry) for content, entry in sorted(withdrawn.items())})


def write_order(folder: Path, groups: Sequence[Sequence[Clip]]) -> None:
    """Write the groups without scores atomically if they changed. No file is created without groups."""
    path = folder / ORDER
    kept = [[replace(clip, row=None, score=None) for clip in group] for group in groups if group]
    if (path.is_file() or kept) and not (path.is_file() and _read_groups(path) == kept):
        write_index(path, kept)


def _read_groups(path: Path) -> list[list[Clip]] | None:
    try:
        return read_index(path)
    except (DataError, json.JSONDecodeError):
        return None
