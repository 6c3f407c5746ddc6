"""Read the worksheets of an Excel workbook as a spreadsheet shows them: with formats, merged cells, links and hiding.

The only file that uses openpyxl's reader below `load_workbook`: its read-only mode needs a third of the memory for a
hundred thousand rows, but leaves out what `_read_marks` reads.
"""

import io
import re
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, time
from decimal import Decimal
from typing import IO, Any
from urllib.parse import unquote
from xml.etree.ElementTree import iterparse

from audioscore.errors import DataError

Position = tuple[int, int]  # row and column, from 0
STRICT = b"http://purl.oclc.org/ooxml/"
TRANSITIONAL = {
    b"spreadsheetml/main": b"http://schemas.openxmlformats.org/spreadsheetml/2006/main",
    b"officeDocument/relationships": b"http://schemas.openxmlformats.org/officeDocument/2006/relationships",
}
# What the XML of a sheet of plain values does not contain; other sheets are parsed twice.
MARKS = [
    b"mergeCell ",
    b"hyperlink ",
    b"<f>",
    b"<f ",
    b":f>",
    b":f ",
    b' ht="0"',
    b"hidden='",
    b'hidden="1',
    b'hidden="t',
]
CHUNK = 1 << 20
MAX_ROWS = 1 << 20
MAX_COLUMNS = 1000  # of merged cells, of links and of hidden cells
LINK = re.compile(r'\s*HYPERLINK\(\s*"([^"]+)"\s*[,;)]', re.IGNORECASE)
IS_PATH = re.compile(r"://|\.(?:[a-z][a-z0-9]{1,4}|3gpp?|3g2|3ga)$", re.IGNORECASE)
FORMAT = re.compile(r'"([^"]*)"|\\(.)|_.|\*.|(.)')  # parts of a number format; `_` and `*` stand for space
CURRENCY = re.compile("[$\u00a2-\u00a5\u20a0-\u20bf\uffe5]|\u5143")
EXACT = 2**53  # from this, a spreadsheet's numbers do not have all their digits


@dataclass
class Worksheet:
    """One worksheet: the text of its cells, from row 1 and column A, and what is known of rows and cells.

    Merged cells all have the text of the first one. `links` are the targets of cells that show another text than a
    path; `faults` are the reasons why a cell has no usable value.
    """

    title: str
    is_hidden: bool = False
    cells: list[list[str]] = field(default_factory=list)
    hidden_rows: set[int] = field(default_factory=set)
    hidden_columns: set[int] = field(default_factory=set)
    links: dict[Position, str] = field(default_factory=dict)
    faults: dict[Position, str] = field(default_factory=dict)
    merged: list[tuple[int, int, int, int]] = field(default_factory=list)


def read_workbook(data: bytes, name: str, *, include_hidden: bool = False) -> list[Worksheet]:
    """Read xlsx and xlsm, transitional or strict; hidden worksheets have no cells unless they are included.

    Raises DataError with the `name` of the file if it is damaged.
    """
    from openpyxl.reader.excel import ExcelReader

    try:
        with warnings.catch_warnings():
            # Warnings about styles, validation lists and other parts without values.
            warnings.filterwarnings("ignore", category=UserWarning, module=r"openpyxl\.")
            reader = ExcelReader(_transitional(data), read_only=True, data_only=True, keep_links=False)
            reader.read()
            parts = {sheet.name: relation.target for sheet, relation in reader.parser.find_sheets()}
            result = []
            for source in reader.wb.worksheets:
                sheet = Worksheet(source.title, source.sheet_state != "visible")
                if include_hidden or not sheet.is_hidden:
                    _read_cells(source, sheet)
                    _read_marks(reader, parts[source.title], sheet)
                result.append(sheet)
            return result
    except Exception as error:  # the zip and XML parsers raise many types for a damaged workbook
        raise DataError(f"{name}: cannot be read as a workbook ({error}). Save it again as xlsx.") from error


