"""The labels table of a data folder, changed row by row: what we do not understand in it stays as it is."""

import csv
import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from audioscore.data.clips import Clip
from audioscore.data.labels import HEADERS, match_columns, meaningful, read_labels
from audioscore.data.tables import SUFFIXES, cell_text, read_sheets
from audioscore.errors import DataError, shorten
from audioscore.files import write_text

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
