"""Workbooks with labels as people format them, and the clips that they contain.

The independent reference is LibreOffice: it saves each workbook again, and exports what it shows as csv.
"""

import csv
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from random import Random

from openpyxl import Workbook
from openpyxl.cell import Cell
from openpyxl.styles import Font
from openpyxl.worksheet.worksheet import Worksheet as Sheet

from audioscore.data.labels import read_labels
from audioscore.data.workbook import Worksheet, read_workbook

CSV = "csv:Text - txt - csv (StarCalc):44,34,76,1,,0,false,true,true,false,false,-1"  # every sheet, as shown
HEADERS = (["录音", "分数", "演唱者", "歌曲名称"], ["audio file", "Score", "singer_id", "song"])
NUMBER = re.compile(r"([-+]?[\d,]+(?:\.(\d+))?)(E[-+]\d+)?[%分]?")


@dataclass
class Case:
    """A workbook: its path, its clips as (file, score, singer), and the rows with formulas without results."""

    path: Path
    clips: list[tuple[str, float, str | None]] = field(default_factory=list)
    computed: list[tuple[str, float, str | None]] = field(default_factory=list)
    formulas: list[int] = field(default_factory=list)


def build(folder: Path, number: int) -> Case:
    """Write one workbook; the number decides its parts."""
    chance = Random(number)
    book = Workbook()
    sheet = book.active
    assert isinstance(sheet, Sheet)
    sheet.title = chance.choice(["九月", "KTV", "Sheet 1", "a-cappella (女)"])
    case = Case(folder / f"w{number:04d}.xlsx")
    for _ in range(chance.choice([0, 0, 1, 2])):
        sheet.append([chance.choice(["2026年8月评分表", "Scores of August"])])
        if chance.random() < 0.5:
            sheet.merge_cells(start_row=sheet.max_row, end_row=sheet.max_row, start_column=1, end_column=4)
    _table(sheet, case, chance, number)
    if chance.random() < 0.3:
        sheet.append([])
        sheet.append([chance.choice(["平均分", "合计:", "Average"]), chance.choice([80, "=AVERAGE(B3:B4)"])])
        sheet.append(["评分人:李某"])
    if chance.random() < 0.3:
        old = book.create_sheet("作废")
        old.append(HEADERS[0])
        old.append(["audio/old.m4a", 12])
        old.sheet_state = chance.choice(["hidden", "veryHidden"])
    if chance.random() < 0.3:
        book.create_sheet("说明").append(["人工打分的规则"])
    if chance.random() < 0.3:
        second = book.create_sheet("二组")
        _table(second, case, chance, number + 10_000)
    book.save(case.path)
    return case


def _table(sheet: Sheet, case: Case, chance: Random, number: int) -> None:
    raters = chance.random() < 0.25
    if raters:
        top = sheet.max_row + 1 if sheet.max_row > 1 or sheet["A1"].value else 1
        for column, text in enumerate(["录音", "评分", None, "演唱者"], start=1):
            sheet.cell(top, column, text)
        sheet.cell(top + 1, 2, "评委1")
        sheet.cell(top + 1, 3, "评委2")
        sheet.merge_cells(start_row=top, end_row=top, start_column=2, end_column=3)
        if chance.random() < 0.5:
            for column in (1, 4):
                sheet.merge_cells(start_row=top, end_row=top + 1, start_column=column, end_column=column)
    else:
        sheet.append(chance.choice(HEADERS))
    style = chance.choice(["text", "text", "000", '"No"00', '00-00"x"', "merged"])
    first = sheet.max_row + 1
    rows = chance.randint(3, 12)
    for index in range(rows):
        row = first + index
        score = round(chance.uniform(50, 99), chance.choice([0, 1, 2]))
        file = f"audio/{number}_{index:02d} 歌.m4a"
        columns = (1, 2, 4) if raters else (1, 2, 3)
        cell = sheet.cell(row, 1, file)
        if chance.random() < 0.15:
            cell.value, cell.hyperlink = "点击播放", f"https://example.com/{number}/{index}.m4a"
            file = f"https://example.com/{number}/{index}.m4a"
        formula = _write_score(sheet.cell(row, 2), score, chance)
        if raters:
            _write_score(sheet.cell(row, 3), score, Random(0))
        elif chance.random() < 0.7:
            _write_song(sheet.cell(row, 4), chance)
        singer = _write_singer(sheet, row, columns[2], style, index, rows)
        if chance.random() < 0.1:
            sheet.cell(row, 6, "重录")
        if chance.random() < 0.1:
            sheet.row_dimensions[row].hidden = True
            continue
        case.computed.append((file, score, singer))
        if formula:
            case.formulas.append(row)
        else:
            case.clips.append((file, score, singer))