def _transitional(data: bytes) -> IO[bytes]:
    """Rename the namespaces of a strict workbook, which openpyxl does not read."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {name for name in archive.namelist() if name.endswith((".xml", ".rels"))}
        if "xl/workbook.xml" not in parts or STRICT not in archive.read("xl/workbook.xml"):
            return io.BytesIO(data)
        renamed = io.BytesIO()
        with zipfile.ZipFile(renamed, "w") as copy:
            for name in parts:
                text = archive.read(name)
                for strict, transitional in TRANSITIONAL.items():
                    text = text.replace(STRICT + strict, transitional)
                copy.writestr(name, text)
    return renamed


def _read_cells(source: Any, sheet: Worksheet) -> None:
    source.reset_dimensions()  # a file may declare fewer rows than it has
    for row in source.iter_rows():
        sheet.cells.append([_text(cell) for cell in row])


def _text(cell: Any) -> str:
    value = cell.value
    if isinstance(value, str):
        return (" ".join(value.splitlines()) if "\n" in value else value).strip()  # a line is wrapped by hand
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, int | float):
        return format_number(value, cell.number_format if cell.has_style else "General")
    if isinstance(value, datetime):
        return str(value.date() if value.time() == time() else value)
    return str(value)


def format_number(value: float, number_format: str) -> str:
    """Format a number as a spreadsheet shows it, but with all digits behind the point.

    Applied are percent (without the sign), and the zeros, prefixes and hyphens of ids; not thousands separators, units
    or currencies. Numbers from 2^53, which are not exact, are shown as powers of ten.

    >>> format_number(0.855, "0%"), format_number(7, "000"), format_number(1234, '"S"00-0'), format_number(85.25, "0.0")
    ('85.5', '007', 'S123-4', '85.25')
    >>> format_number(203887.0, "General"), format_number(440106199001011234, "0"), format_number(1200, "#,##0")
    ('203887', '4.40106199001011E+17', '1200')
    """
    if abs(value) >= EXACT:
        return f"{value:.14E}"
    text = str(int(value)) if float(value).is_integer() else str(value)
    if number_format == "General":
        return text
    # The section for positive numbers, without colors, conditions and locales.
    section = re.sub(r"\[[^\]]*\]", "", number_format.split(";")[0])
    if "%" in re.sub(r'"[^"]*"|\\.', "", section):
        return f"{(Decimal(str(value)) * 100).normalize():f}"
    parts = FORMAT.findall(section)  # (quoted, escaped, other character)
    zeros = [part[2] for part in parts].count("0")
    is_id = zeros > 1 or (zeros == 1 and parts[0][2] != "0")
    if not is_id or not text.isdigit() or CURRENCY.search(section) or any(part[2] not in "0 -()" for part in parts):
        return text
    digits = text.zfill(zeros)
    head = len(digits) - zeros + 1
    shown = iter([digits[:head], *digits[head:]])
    return "".join(next(shown) if part[2] == "0" else "".join(part) for part in parts).strip()


def _read_marks(reader: Any, part: str, sheet: Worksheet) -> None:
    """Read from the XML of a sheet what openpyxl's read-only mode leaves out, then fill merged cells."""
    if not _has_marks(reader.archive, part):
        return
    links: dict[str, str] = {}
    recalculated = re.search(rb'fullCalcOnLoad="(?:1|true)"', reader.archive.read(reader.parser.workbook_part_name))
    row = 0
    for kind, element in _elements(reader.archive, part):
        if kind == "row":
            row = int(element.get("r", row + 1))
            if element.get("hidden") in ("1", "true") or element.get("ht") == "0":
                sheet.hidden_rows.add(row - 1)
        elif kind == "col" and element.get("hidden") in ("1", "true"):
            sheet.hidden_columns |= set(range(int(element.get("min")) - 1, min(int(element.get("max")), MAX_COLUMNS)))
        elif kind == "mergeCell":
            sheet.merged.append(_bounds(element.get("ref")))
        elif kind == "hyperlink":
            links[element.get("ref")] = next((text for name, text in element.items() if name.endswith("}id")), "")
        elif kind == "c" and element.get("r") and (formula := element.find("{*}f")) is not None:
            _read_formula(element, formula.text or "", recalculated is not None, sheet)
    _read_links(reader.archive, part, links, sheet)
    _fill_merged(sheet)


