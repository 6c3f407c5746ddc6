"""Read table files as text cells: csv, tsv, xlsx (every sheet) and jsonl, in UTF-8, UTF-16 or GB18030."""

import contextlib
import csv
import io
import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audioscore.errors import DataError, shorten

SUFFIXES = (".csv", ".tsv", ".xlsx", ".jsonl")


@dataclass(frozen=True)
class Sheet:
    """The text cells of one sheet, stripped of surrounding space.

    Rows are numbered from 1 after the header, over all sheets of a file; blank rows count but are not kept. `broken`
    lists the rows that cannot be split into cells, and why. `name` is empty if the file has one sheet.
    """

    name: str
    headers: list[str]
    rows: list[tuple[int, list[str]]]
    broken: list[tuple[int, str]]


def read_sheets(path: Path, *, is_known: Callable[[str], bool] = bool) -> list[Sheet]:
    """Read every sheet that is not empty; the first row that is not blank is the header.

    `is_known` is true for known headers: the delimiter of a csv (comma, semicolon, tab) is the one that gives most of
    them. Raises DataError if the file does not exist, is empty or damaged, or has another format.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such table. Use a file ending in {', '.join(SUFFIXES)}.")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(
            f"{path.name}: {suffix or 'no suffix'} is not a supported format. Save it as {', '.join(SUFFIXES)}."
        )
    if suffix == ".xlsx":
        sheets = _read_xlsx(path)
    elif suffix == ".jsonl":
        sheets = [_read_jsonl(decode_text(path))]
    else:
        sheets = [_read_csv(path, decode_text(path), is_known)]
    filled = [sheet for sheet in sheets if any(sheet.headers)]
    if broken := [f"row {row}: {reason}" for sheet in sheets for row, reason in sheet.broken if not filled]:
        raise DataError(f"{path.name}: its {len(broken)} rows cannot be read ({shorten(broken, 3)}). Correct them.")
    if not filled:
        raise DataError(f"{path.name}: is empty. A table starts with a row of column names.")
    return filled


def cell_text(value: Any) -> str:
    """Convert a cell to text; whole floats lose their `.0`, so that a numeric id reads as it was typed.

    >>> cell_text(203887.0), cell_text(85.5), cell_text(None), cell_text(" 001 ")
    ('203887', '85.5', '', '001')
    """
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def is_text(value: str) -> bool:
    """Return whether a text can be encoded as UTF-8: JSON escapes can contain half of a surrogate pair.

    >>> is_text("录音 🎤"), is_text("\\ud83c")
    (True, False)
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def decode_text(path: Path) -> str:
    """Read a text file in UTF-8 (with or without BOM), UTF-16 (with BOM), or GB18030 (a superset of GBK).

    Raises DataError if the file is in another encoding.
    """
    data = path.read_bytes()
    encodings = ("utf-16",) if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "gb18030")
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise DataError(f"{path.name}: not UTF-8 or GB18030 (GBK) text. Save it as UTF-8.")


def _read_csv(path: Path, text: str, is_known: Callable[[str], bool]) -> Sheet:
    # Excel may write the delimiter in an extra first line.
    if declared := re.match(r"sep=(.)\r?\n", text):
        text, delimiter = text[declared.end() :], declared[1]
    else:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(text, is_known)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        sheet = _sheet("", list(reader), 1)
    except csv.Error as error:
        raise DataError(
            f"{path.name}, near line {reader.line_num}: unbalanced quotes ({error}), so the rows cannot be separated. "
            f"Close the quoted cell, and double the quotes inside it."
        ) from error
    width = len(sheet.headers)
    merged = {row: cells for row, cells in sheet.rows if any(_contains_rows(cell, delimiter, width) for cell in cells)}
    rows = [(row, cells) for row, cells in sheet.rows if row not in merged]
    broken = [
        (row, f"{cells[0].splitlines()[0] if cells[0] else ''!r}: an unclosed quote merges it with the next rows")
        for row, cells in merged.items()
    ]
    return Sheet("", sheet.headers, rows, broken)


def _contains_rows(cell: str, delimiter: str, width: int) -> bool:
    """Whether a line inside a quoted cell looks like a row."""
    return "\n" in cell and any(line.count(delimiter) >= max(1, width - 1) for line in cell.splitlines()[1:])


def _delimiter(text: str, is_known: Callable[[str], bool]) -> str:
    """The delimiter that gives the most known headers; if several do, the most headers; then the comma."""

    def headers_by(delimiter: str) -> tuple[int, int]:
        lines = io.StringIO(text, newline="")
        try:
            header = next((cells for cells in csv.reader(lines, delimiter=delimiter) if any(cells)), [])
        except csv.Error:
            header = []
        return sum(is_known(cell) for cell in header), len(header)

    return max(",;\t", key=headers_by)


def _sheet(name: str, cells: list[list[str]], first: int) -> Sheet:
    stripped = [[cell.strip() for cell in row] for row in cells]
    top = next((index for index, row in enumerate(stripped) if any(row)), None)
    if top is None:
        return Sheet(name, [], [], [])
    rows = [(first + index, row) for index, row in enumerate(stripped[top + 1 :]) if any(row)]
    return Sheet(name, stripped[top], rows, [])


def _read_xlsx(path: Path) -> list[Sheet]:
    """The values of every worksheet; a formula has the value that was last computed."""
    import openpyxl

    sheets: list[Sheet] = []
    first = 1
    try:
        with warnings.catch_warnings():
            # Warnings about styles, validation lists and other parts without values.
            warnings.filterwarnings("ignore", category=UserWarning, module=r"openpyxl\.")
            # Read-only: a hundred thousand rows would take three times the memory otherwise.
            book = openpyxl.load_workbook(path, data_only=True, read_only=True)
        with contextlib.closing(book):
            for worksheet in book.worksheets:
                worksheet.reset_dimensions()  # a file may declare fewer rows than it has
                cells = [[cell_text(value) for value in row] for row in worksheet.iter_rows(values_only=True)]
                sheet = _sheet(worksheet.title if len(book.worksheets) > 1 else "", cells, first)
                sheets.append(sheet)
                first += len(cells) - 1 if sheet.headers else 0
    except Exception as error:  # the zip and XML parsers raise many types for a damaged workbook
        raise DataError(f"{path.name}: cannot be read as a workbook ({error}). Save it again as xlsx.") from error
    return sheets


def _read_jsonl(text: str) -> Sheet:
    """One JSON object per line. A list under `raters` becomes the columns `raters_1`, `raters_2`, ..."""
    objects: list[tuple[int, dict[str, Any]]] = []
    broken: list[tuple[int, str]] = []
    for row, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_object)
        except ValueError as error:
            broken.append((row, f"the line is not JSON ({error})"))
            continue
        if not is_text(json.dumps(value, ensure_ascii=False)):
            broken.append((row, "the line contains an unpaired surrogate, which is not a character"))
        elif isinstance(value, dict):
            objects.append((row, _flat(value)))
        else:
            broken.append((row, "the line is not a JSON object with column names"))
    headers = list(dict.fromkeys(name for _, value in objects for name in value))
    rows = [(row, [cell_text(value.get(name)) for name in headers]) for row, value in objects]
    return Sheet("", headers, rows, broken)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("duplicate column name")
    return value


def _flat(value: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, cell in value.items():
        if isinstance(cell, list):
            flat |= {f"{name}_{number}": part for number, part in enumerate(cell, start=1)}
        else:
            flat[name] = cell
    return flat
