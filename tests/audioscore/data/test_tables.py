from pathlib import Path

import openpyxl
import pytest

from audioscore.data.tables import read_sheets
from audioscore.errors import DataError


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
    (sheet,) = read_sheets(write(tmp_path, "t.csv", text), is_known={"file", "score"}.__contains__)
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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.xls", b"x", r"t\.xls\b.*\.csv, \.tsv, \.xlsx, \.jsonl"),
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