def _has_marks(archive: zipfile.ZipFile, part: str) -> bool:
    with archive.open(part) as file:
        end = b""
        while chunk := end + file.read(CHUNK):
            if any(mark in chunk for mark in MARKS):
                return True
            if len(chunk) <= len(end):
                break
            end = chunk[-20:]
    return False


def _elements(archive: zipfile.ZipFile, part: str) -> Iterator[tuple[str, Any]]:
    """The elements of a sheet with their names, without namespace; a row comes after its cells and is then cleared."""
    with archive.open(part) as file:
        for _, element in iterparse(file):
            kind = element.tag.rpartition("}")[2]
            yield kind, element
            if kind == "row":
                element.clear()


def _bounds(reference: str) -> tuple[int, int, int, int]:
    from openpyxl.utils.cell import range_boundaries

    left, top, right, bottom = range_boundaries(reference)
    return (top or 1) - 1, (left or 1) - 1, bottom or MAX_ROWS, right or MAX_COLUMNS  # A:A has no rows, 1:1 no columns


def _read_formula(element: Any, formula: str, recalculated: bool, sheet: Worksheet) -> None:
    top, left, *_ = _bounds(element.get("r"))
    value = element.findtext("{*}v")
    if link := LINK.match(formula):
        sheet.links[top, left] = link[1]
    # Programs that write formulas leave the value empty, or 0 and a flag; an empty text is a result.
    elif element.get("t") != "str" and (not value or (value == "0" and recalculated)):
        sheet.faults[top, left] = (
            f"cell {element.get('r')} is a formula without a result ({'=' + formula[:60] if formula else 'shared'}): "
            f"open the workbook in a spreadsheet program, and save it"
        )
    elif "HYPERLINK(" in formula.upper() and not IS_PATH.search(value or ""):
        sheet.faults[top, left] = (
            f"cell {element.get('r')} shows a text, and a formula computes its link (={formula[:60]})"
        )


def _read_links(archive: zipfile.ZipFile, part: str, links: dict[str, str], sheet: Worksheet) -> None:
    from openpyxl.packaging.relationship import get_dependents, get_rels_path

    if any(links.values()):
        width = _width(sheet)
        relations = get_dependents(archive, get_rels_path(part)).to_dict()
        for reference, identifier in links.items():
            target = relations[identifier].target if identifier in relations else ""
            if IS_PATH.search(target):
                top, left, bottom, right = _bounds(reference)
                link = target if "://" in target else unquote(target)
                rows, columns = range(top, min(bottom, len(sheet.cells))), range(left, min(right, width))
                sheet.links |= {(row, column): link for row in rows for column in columns}
    shown = {(row, column): sheet.cells[row][column] for row, column in sheet.links if _has(sheet.cells, row, column)}
    sheet.links = {at: link for at, link in sheet.links.items() if not IS_PATH.search(shown.get(at, ""))}


def _has(cells: list[list[str]], row: int, column: int) -> bool:
    return row < len(cells) and column < len(cells[row])


def _width(sheet: Worksheet) -> int:
    return min(max(map(len, sheet.cells), default=0), MAX_COLUMNS)


def _fill_merged(sheet: Worksheet) -> None:
    """Fill merged cells with their value; a number only downwards, since a score is not a singer or another rating."""
    width = _width(sheet)
    for top, left, bottom, right in sheet.merged:
        text = sheet.cells[top][left] if _has(sheet.cells, top, left) else ""
        if re.fullmatch(r"[\d.,%+-]+分?", text):
            right = left + 1
        for row in range(top, min(bottom, len(sheet.cells))):
            cells = sheet.cells[row]
            if not any(cells):
                continue  # merged cells can reach to the last of a million rows
            cells += [""] * (min(right, width) - len(cells))
            for column in range(left, min(right, width)):
                cells[column] = text
                for known in (sheet.links, sheet.faults):
                    if (top, left) in known:
                        known[row, column] = known[top, left]
