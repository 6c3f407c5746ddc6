"""What a data folder holds already: its recordings by content, wherever they are written down."""

import csv
import io
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from audioscore.data.clips import Clip
from audioscore.data.index import ORDER, read_index, write_index
from audioscore.data.labels import HEADERS, match_columns, meaningful, read_labels
from audioscore.data.tables import SUFFIXES, cell_text, read_sheets
from audioscore.errors import DataError, shorten
from audioscore.files import read_json, sha256_of, write_json, write_text

LABELS = "labels.csv"
TABLES = tuple(f"labels{suffix}" for suffix in SUFFIXES)  # a folder has one of these
BASE = ("audio_file", "score")


@dataclass
class LabelsFile:
    """Cells of labels.csv: its headers, and its rows by their number, counted from 1 below the header.

    `column_map` maps our names to the headers that the synonyms do not cover.
    """

    headers: list[str] = field(default_factory=lambda: list(BASE))
    rows: dict[int, list[str]] = field(default_factory=dict)
    column_map: Mapping[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> dict[str, int]:
        """The place of each of our names among the headers."""
        return match_columns(self.headers, self.column_map)

    def column(self, name: str) -> dict[int, str]:
        """The cells under one of our names, by row; empty where there is none."""
        place = self.columns.get(name)
        return {row: line[place] if place is not None and place < len(line) else "" for row, line in self.rows.items()}

    def append(self, clip: Clip) -> None:
        """Add a row at the end."""
        row = max(self.rows, default=0) + 1
        self.rows[row] = []
        self.update(row, _cells(clip))

    def update(self, row: int, cells: Mapping[str, str]) -> None:
        """Set cells of a row by our names; a column that is not there yet is added at the right."""
        columns = self.columns
        for name, text in cells.items():
            if name not in columns:
                columns[name] = len(self.headers)
                self.headers.append(name)
            line = self.rows[row]
            line += [""] * (columns[name] + 1 - len(line))
            line[columns[name]] = text

    def remove(self, rows: Collection[int]) -> None:
        """Take rows out."""
        self.rows = {row: cells for row, cells in self.rows.items() if row not in rows}

    def text(self) -> str:
        """The table as csv."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(self.headers)
        width = len(self.headers)
        writer.writerows([*cells, *[""] * (width - len(cells))] for cells in self.rows.values())
        return buffer.getvalue()


def read_labels_file(folder: Path, column_map: Mapping[str, str] | None = None) -> LabelsFile:
    """The folder's labels.csv as cells; an empty one where there is none.

    A table that has its scores in rater columns only gets a score column, or the rows that are added would empty it.

    Raises DataError where the folder keeps its labels in another form, or some rows cannot be told apart: changing
    such a table could lose what it holds.
    """
    path = folder / LABELS
    if others := sorted(name for name in TABLES if name != LABELS and (folder / name).is_file()):
        raise DataError(
            f"{folder} keeps labels in {', '.join(others)}, and only a {LABELS} is changed. Move that table out of the "
            f"folder, and add it: `audioscore data add {others[0]} --audio {folder} --data {folder}`."
        )
    if not path.is_file() or not path.read_bytes().strip():
        return LabelsFile()
    sheet = read_sheets(path, known=meaningful(column_map or {}))[0]
    if sheet.broken:
        told = [f"row {row}: {reason}" for row, reason in sheet.broken]
        raise DataError(f"{path}: {len(told)} rows cannot be told apart ({shorten(told)}). Mend them first.")
    table = LabelsFile(sheet.headers, dict(sheet.rows), dict(column_map or {}))
    if "score" not in table.columns:
        for clip in read_labels(path, column_map=dict(column_map or {}), keep_repeats=True).clips:
            table.update(clip.row or 0, {"score": _text(clip.score)})
    return table


def write_labels_file(folder: Path, table: LabelsFile) -> bool:
    """Write labels.csv atomically, unless it reads so already; whether it was written."""
    path = folder / LABELS
    text = table.text()
    if path.is_file() and path.read_bytes() == text.encode():
        return False
    write_text(path, text)
    return True


def changed_cells(old: Clip, new: Clip) -> dict[str, str]:
    """What a later delivery says differently, as cells by our names; what it leaves blank stays as it was."""
    before, after = _cells(old), _cells(new)
    changed = {name: after[name] for name in HEADERS if after.get(name) and after[name] != before.get(name)}
    if new.raters:  # a new rating replaces the old one whole
        width = max(len(old.raters), len(new.raters))
        for name in [f"rater_{number}" for number in range(1, width + 1)]:
            if after.get(name, "") != before.get(name, ""):
                changed[name] = after.get(name, "")
    return {name: text for name, text in changed.items() if name not in ("audio_file", "sha256")}


def _cells(clip: Clip) -> dict[str, str]:
    cells = {name: _text(getattr(clip, name)) for name in HEADERS} | {"audio_file": clip.audio_file}
    # A rater who gave no score keeps a column, or those after would move up.
    raters = {f"rater_{number}": _text(score) for number, score in enumerate(clip.raters, 1)}
    return {name: text for name, text in cells.items() if text or name in BASE} | raters


def _text(value: object) -> str:
    """A cell in one line: a table cannot hold the line ends that JSON can."""
    return " ".join(cell_text(value).split())


WITHDRAWN = "withdrawn.json"  # removed recordings by content: none of them is added again unasked


@dataclass(frozen=True)
class Withdrawn:
    """A removed recording: the day, and DVC's MD5 and the size by which its copies are found (None: it was missing)."""

    removed: str
    md5: str | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Known:
    """What a data folder's tables name: every row of labels.csv that names a file, and groups without scores.

    A row's `sha256` is its file's content; where the file is missing, or is not what the row says, it is what the row
    says. Rows that cannot be used have no score. `missing` and `damaged` name such recordings. `withdrawn` maps the
    SHA-256 of removed recordings to what is remembered of them.
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
        """Contents that have a score."""
        return {clip.sha256 for clip in self.rows if clip.sha256 and clip.score is not None}

    @property
    def by_origin(self) -> dict[str, Clip]:
        """The recording that was downloaded from each link, where it is still there, and what it was."""
        there = [one for one in [*self.ordered, *self.rows] if one.audio_file not in self.missing | self.damaged]
        return {clip.origin: clip for clip in there if clip.origin}


def read_known(folder: Path, table: LabelsFile, singer_from: str | None = None) -> Known:
    """Read what a data folder holds; `table` is its labels.csv. An empty or absent folder holds nothing.

    Every file that is named is hashed: what a table says of it may no longer be so. Raises DataError where a table
    cannot be read, and where order.json carries scores, which have their place in labels.csv.
    """
    if not folder.exists():
        return Known()
    if not folder.is_dir():
        raise DataError(f"{folder} is a file. Name the data folder.")
    groups = read_index(folder / ORDER) if (folder / ORDER).is_file() else []
    if scored := [clip.audio_file for group in groups for clip in group if clip.score is not None]:
        raise DataError(
            f"{folder / ORDER} carries {len(scored)} scores ({shorten(scored)}), and is for recordings without any. "
            f"Move it away, and add it: `audioscore data add`."
        )
    found: dict[str, str | None] = {}
    rows = [_with_content(folder, clip, found) for clip in _rows(folder, table, singer_from)]
    groups = [[_with_content(folder, clip, found) for clip in group] for group in groups]
    every = [*rows, *(clip for group in groups for clip in group)]
    return Known(
        rows,
        groups,
        missing=frozenset(name for name, content in found.items() if content is None),
        damaged=frozenset(clip.audio_file for clip in every if found[clip.audio_file] not in (None, clip.sha256)),
        withdrawn=read_withdrawn(folder),
    )


def _rows(folder: Path, table: LabelsFile, singer_from: str | None) -> list[Clip]:
    """Every row that names a file; those that cannot be used without a score."""
    if not table.rows:
        return []
    read = read_labels(folder / LABELS, column_map=dict(table.column_map), singer_from=singer_from, keep_repeats=True)
    usable = {clip.row: clip for clip in read.clips}
    named, singers = table.column("audio_file"), table.column("singer_id")
    return [
        usable.get(row) or Clip(name, singer_id=singers[row] or None, row=row) for row, name in named.items() if name
    ]


def _with_content(folder: Path, clip: Clip, found: dict[str, str | None]) -> Clip:
    """A clip with the hash that its row gives, or else its file's; `found` collects the files' hashes by name."""
    if clip.audio_file not in found:
        path = folder / clip.audio_file
        found[clip.audio_file] = sha256_of(path) if path.is_file() else None
    return clip if clip.sha256 else replace(clip, sha256=found[clip.audio_file])


def read_withdrawn(folder: Path) -> dict[str, Withdrawn]:
    """Removed recordings by their SHA-256."""
    path = folder / WITHDRAWN
    try:
        value = read_json(path) if path.is_file() else {}
        return {str(content): Withdrawn(**told) for content, told in value.items()}
    except (ValueError, TypeError, AttributeError) as fault:
        raise DataError(f"{path} cannot be read ({fault}). Restore it from the data's last version.") from fault


def write_withdrawn(folder: Path, withdrawn: Mapping[str, Withdrawn]) -> None:
    """Write the removed recordings atomically, unless they stand there already; no new file where there is none."""
    path = folder / WITHDRAWN
    if path.is_file() or withdrawn:
        if path.is_file() and read_withdrawn(folder) == withdrawn:
            return
        write_json(path, {content: asdict(told) for content, told in sorted(withdrawn.items())})


def write_order(folder: Path, groups: Sequence[Sequence[Clip]]) -> None:
    """Write the groups without scores atomically, unless they stand there already; no new file where there is none."""
    path = folder / ORDER
    kept = [[replace(clip, row=None, score=None) for clip in group] for group in groups if group]
    if (path.is_file() or kept) and not (path.is_file() and _as_groups(path) == kept):
        write_index(path, kept)


def _as_groups(path: Path) -> list[list[Clip]] | None:
    try:
        return read_index(path)
    except (DataError, json.JSONDecodeError):
        return None
