import datetime
import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from audioscore.data.workbook import STRICT, TRANSITIONAL, Worksheet, format_number, read_workbook
from audioscore.errors import DataError


def save(path: Path, rows: list[list[Any]], change: Callable[[Any], object] = lambda sheet: None) -> Path:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.title = "九月"
    for row in rows:
        sheet.append(row)
    change(sheet)
    book.save(path)
    return path


def rewrite(path: Path, part: str, *changes: tuple[str, str]) -> Path:
    """Change the XML of a part with regular expressions: what openpyxl does not write."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for pattern, text in changes:
        parts[part], count = re.subn(pattern.encode(), text.encode(), parts[part])
        assert count
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


def read(path: Path, *, include_hidden: bool = False) -> list[Worksheet]:
    return read_workbook(path.read_bytes(), path.name, include_hidden=include_hidden)


def cells(path: Path) -> list[list[str]]:
    return read(path)[0].cells


@pytest.mark.parametrize(
    ("value", "number_format", "text"),
    [
        (0.85, "0%", "85"),
        (0.8555, "0.0%", "85.55"),
        (1 / 3, "0%", "33.33333333333333"),
        (85.256, "0.0", "85.256"),
        (85, '0"分"', "85"),
        (85, "0.00_ ;[Red]-0.00 ", "85"),
        (1200.5, '"¥"#,##0.00', "1200.5"),
        (7, "000", "007"),
        (7, '[$-804]"S"00', "S07"),
        (1234, "0000-00", "0012-34"),
        (-7, "000", "-7"),
        (85, '"¥"0', "85"),
        (2**53 - 1, "General", "9007199254740991"),
        (440106199001011234, "0", "4.40106199001011E+17"),
        (datetime.date(2026, 8, 5), "yyyy-mm-dd", "2026-08-05"),
        (datetime.datetime(2026, 8, 5, 12, 30), "yyyy-mm-dd hh:mm", "2026-08-05 12:30:00"),
        (datetime.time(3, 20), "h:mm", "03:20:00"),
        (True, "General", "TRUE"),
        (" 001 ", "General", "001"),
        ("后来\n(现场)", "General", "后来 (现场)"),
    ],
)
def test_formats_of_cells(tmp_path: Path, value: Any, number_format: str, text: str) -> None:
    path = save(tmp_path / "t.xlsx", [[value]], lambda sheet: setattr(sheet["A1"], "number_format", number_format))
    assert cells(path) == [[text]]


def test_merged_cells_have_the_value_of_the_first(tmp_path: Path) -> None:
    def merge(sheet: Any) -> None:
        for reference in ("A2:A3", "B1:C2", "D4:XFD4"):
            sheet.merge_cells(reference)

    rows = [["a", "b", None, "d"], ["e"], [None, 1, 2], [3, None, None, "title"]]
    assert cells(save(tmp_path / "t.xlsx", rows, merge)) == [
        ["a", "b", "b", "d"],
        ["e", "b", "b"],
        ["e", "1", "2"],
        ["3", "", "", "title"],
    ]


def test_hidden_rows_columns_and_sheets_are_marked(tmp_path: Path) -> None:
    def hide(sheet: Any) -> None:
        sheet.row_dimensions[2].hidden = True
        sheet.column_dimensions["B"].hidden = True
        for state in ("hidden", "veryHidden"):
            old = sheet.parent.create_sheet(state)
            old.append(["x"])
            old.sheet_state = state

    path = save(tmp_path / "t.xlsx", [["a", "b"], ["c", "d"], ["e", "f"]], hide)
    shown, *hidden = read(path)
    assert (shown.hidden_rows, shown.hidden_columns, shown.is_hidden) == ({1}, {1}, False)
    assert [(sheet.title, sheet.is_hidden, sheet.cells) for sheet in hidden] == [
        ("hidden", True, []),
        ("veryHidden", True, []),
    ]
    assert [sheet.cells for sheet in read(path, include_hidden=True)[1:]] == [[["x"]], [["x"]]]


def test_links_replace_words_but_not_paths(tmp_path: Path) -> None:
    targets = ["https://h/1.m4a", "audio/%E6%AD%8C%201.m4a", "https://h/3.m4a", "mailto:a@b.c", "audio\\5.m4a"]

    def link(sheet: Any) -> None:
        for row, target in enumerate(targets, start=1):
            sheet.cell(row, 1).hyperlink = target
        sheet["A6"].hyperlink = openpyxl.worksheet.hyperlink.Hyperlink(ref="A6", location="'九月'!A1")

    words = [["播放"], ["播放"], ["3.m4a"], ["播放"], ["播放"], ["播放"], ['=HYPERLINK("audio/7.m4a","播放")']]
    (sheet,) = read(save(tmp_path / "t.xlsx", words, link))
    assert sheet.links == {
        (0, 0): "https://h/1.m4a",
        (1, 0): "audio/歌 1.m4a",
        (4, 0): "audio\\5.m4a",
        (6, 0): "audio/7.m4a",
    }
    assert sheet.faults == {}


@pytest.mark.parametrize(
    ("reference", "linked"),
    [
        ("A1:XFD1048576", {(row, column) for row in range(3) for column in range(2)}),
        ("B2:XFD300000", {(1, 1), (2, 1)}),
        ("A:A", {(0, 0), (1, 0), (2, 0)}),
        ("2:2", {(1, 0), (1, 1)}),
        ("C9:D10", set()),
    ],
)
def test_the_link_of_a_range_is_only_that_of_its_cells(
    tmp_path: Path, reference: str, linked: set[tuple[int, int]]
) -> None:
    def link(sheet: Any) -> None:
        sheet["A1"].hyperlink = "audio/1.m4a"
        sheet["A1"].value = "a"

    path = save(tmp_path / "t.xlsx", [["a", "b"], ["c"], ["d", "e"]], link)
    (sheet,) = read(rewrite(path, "xl/worksheets/sheet1.xml", ('ref="A1" ', f'ref="{reference}" ')))
    assert sheet.links == dict.fromkeys(linked, "audio/1.m4a")


def test_formulas_without_results_are_faults(tmp_path: Path) -> None:
    path = save(tmp_path / "t.xlsx", [["=40+1", "=50+1", "=A1&B1", "=HYPERLINK(D9,E9)", 5]])
    part = "xl/worksheets/sheet1.xml"
    rewrite(
        path,
        part,
        (r"<f>50\+1</f><v ?/>|<f>50\+1</f><v></v>", "<f>50+1</f><v>51</v>"),
        (r'<c r="C1"><f>(.*?)</f><v ?/>|<c r="C1"><f>(.*?)</f><v></v>', r'<c r="C1" t="str"><f>A1</f><v></v>'),
    )
    (sheet,) = read(path)
    assert sheet.cells == [["", "51", "", "", "5"]]
    assert sorted(sheet.faults) == [(0, 0), (0, 3)]
    assert re.search(r"\bA1\b.*=40\+1", sheet.faults[0, 0])
    # XlsxWriter writes the result 0, and a flag that openpyxl writes, too.
    rewrite(path, part, ("<v>51</v>", "<v>0</v>"))
    assert sorted(read(path)[0].faults) == [(0, 0), (0, 1), (0, 3)]
    rewrite(path, "xl/workbook.xml", ('fullCalcOnLoad="1"', ""))
    assert sorted(read(path)[0].faults) == [(0, 0), (0, 3)]


def test_strict_prefixed_and_unusual_xml(tmp_path: Path) -> None:
    rows = [["file", "score"], ["a.m4a", 85], ["b.m4a", 0.9]]

    def change(sheet: Any) -> None:
        sheet["B3"].number_format = "0%"
        sheet.merge_cells("A2:A3")

    expected = [["file", "score"], ["a.m4a", "85"], ["a.m4a", "90"]]
    path = save(tmp_path / "strict.xlsx", rows, change)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    strict = io.BytesIO()
    with zipfile.ZipFile(strict, "w") as archive:
        for name, data in parts.items():
            for kind, namespace in TRANSITIONAL.items():
                data = data.replace(namespace, STRICT + kind)
            archive.writestr(name, data)
    path.write_bytes(strict.getvalue())
    assert cells(path) == expected
    sheet = "xl/worksheets/sheet1.xml"
    prefixed = rewrite(
        save(tmp_path / "prefixed.xlsx", rows, change), sheet, ("<(/?)(?=[a-z])", r"<\1x:"), ("xmlns=", "xmlns:x=")
    )
    assert cells(prefixed) == expected
    unnumbered = save(tmp_path / "unnumbered.xlsx", rows, lambda one: one.row_dimensions.group(2, 3, hidden=True))
    (found,) = read(rewrite(unnumbered, sheet, (r' r="[A-Z]?\d+"', "")))
    assert (found.cells[1:], found.hidden_rows) == ([["a.m4a", "85"], ["b.m4a", "0.9"]], {1, 2})
    wide = rewrite(save(tmp_path / "wide.xlsx", rows, change), sheet, ('ref="A1:B3"', 'ref="A1:XFD1048576"'))
    assert cells(wide) == expected
    text = '<is><r><t>Te</t></r><r><t>resa</t></r><rPh sb="0" eb="1"><t>x</t></rPh></is>'
    rich = rewrite(
        save(tmp_path / "rich.xlsx", [["x", 1]]), sheet, (r'<c r="B1".*?</c>', f'<c r="B1" t="inlineStr">{text}</c>')
    )
    assert cells(rich) == [["x", "Teresa"]]


def test_years_counted_from_1904(tmp_path: Path) -> None:
    path = save(tmp_path / "t.xlsx", [[datetime.date(2026, 8, 5)]])
    rewrite(path, "xl/workbook.xml", ("<workbookPr ?/>", '<workbookPr date1904="1"/>'))
    assert cells(path) == [["2030-08-06"]]


def test_a_damaged_workbook_is_refused(tmp_path: Path) -> None:
    data = save(tmp_path / "t.xlsx", [["file"]]).read_bytes()
    for damaged in (data[:2000], data[:500] + b"\xff" * 200 + data[700:]):
        (tmp_path / "t.xlsx").write_bytes(damaged)
        with pytest.raises(DataError, match=r"^t\.xlsx\b"):
            read(tmp_path / "t.xlsx")


def test_format_number_two_to_the_53_is_not_exact() -> None:
    assert format_number(2**53 - 1, "0") == "9007199254740991"
    assert format_number(2**53, "0") == "9.00719925474099E+15"


def test_merged_scores_are_filled_downwards_alone(tmp_path: Path) -> None:
    rows = [["file", "score", "singer"], ["a.wav", 80, None], ["b.wav", None, None]]
    path = save(tmp_path / "t.xlsx", rows, lambda sheet: sheet.merge_cells("B2:C3"))
    (sheet,) = read(path)
    assert [[*cells, "", ""][:3] for cells in sheet.cells[1:]] == [["a.wav", "80", ""], ["b.wav", "80", ""]]
