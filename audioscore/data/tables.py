"""Table files as text cells: csv, tsv, xlsx (every sheet) and jsonl, in the encodings people save them in."""

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
    """Text cells as they stand in the file, without surrounding space.

    Rows are numbered from 1 after the header, over all sheets of a file; blank rows count but are not kept. `broken`
    lists the rows that could not be split into cells, and why. `name` is empty where a file has one sheet.
    """

    name: str
    headers: list[str]
    rows: list[tuple[int, list[str]]]
    broken: list[tuple[int, str]]


def read_sheets(path: Path, *, known: Callable[[str], bool] = bool) -> list[Sheet]:
    """Read every sheet that is not empty; the first row that is not blank is the header.

    `known` tells the headers that mean something, which decides between the delimiters of a csv (comma, semicolon,
    tab). Raises DataError where there is no such file, or it is empty, damaged, or of another kind.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such table. Give a file ending in {', '.join(SUFFIXES)}.")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path.name}: {suffix or 'no suffix'} is not read. Save it as {', '.join(SUFFIXES)}.")
    if suffix == ".xlsx":
        sheets = _read_xlsx(path)
    elif suffix == ".jsonl":
        sheets = [_read_jsonl(decode_text(path))]
    else:
        sheets = [_read_csv(path, decode_text(path), known)]
    filled = [sheet for sheet in sheets if any(sheet.headers)]
    if broken := [f"row {row}: {reason}" for sheet in sheets for row, reason in sheet.broken if not filled]:
        raise DataError(f"{path.name}: none of its {len(broken)} rows can be read ({shorten(broken, 3)}). Mend them.")
    if not filled:
        raise DataError(f"{path.name} is empty. A table starts with a row of column names.")
    return filled


def cell_text(value: Any) -> str:
    """A cell as text; whole floats without their `.0`, so that a numeric id reads as it was typed.

    >>> cell_text(203887.0), cell_text(85.5), cell_text(None), cell_text(" 001 ")
    ('203887', '85.5', '', '001')
    """
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def is_text(value: str) -> bool:
    """Whether a text can be written down: JSON's escapes can hold half a character, which UTF-8 cannot.

    >>> is_text("录音 🎤"), is_text("\\ud83c")
    (True, False)
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def decode_text(path: Path) -> str:
    """A file's text: UTF-8, with or without its mark, UTF-16 with its mark, or else GB18030 (which holds GBK).

    Raises DataError where it is none of these.
    """
    data = path.read_bytes()
    encodings = ("utf-16",) if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "gb18030")
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise DataError(f"{path.name} is text in neither UTF-8 nor GB18030 (GBK). Save it as UTF-8.")


def _read_csv(path: Path, text: str, known: Callable[[str], bool]) -> Sheet:
    # Excel may write its delimiter into a first line of its own.
    if declared := re.match(r"sep=(.)\r?\n", text):
        text, delimiter = text[declared.end() :], declared[1]
    else:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(text, known)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        sheet = _sheet("", list(reader), 1)
    except csv.Error as fault:
        raise DataError(
            f"{path.name}, near line {reader.line_num}: the quotes do not pair up ({fault}), so rows cannot be told "
            f"apart. Close the quoted cell, and double the quotes inside it."
        ) from fault
    width = len(sheet.headers)
    swallowed = {row: cells for row, cells in sheet.rows if any(_holds_rows(cell, delimiter, width) for cell in cells)}
    rows = [(row, cells) for row, cells in sheet.rows if row not in swallowed]
    broken = [
        (row, f"{cells[0].splitlines()[0] if cells[0] else ''!r}: a quote left open took in the rows that follow it")
        for row, cells in swallowed.items()
    ]
    return Sheet("", sheet.headers, rows, broken)


def _holds_rows(cell: str, delimiter: str, width: int) -> bool:
    """Whether a line inside a quoted cell looks like a row of its own."""
    return "\n" in cell and any(line.count(delimiter) >= max(1, width - 1) for line in cell.splitlines()[1:])


def _delimiter(text: str, known: Callable[[str], bool]) -> str:
    """The mark that splits the header row into the most known names; then into the most names; then the comma."""

    def recognised(mark: str) -> tuple[int, int]:
        lines = io.StringIO(text, newline="")
        try:
            header = next((cells for cells in csv.reader(lines, delimiter=mark) if any(cells)), [])
        except csv.Error:
            header = []
        return sum(known(cell) for cell in header), len(header)

    return max(",;\t", key=recognised)


def _sheet(name: str, cells: list[list[str]], first: int) -> Sheet:
    stripped = [[cell.strip() for cell in row] for row in cells]
    top = next((index for index, row in enumerate(stripped) if any(row)), None)
    if top is None:
        return Sheet(name, [], [], [])
    rows = [(first + index, row) for index, row in enumerate(stripped[top + 1 :]) if any(row)]
    return Sheet(name, stripped[top], rows, [])


def _read_xlsx(path: Path) -> list[Sheet]:
    """Every worksheet's values (of formulas, those that were last computed)."""
    import openpyxl

    sheets: list[Sheet] = []
    first = 1
    try:
        with warnings.catch_warnings():
            # About styles, validation lists and other parts that hold no values.
            warnings.filterwarnings("ignore", category=UserWarning, module=r"openpyxl\.")
            # Read-only: a hundred thousand rows would take three times the memory otherwise.
            book = openpyxl.load_workbook(path, data_only=True, read_only=True)
        with contextlib.closing(book):
            for worksheet in book.worksheets:
                worksheet.reset_dimensions()  # a file may state fewer rows than it has
                cells = [[cell_text(value) for value in row] for row in worksheet.iter_rows(values_only=True)]
                sheet = _sheet(worksheet.title if len(book.worksheets) > 1 else "", cells, first)
                sheets.append(sheet)
                first += len(cells) - 1 if sheet.headers else 0
    except Exception as fault:  # a damaged workbook raises whatever its zip and XML parts run into
        raise DataError(f"{path.name} cannot be opened as a workbook ({fault}). Save it again as xlsx.") from fault
    return sheets


def _read_jsonl(text: str) -> Sheet:
    """One JSON object a line. A list under `raters` stands for columns `raters_1`, `raters_2`, ..."""
    objects: list[tuple[int, dict[str, Any]]] = []
    broken: list[tuple[int, str]] = []
    for row, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_object)
        except ValueError as fault:
            broken.append((row, f"the line is not JSON ({fault})"))
            continue
        if not is_text(json.dumps(value, ensure_ascii=False)):
            broken.append((row, "the line escapes half a character, which no name can hold"))
        elif isinstance(value, dict):
            objects.append((row, _spread(value)))
        else:
            broken.append((row, "the line is JSON, but not an object with our columns"))
    headers = list(dict.fromkeys(name for _, value in objects for name in value))
    rows = [(row, [cell_text(value.get(name)) for name in headers]) for row, value in objects]
    return Sheet("", headers, rows, broken)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("it names a column twice")
    return value


def _spread(value: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, cell in value.items():
        if isinstance(cell, list):
            flat |= {f"{name}_{number}": part for number, part in enumerate(cell, start=1)}
        else:
            flat[name] = cell
    return flat