def _write_score(cell: Cell, score: float, chance: Random) -> bool:
    """Write a score in one of the ways in which people do; return whether it is a formula."""
    form = chance.choice(["plain", "plain", "0.0", "0%", "0.00%", "#,##0", '0"分"', "text", "text分", "formula"])
    cell.value = score
    if "%" in form:
        cell.value = float(f"{score / 100:.6f}")
    if form == "formula":
        cell.value = f"={score - 1:.2f}+1"
    elif form.startswith("text"):
        cell.value = f"{score:g}{form[4:]}"
    elif form != "plain":
        cell.number_format = form
    return form == "formula"


def _write_song(cell: Cell, chance: Random) -> None:
    cell.value = chance.choice(["后来", "月亮\n代表我的心", date(2026, 8, 5), True, 7, 1200.5, "007", "=1/0", 2**60])
    if chance.random() < 0.3 and isinstance(cell.value, str):
        cell.font = Font(bold=True)
    if cell.value == 1200.5:
        cell.number_format = '"¥"#,##0.00'
    elif isinstance(cell.value, date):
        cell.number_format = "yyyy-mm-dd"
    elif cell.value == "=1/0" or cell.value == 2**60:
        cell.value = "千年\u200b之恋"  # what an id cannot be is tested elsewhere


def _write_singer(sheet: Sheet, row: int, column: int, style: str, index: int, rows: int) -> str:
    cell = sheet.cell(row, column)
    if style == "merged":
        if index % 3 == 0:
            cell.value = f"张三{index // 3}"
            last = min(row + 2, row - index + rows - 1)
            if last > row:
                sheet.merge_cells(start_row=row, end_row=last, start_column=column, end_column=column)
        return f"张三{index // 3}"
    if style == "text":
        cell.value = f"S{index:03d}"
        return f"S{index:03d}"
    cell.value, cell.number_format = index + 1, style
    return {"000": f"{index + 1:03d}", '"No"00': f"No{index + 1:02d}", '00-00"x"': f"00-{index + 1:02d}x"}[style]


def convert(files: Sequence[Path], kind: str, target: Path) -> None:
    """Run LibreOffice once for all files, with a profile of its own."""
    profile = (target / "profile").absolute().as_uri()
    command = ["soffice", f"-env:UserInstallation={profile}", "--headless", "--convert-to", kind, "--outdir"]
    subprocess.run([*command, str(target), *map(str, files)], check=True, capture_output=True, timeout=500)


def find_problems(case: Case, *, computed: bool, shown: Path) -> list[str]:
    """Compare the clips with those of the generator, and all cells with the csv files in `shown`."""
    problems = []
    table = read_labels(case.path)
    clips = [(clip.audio_file, round(clip.score or 0, 6), clip.singer_id) for clip in table.clips]
    expected = case.computed if computed else case.clips
    if clips != expected:
        different = [pair for pair in zip(clips, expected, strict=False) if pair[0] != pair[1]][:2]
        problems.append(f"{len(clips)} clips, {len(expected)} expected: {different}; {table.row_errors[:2]}")
    named = [int(found[1]) for one in table.row_errors if (found := re.search(r"row (\d+)", one.reason))]
    if sorted(named) != ([] if computed else sorted(case.formulas)):
        problems.append(f"errors in rows {named}, formulas in {case.formulas}")
    for sheet in read_workbook(case.path.read_bytes(), case.path.name, include_hidden=True):
        with (shown / f"{case.path.stem}-{sheet.title}.csv").open(newline="", encoding="utf-8") as file:
            problems += [f"{sheet.title}: {one}" for one in _compare(sheet, list(csv.reader(file)))]
    return problems


def _compare(sheet: Worksheet, shown: Sequence[Sequence[str]]) -> list[str]:
    inside = {
        (row, column): sheet.cells[top][left]
        for top, left, bottom, right in sheet.merged
        for row in range(top, bottom)
        for column in range(left, right)
        if (row, column) != (top, left)
    }
    problems = []
    for row in range(max(len(sheet.cells), len(shown))):
        ours = sheet.cells[row] if row < len(sheet.cells) else []
        theirs = shown[row] if row < len(shown) else []
        for column in range(max(len(ours), len(theirs))):
            our = ours[column] if column < len(ours) else ""
            their = inside.get((row, column)) or (theirs[column] if column < len(theirs) else "")
            if (row, column) not in sheet.faults and not _is_same(our, " ".join(their.split("\n"))):
                problems.append(f"row {row + 1}, column {column + 1}: {our!r}, shown {their!r}")
    return problems


def _is_same(our: str, their: str) -> bool:
    """Whether a text is what is shown, or the number that is shown, before it was rounded and formatted."""
    number = NUMBER.fullmatch(their.removeprefix("¥"))
    if our == their or number is None:
        return our == their
    value = float((number[1] + (number[3] or "")).replace(",", ""))
    try:
        return abs(float(our) - value) <= 0.5 * 10 ** -len(number[2] or "") * 1.001 + abs(value) * 1e-14
    except ValueError:
        return False
