"""Read table files as text cells: csv, tsv, xlsx (every visible sheet) and jsonl; see `text` for the encodings."""

import csv
import io
import itertools
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from audioscore.data.text import decode_text
from audioscore.data.workbook import IS_PATH, Worksheet, read_workbook
from audioscore.errors import DataError, shorten

SUFFIXES = (".csv", ".tsv", ".xlsx", ".jsonl")  # what a table is called in a data folder
WORKBOOKS = (".xlsx", ".xlsm", ".xltx", ".xltm", ".xlsb", ".ods")
READABLE = (*SUFFIXES, *WORKBOOKS, ".txt", ".xls")  # what a delivery may be called: its content decides
HEADER_ROWS = 10  # among which the header is searched
# What spreadsheets show for a formula that fails.
ERRORS = frozenset({"#N/A", "#REF!", "#VALUE!", "#NAME?", "#DIV/0!", "#NUM!", "#NULL!", "#SPILL!", "#CALC!"})
SUMMARIES = "summaries and signatures"
# Names of the rows below a table, without spaces.
SUMMARY = re.compile(
    r"(?:总?平均|均值|均分|合计|总计|小计|汇总|总数|总和|总?人数|最[高低大小]|标准差|方差|中位数|average|avg|mean|median|total"
    r"|subtotal|sum|count|max|maximum|min|minimum|std)(?:得?分数?|值)?(?:[:\uff1a].*)?"
    r"|(?:评分[人员]?|评委|评审|打分人?|审核人?|制表人?|填[表报]人?|负责人|签[名字]|(?:制表|评分)?日期|时间|备注|说明|注"
    r"|signature|signed(?:by)?|preparedby|date|notes?|remarks?)[:\uff1a].*",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class Sheet:
    """The text cells of one table, stripped of surrounding space; a worksheet can contain several.

    Rows are numbered from 1 after the header, over all tables of a file; rows that are left out count. `broken` lists
    the rows that cannot be split into cells, and why. `name` is empty if the file has one sheet.

    Of a worksheet, `locations` names the rows as a spreadsheet numbers them; `links` (targets of cells that show
    another text) and `faults` (why a cell has no value) are by row and column. `notes` are sentences about what is left
    out.
    """

    name: str
    headers: list[str]
    rows: list[tuple[int, list[str]]]
    broken: list[tuple[int, str]]
    locations: dict[int, str] = field(default_factory=dict)
    links: dict[tuple[int, int], str] = field(default_factory=dict)
    faults: dict[tuple[int, int], str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_sheets(
    path: Path, *, is_known: Callable[[str], str | None] = lambda header: None, include_hidden: bool = False
) -> list[Sheet]:
    """Read every table that is not empty, by the content of the file.

    The header is the row, among the first ten, with the most known headers: `is_known` returns our names of those. Two
    rows can be one header. The delimiter of a csv (comma, semicolon, tab, bar) is the one that gives most of them. Rows
    above the header, hidden rows and sheets, summaries and remarks are left out and noted.

    Raises DataError if the file does not exist, is empty or damaged, or has another format.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such table. Use a file ending in {', '.join(SUFFIXES)}.")
    suffix = path.suffix.lower()
    if suffix not in READABLE:
        raise DataError(
            f"{path.name}: {suffix or 'no suffix'} is not a supported format. Save it as {', '.join(SUFFIXES)}."
        )
    data = path.read_bytes()
    if _is_workbook(path, data):
        sheets = _read_workbook(path, data, is_known, include_hidden)
    elif suffix == ".jsonl":
        sheets = [_read_jsonl(decode_text(data, path.name))]
    else:
        sheets = _read_csv(path, decode_text(data, path.name), is_known)
    filled = [sheet for sheet in sheets if any(sheet.headers)]
    if broken := [f"row {row}: {reason}" for sheet in sheets for row, reason in sheet.broken if not filled]:
        raise DataError(f"{path.name}: its {len(broken)} rows cannot be read ({shorten(broken, 3)}). Correct them.")
    if not filled:
        raise DataError(f"{path.name}: is empty. A table starts with a row of column names.")
    return filled


def _is_workbook(path: Path, data: bytes) -> bool:
    """Whether the content is a workbook that can be read, or text; DataError if it is another document."""
    start = data[:1000].replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n").lower()
    found, fix = "", "Save it as xlsx or csv"
    if data.startswith(b"PK\3\4"):
        names = _archive_names(data)
        if any(name.startswith("xl/") for name in names) and "xl/workbook.bin" not in names:
            return True
        if "xl/workbook.bin" in names:
            found = "a binary workbook (xlsb)"
        else:
            found = "an OpenDocument file" if "content.xml" in names else "an archive or a damaged workbook"
    elif data.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        found = "a workbook in the old binary format (xls)"
        if "EncryptedPackage".encode("utf-16-le") in data:
            found, fix = "a workbook with a password", "Save it without the password"
    elif start.startswith((b"<", b"mime-version:")):
        found = "a web page or an XML file"
    elif start.startswith((b"%pdf", b"{\\rtf")):
        found = "a document, not a table"
    elif path.suffix.lower() in WORKBOOKS:
        found, fix = "not a workbook", "Save it again as xlsx, or name it .csv if it is text"
    if found:
        raise DataError(f"{path.name}: its content is {found}. {fix}.")
    return False


def _archive_names(data: bytes) -> list[str]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, ValueError):
        return []


def cell_text(value: Any) -> str:
    """Convert a cell to text; whole floats lose their `.0`, so that a numeric id reads as it was typed.

    From 2^53, where floats are not exact, the text is a power of ten, as a spreadsheet shows it.

    >>> cell_text(203887.0), cell_text(85.5), cell_text(None), cell_text(" 001 "), cell_text(440106199001011234.0)
    ('203887', '85.5', '', '001', '4.40106199001011E+17')
    """
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value)) if abs(value) < 2**53 else f"{value:.14E}"
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


def _read_csv(path: Path, text: str, is_known: Callable[[str], str | None]) -> list[Sheet]:
    # Excel may write the delimiter in an extra first line.
    if declared := re.match(r"sep=(.)\r?\n", text):
        text, delimiter = text[declared.end() :], declared[1]
    else:
        delimiter = _delimiter(text, is_known, "\t,;|" if path.suffix.lower() == ".tsv" else ",;\t|")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        rows = [[cell.strip() for cell in row] for row in reader]
    except csv.Error as error:
        raise DataError(
            f"{path.name}, near line {reader.line_num}: unbalanced quotes ({error}), so the rows cannot be separated. "
            f"Close the quoted cell, and double the quotes inside it."
        ) from error
    return [_separate(table, delimiter) for table in _tables(Worksheet("", cells=rows), 1, is_known)]


def _separate(sheet: Sheet, delimiter: str) -> Sheet:
    """Move the rows that contain other rows, because of an unclosed quote, to `broken`."""
    width = len(sheet.headers)
    merged = {row: cells for row, cells in sheet.rows if any(_contains_rows(cell, delimiter, width) for cell in cells)}
    broken = [
        (row, f"{cells[0].splitlines()[0] if cells[0] else ''!r}: an unclosed quote merges it with the next rows")
        for row, cells in merged.items()
    ]
    return replace(sheet, rows=[(row, cells) for row, cells in sheet.rows if row not in merged], broken=broken)


def _contains_rows(cell: str, delimiter: str, width: int) -> bool:
    """Whether a line inside a quoted cell looks like a row."""
    return "\n" in cell and any(line.count(delimiter) >= max(1, width - 1) for line in cell.splitlines()[1:])


def _delimiter(text: str, is_known: Callable[[str], str | None], delimiters: str) -> str:
    """The delimiter that gives the most known headers; if several do, the most headers; then the first."""

    def headers_by(delimiter: str) -> tuple[int, int]:
        lines = io.StringIO(text, newline="")
        try:
            header = _header(list(itertools.islice(csv.reader(lines, delimiter=delimiter), 2 * HEADER_ROWS)), is_known)
        except csv.Error:
            return 0, 0
        return header.known, len(header.cells)

    return max(delimiters, key=headers_by)


def _read_workbook(path: Path, data: bytes, is_known: Callable[[str], str | None], include_hidden: bool) -> list[Sheet]:
    sheets: list[Sheet] = []
    first = 1
    worksheets = read_workbook(data, path.name, include_hidden=include_hidden)
    for worksheet in worksheets:
        if include_hidden:
            worksheet.hidden_rows.clear()
        tables = _tables(worksheet, first, is_known)
        sheets += tables
        first += len(worksheet.cells) - 1 if tables else 0
    hidden = [sheet.title for sheet in worksheets if sheet.is_hidden and not include_hidden]
    if hidden and sheets:
        sheets[0].notes.insert(0, f"hidden sheets are not read: {len(hidden)} ({shorten(hidden)}).")
    elif hidden:
        raise DataError(f"{path.name}: all of its sheets with rows are hidden ({shorten(hidden)}). Unhide one.")
    return sheets if len(worksheets) - len(hidden) > 1 else [replace(sheet, name="") for sheet in sheets]


class _Header(NamedTuple):
    """The header of a table: its row, the row below it, its cells, and how many of them are known."""

    top: int
    below: int
    cells: list[str]
    known: int


def _header(rows: Sequence[list[str]], is_known: Callable[[str], str | None]) -> _Header:
    """The row with the most known cells, of the first ten; or two rows, of which the upper one names groups.

    Below the first row with two known cells, only the next one is tried: the others can be of a further table.
    """
    tops = list(itertools.islice((top for top, row in enumerate(rows) if any(row)), HEADER_ROWS))
    found = [_Header(top, top + 1, rows[top], _known(rows[top], is_known)) for top in tops]
    first = next((one.top for one in found if one.known > 1), None)
    for top in tops:
        if top + 1 in tops:
            pairs = itertools.zip_longest(rows[top], rows[top + 1], fillvalue="")
            cells = [lower or upper for upper, lower in pairs]
            found.append(_Header(top, top + 2, cells, _known(cells, is_known)))
    tried = [one for one in found if first is None or one.top <= first + 1]
    return max(tried, key=lambda one: one.known, default=_Header(0, 0, [], 0))


def _known(cells: list[str], is_known: Callable[[str], str | None]) -> int:
    return len({cell for cell in cells if cell and is_known(cell)})


def _tables(worksheet: Worksheet, first: int, is_known: Callable[[str], str | None]) -> list[Sheet]:
    """Split a worksheet, or a text file, into tables; `first` is the number of the row below the first header.

    A further table starts below a blank row, and has two known headers or more.
    """
    rows = worksheet.cells
    header = _header(rows, is_known)
    if not header.cells:
        return []
    starts = [(0, header)]
    for top in range(header.below + 1, len(rows)):
        if any(rows[top]) and not any(rows[top - 1]):
            other = _header(list(itertools.takewhile(any, rows[top : top + HEADER_ROWS])), is_known)
            if other.known > 1:
                starts.append((top, other._replace(top=top + other.top, below=top + other.below)))
    ends = [begin for begin, _ in starts[1:]] + [len(rows)]
    offset = first - header.below
    return [_table(worksheet, *start, end, offset, is_known) for start, end in zip(starts, ends, strict=True)]


def _table(
    worksheet: Worksheet, begin: int, header: _Header, end: int, offset: int, is_known: Callable[[str], str | None]
) -> Sheet:
    """The table whose title, header and rows are between two positions; `offset` is added to number its rows."""
    title = worksheet.title
    columns = [is_known(cell) or "" for cell in header.cells]
    width = len(header.cells)
    while title and width and not header.cells[width - 1]:
        width -= 1  # a worksheet can have remarks beside the table; a row of text with more cells is wrong
    sheet = Sheet(title, header.cells[:width], [], [])
    above = [row for row in range(begin, header.top) if any(worksheet.cells[row])]
    if above and above[-1] == header.top - 1:  # merged with a cell of the header, it is a part of the header
        pairs = zip(worksheet.cells[above[-1]], header.cells, strict=False)
        above = above[:-1] if any(upper and upper == lower for upper, lower in pairs) else above
    left_out = {"rows above the header": above}
    for row in range(header.below, end):
        cells = worksheet.cells[row]
        if not any(cells):
            continue
        if row in worksheet.hidden_rows:
            left_out.setdefault("hidden rows", []).append(row)
            continue
        if [cell for cell in cells if cell] == [cell for cell in header.cells if cell]:
            left_out.setdefault("repeated headers", []).append(row)
            continue
        if _is_summary(worksheet, row, columns, below=SUMMARIES in left_out):
            left_out.setdefault(SUMMARIES, []).append(row)
            continue
        if title:
            sheet.locations[offset + row] = f"sheet {title}, row {row + 1}"
            if any(cells[width:]):
                left_out.setdefault("remarks beside the table", []).append(row)
        sheet.rows.append((offset + row, cells[:width] if title and len(cells) > width else cells))
        if not ERRORS.isdisjoint(cells):
            for column, cell in enumerate(cells[:width]):
                if cell in ERRORS:
                    sheet.faults[offset + row, column] = f"{header.cells[column]} is {cell}, a spreadsheet error"
    for known, ours in ((worksheet.links, sheet.links), (worksheet.faults, sheet.faults)):
        ours |= {(offset + row, column): text for (row, column), text in known.items() if header.below <= row < end}
    where = f"sheet {title}: " if title else ""
    for kind, positions in left_out.items():
        if positions:
            skipped = width if kind == "remarks beside the table" else 0
            listed = shorten([_shown(worksheet, row, skipped) for row in positions], 3)
            sheet.notes.append(f"{where}{kind} are not read: {len(positions)} ({listed}).")
    hidden = [header.cells[column] for column in sorted(worksheet.hidden_columns) if any(header.cells[column:][:1])]
    if hidden:
        sheet.notes.append(f"{where}hidden columns are read: {len(hidden)} ({shorten(hidden)}).")
    return sheet


def _is_summary(worksheet: Worksheet, row: int, columns: list[str], *, below: bool) -> bool:
    """Whether a row is no data: its file, or without a file its first cell, is the name of a summary.

    `below` a summary, a row that has only scores is a part of it. A link or a fault is not blank.
    """
    if "audio_file" not in columns or any(map(IS_PATH.search, worksheet.cells[row])):
        return False
    cells = (
        worksheet.links.get((row, column), worksheet.faults.get((row, column), cell))
        for column, cell in enumerate(worksheet.cells[row])
    )
    filled = [(column, cell) for column, cell in itertools.zip_longest(columns, cells, fillvalue="") if cell]
    named = [cell for column, cell in filled if column == "audio_file"] or [filled[0][1]]
    return all(SUMMARY.fullmatch("".join(cell.split())) for cell in named) or (
        below and all(column.startswith(("score", "rater_")) for column, _ in filled)
    )


def _shown(worksheet: Worksheet, row: int, skipped: int) -> str:
    text = next(cell for cell in worksheet.cells[row][skipped:] if cell)
    return f"row {row + 1}: {text[:30]!r}" if worksheet.title else repr(text[:30])


def _read_jsonl(text: str) -> Sheet:
    """One JSON object per line. A list under `raters` becomes the columns `raters_1`, `raters_2`, ..."""
    objects: list[tuple[int, dict[str, str]]] = []
    broken: list[tuple[int, str]] = []
    for row, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_object)
            if not is_text(json.dumps(value, ensure_ascii=False)):
                broken.append((row, "the line contains an unpaired surrogate, which is not a character"))
            elif isinstance(value, dict):
                objects.append((row, _flat(value)))
            else:
                broken.append((row, "the line is not a JSON object with column names"))
        except (ValueError, RecursionError) as error:
            broken.append((row, f"the line is not JSON ({error})"))
    headers = list(dict.fromkeys(name for _, value in objects for name in value))
    rows = [(row, [value.get(name, "") for name in headers]) for row, value in objects]
    return Sheet("", headers, rows, broken)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("duplicate column name")
    return value


def _flat(value: dict[str, Any]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, cell in value.items():
        if isinstance(cell, list):
            flat |= {f"{name}_{number}": cell_text(part) for number, part in enumerate(cell, start=1)}
        else:
            flat[name] = cell_text(cell)
    return flat
