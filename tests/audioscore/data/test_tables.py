import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from audioscore.data.labels import known_header
from audioscore.data.tables import Sheet, cell_text, read_sheets
from audioscore.errors import DataError

OLE_ENCRYPTED = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600) + "EncryptedPackage".encode("utf-16-le")


def archive(name: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr(name, "x")
    return data.getvalue()


def write(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "gbk", "utf-16"])
def test_every_encoding_gives_the_same_cells(tmp_path: Path, encoding: str) -> None:
    (sheet,) = read_sheets(write(tmp_path, "t.csv", "录音,分数\n邓丽君.m4a,85\n", encoding))
    assert sheet.headers == ["录音", "分数"]
    assert sheet.rows == [(1, ["邓丽君.m4a", "85"])]


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_the_delimiter_of_a_csv_gives_its_known_headers(tmp_path: Path, mark: str) -> None:
    other = ";" if mark != ";" else ","
    text = f'file{mark}score{mark}note\n"a{mark}1.m4a"{mark}85{mark}x{other}y{other}z\n'
    (sheet,) = read_sheets(write(tmp_path, "t.csv", text), is_known=known_header({}))
    assert sheet.rows == [(1, [f"a{mark}1.m4a", "85", f"x{other}y{other}z"])]


def test_a_delimiter_declared_by_excel_and_a_tsv_suffix_are_used(tmp_path: Path) -> None:
    assert read_sheets(write(tmp_path, "t.csv", "sep=|\r\nfile|score\r\na|1\r\n"))[0].rows == [(1, ["a", "1"])]
    assert read_sheets(write(tmp_path, "t.TSV", "file\tscore\na,b\t1\n"))[0].rows == [(1, ["a,b", "1"])]


def test_blank_rows_count_but_are_not_kept(tmp_path: Path) -> None:
    (sheet,) = read_sheets(write(tmp_path, "t.csv", "\nfile,score\na,1\n\n , \nb,2\n"))
    assert sheet.rows == [(1, ["a", "1"]), (4, ["b", "2"])]


def test_an_unclosed_quote_is_never_a_row(tmp_path: Path) -> None:
    (sheet,) = read_sheets(write(tmp_path, "t.csv", 'file,score,song\na,80,"x\nb,70,y\nc,60,"\nd,50,z\n'))
    assert [cells[0] for _, cells in sheet.rows] == ["d"]
    assert [(row, reason[:3]) for row, reason in sheet.broken] == [(1, "'a'")]
    with pytest.raises(DataError, match=r"t\.csv.*line 3\b"):
        read_sheets(write(tmp_path, "t.csv", 'file,score\na,"80\nb,70\n'))


def test_every_sheet_of_a_workbook_is_read_as_text(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    first = book.active
    assert first is not None
    first.title = "KTV"
    for row in (["file", "score", "id"], ["a", 85, "001"], [None, None, None], ["b", 85.5, 203887.0]):
        first.append(row)
    second = book.create_sheet("原唱")
    for row in (["file", "score"], ["c", 95]):
        second.append(row)
    book.create_sheet("empty")
    book.save(tmp_path / "t.xlsx")
    ktv, original = read_sheets(tmp_path / "t.xlsx")
    assert ktv.rows == [(1, ["a", "85", "001"]), (3, ["b", "85.5", "203887"])]
    assert (original.name, original.rows) == ("原唱", [(4, ["c", "95"])])


def test_json_lines_keep_their_row_and_invalid_lines_have_a_reason(tmp_path: Path) -> None:
    lines = ['{"file": "a\u2028b", "score": 85, "raters": [80, 90]}', "", "{", "[1]", '{"file": 1, "file": 2}']
    (sheet,) = read_sheets(write(tmp_path, "t.jsonl", "\n".join(lines)))
    assert sheet.headers == ["file", "score", "raters_1", "raters_2"]
    assert sheet.rows == [(1, ["a\u2028b", "85", "80", "90"])]
    assert [row for row, _ in sheet.broken] == [3, 4, 5]
    assert len({reason for _, reason in sheet.broken}) == 3


@pytest.mark.parametrize("deep", ["[" * 100_000, '{"file":' * 100_000])
def test_json_that_is_nested_too_deep_is_a_broken_row(tmp_path: Path, deep: str) -> None:
    (sheet,) = read_sheets(write(tmp_path, "t.jsonl", f'{deep}\n{{"file": "a"}}\n'))
    assert ([row for row, _ in sheet.broken], sheet.rows) == ([1], [(2, ["a"])])


def test_every_depth_of_json_is_read_or_broken(tmp_path: Path) -> None:
    depths = range(1, 1200)
    lines = [f'{{"file": {"[" * depth}{"]" * depth}, "x": {{"y": {"[" * depth}{"]" * depth}}}}}' for depth in depths]
    (sheet,) = read_sheets(write(tmp_path, "t.jsonl", "\n".join(lines)))
    assert sorted([row for row, _ in sheet.rows] + [row for row, _ in sheet.broken]) == [*depths]
    assert sheet.rows
    assert sheet.broken


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.xlsx"])
def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if name == "t.xlsx":
        sheets(tmp_path, [["file", "score"], ["a", 1]])
    else:
        write(tmp_path, name, "file,score\na,1\n" if name == "t.csv" else '{"file": "a", "score": 1}\n')
    opened: list[str] = []
    real = io.open

    def record(file: Any, *args: Any, **named: Any) -> Any:
        opened.append(str(file))
        return real(file, *args, **named)

    monkeypatch.setattr(io, "open", record)
    assert read_sheets(tmp_path / name)[0].rows == [(1, ["a", "1"])]
    assert opened.count(str(tmp_path / name)) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.doc", b"x", r"t\.doc\b.*\.csv, \.tsv, \.xlsx, \.jsonl"),
        ("t.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), r"t\.xls\b.*xls\b.*xlsx"),
        ("t.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), r"t\.csv\b.*xls\b.*xlsx"),
        ("t.xlsx", OLE_ENCRYPTED, r"t\.xlsx\b.*password"),
        ("t.xls", b"<html><table><tr><td>file</td></tr></table></html>", r"t\.xls\b.*web page.*xlsx"),
        ("t.csv", b"\xff\xfe" + "<html>".encode("utf-16-le"), r"t\.csv\b.*web page"),
        ("t.xls", b'\xef\xbb\xbf<?xml version="1.0"?><Workbook/>', r"t\.xls\b.*XML.*xlsx"),
        ("t.csv", archive("content.xml"), r"t\.csv\b.*OpenDocument.*xlsx"),
        ("t.xlsb", archive("xl/workbook.bin"), r"t\.xlsb\b.*xlsb.*xlsx"),
        ("t.csv", archive("word/document.xml"), r"t\.csv\b.*archive"),
        ("t.csv", b"PK\3\4" + bytes(100), r"t\.csv\b.*damaged"),
        ("t.csv", b"%PDF-1.7\n", r"t\.csv\b.*document"),
        ("t.csv", "录音,分数\n張三,85\n".encode("big5", "ignore"), r"t\.csv\b.*UTF-8.*GB18030"),
        ("t.csv", b" \n", r"t\.csv\b.*empty"),
        ("t.csv", b"file,score\n\xff\xff\xff\n", r"t\.csv\b.*UTF-8.*GB18030"),
        ("t.xlsx", b"not a zip", r"t\.xlsx\b.*workbook"),
        ("gone.csv", None, r"gone\.csv"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_sheets(tmp_path / name)


def sheets(
    folder: Path, rows: list[list[Any]], change: Callable[[Any], object] = lambda sheet: None, **options: bool
) -> list[Sheet]:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.title = "九月"
    for row in rows:
        sheet.append(row)
    change(sheet)
    book.save(folder / "t.xlsx")
    return read_sheets(folder / "t.xlsx", is_known=known_header({}), **options)


@pytest.mark.parametrize("name", ["t.csv", "t.xls", "t.xlsm", "t.txt"])
def test_a_workbook_is_read_under_any_name(tmp_path: Path, name: str) -> None:
    sheets(tmp_path, [["file", "score"], ["a", 1]])
    (tmp_path / "t.xlsx").rename(tmp_path / name)
    assert read_sheets(tmp_path / name)[0].rows == [(1, ["a", "1"])]


def test_text_that_excel_saves_is_read(tmp_path: Path) -> None:
    for name, text, encoding in (
        ("t.txt", "录音\t分数\r\n后来.m4a\t85\r\n", "utf-16"),
        ("t.csv", "录音\t分数\r\n后来.m4a\t85\r\n", "utf-16"),
        ("t.xls", "录音\t分数\r\n后来.m4a\t85\r\n", "gbk"),
        ("t.csv", "录音,分数\r后来.m4a,85\r", "utf-8"),
        ("t.csv", "录音|分数\n后来.m4a|85\n", "utf-8-sig"),
        ("t.tsv", "录音,分数\n后来.m4a,85\n", "utf-8"),
        ("t.csv", "\ufeff录音,分数,\n后来.m4a,85,\n", "utf-8"),
    ):
        (sheet,) = read_sheets(write(tmp_path, name, text, encoding), is_known=known_header({}))
        assert sheet.headers[:2] == ["录音", "分数"]
        assert [cells[:2] for _, cells in sheet.rows] == [["后来.m4a", "85"]]


@pytest.mark.parametrize("suffix", [".csv", ".xlsx"])
@pytest.mark.parametrize(
    ("above", "headers"),
    [
        ([["录音", "评委1", "评委2", "演唱者"]], None),
        ([["2026年8月评分表"], [], ["录音", "评委1", "评委2", "演唱者"]], None),
        ([["录音", "评分", "", "演唱者"], ["", "评委1", "评委2", ""]], None),
        ([["录音", "评分", "评分", "演唱者"], ["录音", "评委1", "评委2", "演唱者"]], None),
        ([["Title", "x"], ["录音", "评分", "评分", "演唱者"], ["录音", "评委1", "评委2", "演唱者"]], None),
        ([["录音", "分数", "音准", "演唱者"]], ["录音", "分数", "音准", "演唱者"]),
    ],
)
def test_titles_and_headers_of_two_rows(
    tmp_path: Path, suffix: str, above: list[list[str]], headers: list[str] | None
) -> None:
    rows = [*above, ["a.m4a", "80", "90", "s1"], ["b.m4a", "70", "75", "s2"]]
    if suffix == ".xlsx":
        (sheet,) = sheets(tmp_path, rows)
    else:
        text = "".join(",".join(row) + "\n" for row in rows)
        (sheet,) = read_sheets(write(tmp_path, "t.csv", text), is_known=known_header({}))
    assert sheet.headers == (headers or ["录音", "评委1", "评委2", "演唱者"])
    assert sheet.rows == [(1, ["a.m4a", "80", "90", "s1"]), (2, ["b.m4a", "70", "75", "s2"])]
    above_header = [row for row in above[:-1] if any(row)] if "评分" not in above[0] else []
    assert len(sheet.notes) == bool(above_header)


def test_what_surrounds_a_table_is_noted(tmp_path: Path) -> None:
    rows: list[list[Any]] = [
        ["录音", "分数"],
        ["a.m4a", 80, None, "重录"],
        ["录音", "分数"],
        ["b.m4a", 90],
        ["平 均 分", 85],
        [None, 85],
        ["Total:", 170],
        [],
        ["评分人:某"],
    ]
    (sheet,) = sheets(tmp_path, rows)
    assert sheet.rows == [(1, ["a.m4a", "80"]), (3, ["b.m4a", "90"])]
    assert sheet.locations == {1: "sheet 九月, row 2", 3: "sheet 九月, row 4"}
    assert len(sheet.notes) == 3
    assert [any(word in note for note in sheet.notes) for word in ("重录", "row 3", "平 均 分")] == [True] * 3
    named = write(tmp_path, "t.csv", "录音,分数\n平均,80\n合计.m4a,90\nTotal,b.m4a\n")
    assert [cells for _, cells in read_sheets(named, is_known=known_header({}))[0].rows] == [
        ["合计.m4a", "90"],
        ["Total", "b.m4a"],
    ]


def test_a_row_without_a_file_above_the_summary_is_kept(tmp_path: Path) -> None:
    (sheet,) = sheets(tmp_path, [["录音", "分数"], ["a.m4a", 80], [None, 75]])
    assert (sheet.rows[1:], sheet.notes) == ([(2, ["", "75"])], [])


def test_only_rows_without_a_file_or_named_as_one_are_summaries(tmp_path: Path) -> None:
    rows: list[list[Any]] = [
        ["歌名", "录音", "分数", "音准"],
        ["Max", "r2", 90],
        [1989, 1003, 70],
        ["备注:高音", "r3", 80],
        ["Sum", "播放", 60],  # the link is the file
        ["Mean", '=A6&".m4a"', 50],
        ["合计", None, 350],
        [None, None, 70],
        ["后来", None, 75],
        [None, None, 75, 80],
        ["x", "r4", 65],
        [None, "平均分", 70],
    ]
    (sheet,) = sheets(tmp_path, rows, lambda sheet: setattr(sheet["B5"], "hyperlink", "a/5.m4a"))
    assert [row for row, _ in sheet.rows] == [1, 2, 3, 4, 5, 8, 9, 10]
    assert (sheet.links, list(sheet.faults)) == ({(4, 1): "a/5.m4a"}, [(5, 1)])
    (note,) = sheet.notes
    assert [name in note for name in ("row 7", "row 8", "row 12")] == [True] * 3
    text = "曲名,文件X,分数\nMax,r2,90\n1989,1003,70\n合计\n"
    for chosen, kept in (({"audio_file": "文件X"}, [1, 2]), ({}, [1, 2, 3])):  # without a file column, all rows
        (sheet,) = read_sheets(write(tmp_path, "t.csv", text), is_known=known_header(chosen))
        assert [row for row, _ in sheet.rows] == kept


def test_several_tables_in_one_sheet(tmp_path: Path) -> None:
    rows = [["录音", "分数"], ["a.m4a", 80], [], ["清唱组"], ["分数", "录音", "演唱者"], [95, "b.m4a", "s"]]
    first, second = sheets(tmp_path, rows)
    assert (first.headers, first.rows) == (["录音", "分数"], [(1, ["a.m4a", "80"])])
    assert (second.headers, second.rows) == (["分数", "录音", "演唱者"], [(5, ["95", "b.m4a", "s"])])
    assert second.locations == {5: "sheet 九月, row 6"}
    assert ["清唱组" in note for note in second.notes] == [True]


def test_hidden_rows_and_sheets_are_left_out_unless_they_are_included(tmp_path: Path) -> None:
    def hide(sheet: Any) -> None:
        sheet.row_dimensions[3].hidden = True
        old = sheet.parent.create_sheet("作废")
        old.append(["录音", "分数"])
        old.append(["old.m4a", 12])
        old.sheet_state = "hidden"

    rows = [["录音", "分数"], ["a.m4a", 80], ["b.m4a", 90]]
    (sheet,) = sheets(tmp_path, rows, hide)
    assert sheet.rows == [(1, ["a.m4a", "80"])]
    assert [word in note for word, note in zip(("作废", "row 3"), sheet.notes, strict=True)] == [True, True]
    first, second = sheets(tmp_path, rows, hide, include_hidden=True)
    assert (first.rows[1:], second.rows) == ([(2, ["b.m4a", "90"])], [(3, ["old.m4a", "12"])])


def test_a_workbook_with_only_hidden_sheets_is_refused(tmp_path: Path) -> None:
    def hide(sheet: Any) -> None:
        sheet.parent.create_sheet("说明")
        sheet.sheet_state = "hidden"

    with pytest.raises(DataError, match=r"^t\.xlsx\b.*九月"):
        sheets(tmp_path, [["录音", "分数"], ["a.m4a", 80]], hide)


@pytest.mark.parametrize("error", ["#N/A", "#REF!", "#DIV/0!", "#NAME?"])
def test_errors_of_the_spreadsheet_are_faults(tmp_path: Path, error: str) -> None:
    (sheet,) = sheets(tmp_path, [["录音", "分数"], ["a.m4a", error], ["b.m4a", 80]])
    assert [(at, error in reason) for at, reason in sheet.faults.items()] == [((1, 1), True)]
    (sheet,) = read_sheets(write(tmp_path, "t.csv", f"录音,分数\n{error},80\n"), is_known=known_header({}))
    assert list(sheet.faults) == [(1, 0)]


def test_cell_text_two_to_the_53_is_not_exact() -> None:
    assert cell_text(2.0**53 - 1) == "9007199254740991"
    assert cell_text(2.0**53) == "9.00719925474099E+15"
