import re
from pathlib import Path

import openpyxl
import pytest

from audioscore.data.clips import Clip
from audioscore.data.labels import LabelsTable, find_labels, read_labels
from audioscore.errors import DataError, UsageError


def wide(text: str) -> str:
    """Full-width digits, as Chinese input methods type them."""
    return text.translate({ord(mark): ord(mark) + 0xFEE0 for mark in "0123456789."})


def table(folder: Path, text: str, encoding: str = "utf-8", **options: str) -> LabelsTable:
    path = folder / "labels.csv"
    path.write_bytes(text.encode(encoding))
    return read_labels(path, singer_from=options.get("singer_from"), source=options.get("source"))


def check_row_errors(labels: LabelsTable, words: dict[int, str]) -> None:
    """The row errors are those of these rows, and every reason contains these words."""
    found = {error.row: error.reason for error in labels.row_errors}
    assert sorted(found) == sorted(words)
    assert {row: found[row] for row in words if any(word not in found[row] for word in words[row].split())} == {}


def test_only_repeated_rows_are_warnings(tmp_path: Path) -> None:
    labels = table(tmp_path, "file,score\na,80\na,80\nb,: duplicate of x\nc,1\nc,2\n")
    assert {error.row: error.severity for error in labels.row_errors} == {
        2: "warning",
        3: "error",
        4: "error",
        5: "error",
    }


def test_english_headers_in_any_spelling(tmp_path: Path) -> None:
    labels = table(tmp_path, "File Name, RATING ,Singer-ID,song_id\na.m4a,85.5,001,s1\n")
    assert labels.clips == [Clip("a.m4a", 85.5, "001", "s1", row=1)]
    names = {"audio_file": "File Name", "score": "RATING", "singer_id": "Singer-ID", "song_id": "song_id"}
    assert (labels.columns, labels.row_errors) == (names, [])


@pytest.mark.parametrize("header", ["标记分数", "分数", "分数标记", "标记粉丝"])
@pytest.mark.parametrize("name", ["录音", "录音链接"])
def test_chinese_headers_in_gbk(tmp_path: Path, header: str, name: str) -> None:
    labels = table(tmp_path, f"歌曲名称,歌手名称,{name},{header}\n甜蜜蜜,邓丽君,a.m4a,{wide('85.5')}\n", "gbk")
    assert labels.clips == [Clip("a.m4a", 85.5, song_id="甜蜜蜜", artist="邓丽君", row=1)]


def test_the_artist_is_the_singer_of_acapella_originals_only(tmp_path: Path) -> None:
    text = "file,score,artist,source,singer\n1,60,x,KTV,\n2,90,x,A-Cappella,\n3,91,x,acapella,007\n4,92,,清唱,\n"
    clips = table(tmp_path, text).clips
    assert [clip.singer_id for clip in clips] == [None, "x", "007", None]
    assert [clip.source for clip in clips] == ["ktv", "acapella", "acapella", "acapella"]
    assert [clip.artist for clip in clips] == ["x", "x", "x", None]
    rest = table(tmp_path, "file,score,artist,source\n1,60,x,ktv\n2,90,x,\n", source="acapella")
    assert [clip.singer_id for clip in rest.clips] == [None, "x"]


def test_the_singer_from_the_base_name(tmp_path: Path) -> None:
    text = "file,score,singer\nx/203_1.m4a,60,\n203_2.m4a,61,005\nnone.m4a,62,\nhttps://h/9_9/204_b.m4a?k=7_,63,\n"
    clips = table(tmp_path, text, singer_from=r"^(\d+)_").clips
    assert [clip.singer_id for clip in clips] == ["203", "005", None, "204"]
    for pattern, figure in (("(", ""), (r"\d", "0"), ("()()", "2")):
        with pytest.raises(UsageError, match=rf"--singer-from {re.escape(repr(pattern))}.*{figure}"):
            table(tmp_path, "file,score\na,1\n", singer_from=pattern)


def test_bad_rows_are_listed_and_the_others_kept(tmp_path: Path) -> None:
    cells = ["85", "", "abc", "101", "-1", "nan", "inf", "8 5", "85,5", "9²", "1_0", wide("100"), "85分", "9" * 400]
    rows = [f'{number}.m4a,"{cell}"' for number, cell in enumerate(cells, 1)]
    labels = table(tmp_path, "\n".join(["file,score", *rows, ",70", "x.m4a,70,80"]))
    assert [(clip.row, clip.score) for clip in labels.clips] == [(1, 85.0), (12, 100.0), (13, 85.0)]
    words = {2: "score", 3: "'abc'", 4: "101 0-100", 5: "-1 0-100", 6: "score", 7: "'inf'", 8: "'8 5'", 9: "'85,5'"}
    check_row_errors(labels, words | {10: "'9²'", 11: "'1_0'", 14: "score", 15: "file name", 16: "3 2"})
    assert [error.audio_file for error in labels.row_errors[:2]] == ["2.m4a", "3.m4a"]


def test_raters_are_kept_and_replace_a_missing_score_column(tmp_path: Path) -> None:
    labels = table(tmp_path, "file,评分2,评分1\na,90,80\nb,,71\nc,,\nd,80,x\ne,60,-\n")
    assert [(clip.score, clip.raters) for clip in labels.clips] == [
        (85.0, (80.0, 90.0)),
        (71.0, (71.0,)),
        (60.0, (None, 60.0)),
    ]
    assert labels.columns == {"audio_file": "file", "rater_1": "评分1", "rater_2": "评分2"}
    check_row_errors(labels, {3: "score rater", 4: "rater_1 'x'"})
    scored = table(tmp_path, "file,score,Rater 1,rater_2\na,70,80,90\nb,,80,90\n")
    assert [(clip.score, clip.raters) for clip in scored.clips] == [(70.0, (80.0, 90.0))]
    check_row_errors(scored, {2: "score"})


def test_duplicates_with_equal_scores_count_once_and_others_never(tmp_path: Path) -> None:
    labels = table(tmp_path, "file,score\na,80\nb,70\n./a,80.0\nb,71\nc,60\nB,70\n")
    assert [clip.audio_file for clip in labels.clips] == ["a", "c", "B"]
    conflict = "conflict 70 row 2 71 row 4"
    check_row_errors(labels, {2: conflict, 3: "duplicate row 1 80", 4: conflict})


def test_missing_columns_are_reported_with_accepted_headers(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        table(tmp_path, "文件名,备注,points\na,b,1\n")
    message = str(caught.value)
    names = ["labels.csv", "score", "文件名, 备注, points", "标记分数", "rater_1", "--map score="]
    assert [name for name in names if name not in message] == []
    assert "录音链接" not in message


def test_a_column_map_selects_the_column(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("file,points,score\na,85,1\n", encoding="utf-8")
    labels = read_labels(path, column_map={"score": "Points"})
    assert (labels.clips[0].score, labels.columns["score"]) == (85.0, "points")
    with pytest.raises(DataError, match=r"'mark'.*\bscore\b.*\bfile, points, score"):
        read_labels(path, column_map={"score": "mark"})
    with pytest.raises(UsageError, match=r"--map.*\bscroe\b.*audio_file, score"):
        read_labels(path, column_map={"scroe": "points"})


def test_two_headers_of_one_column_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'分数'.*\b2\b.*'score'.*\b4\b"):
        table(tmp_path, "file,分数,song,score\na,1,x,2\n")


def test_sheets_of_a_workbook_are_one_table(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    first = book.active
    assert first is not None
    first.title = "KTV"
    second, notes = book.create_sheet("原唱"), book.create_sheet("说明")
    for sheet, rows in (
        (first, [["录音", "分数", "singer_id"], ["a.m4a", 85, "001"], ["b.m4a", "x", 2]]),
        (second, [["file", "score"], ["c.m4a", 95.5], ["a.m4a", 84]]),
        (notes, [["how to score"], ["listen"]]),
    ):
        for row in rows:
            sheet.append(row)
    book.save(tmp_path / "labels.xlsx")
    labels = read_labels(find_labels(tmp_path))
    assert labels.clips == [Clip("c.m4a", 95.5, row=3)]
    conflict = "conflict 85 KTV row 2 84 原唱 row 3"
    check_row_errors(labels, {1: conflict, 2: "sheet KTV, row 3 'x'", 4: "sheet 原唱, row 3 " + conflict})
    assert ["说明" in note for note in labels.notes] == [True]
    notes.cell(1, 1, "file")
    book.save(tmp_path / "labels.xlsx")
    with pytest.raises(DataError, match=r"labels\.xlsx.*'说明'.*\bscore\b.*\bfile\b"):
        read_labels(tmp_path / "labels.xlsx")


def test_exactly_one_table_is_found_and_json_lines_and_long_ones_are_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels\.csv, labels\.tsv"):
        find_labels(tmp_path)
    path = tmp_path / "labels.jsonl"
    path.write_text('{"audio": "a", "score": 85, "singer_id": "001"}\nxx\n{"audio": "b", "score": NaN}\n', "utf-8")
    labels = read_labels(find_labels(tmp_path))
    assert labels.clips == [Clip("a", 85.0, "001", row=1)]
    assert sorted(error.row for error in labels.row_errors) == [2, 3]
    rows = [f"audio/{number}.m4a,{50 + number % 50},s{number % 97}" for number in range(10_000)]
    labels = table(tmp_path, "\n".join(["audio_file,score,singer_id", *rows]))
    assert (len(labels.clips), labels.clips[-1].row, labels.row_errors) == (10_000, 10_000, [])
    with pytest.raises(DataError, match=r"\b2\b.*\(labels\.csv, labels\.jsonl\)"):
        find_labels(tmp_path)


def test_one_id_in_several_spellings_is_one_and_noted(tmp_path: Path) -> None:
    rows = [
        "a,80,张三,夜曲,KTV",
        "b,81,张三\u200b,夜曲\xad,ktv",
        "c,82,2038.0,7,Ktv\u200b",
        "d,83,2038,007,清唱",
        "e,84,,7,ktv",
    ]
    labels = table(tmp_path, "\n".join(["file,score,singer,song,source", *rows]))
    assert [clip.singer_id for clip in labels.clips] == ["张三", "张三", "2038", "2038", None]
    assert [clip.song_id for clip in labels.clips] == ["夜曲", "夜曲", "7", "7", "7"]
    assert [clip.source for clip in labels.clips] == ["ktv", "ktv", "ktv", "acapella", "ktv"]
    singers, songs, sources = labels.notes
    assert re.search(r"^singer_id: 2 of 2 .*'张三' = '张三\\u200b', '2038.0' = '2038'", singers)
    assert re.search(r"^song_id: 2 of 2 ", songs)
    assert re.search(r"^source: 1 of 2 ", sources)
    assert table(tmp_path, "file,score,singer\na,80,001\nb,81,002\nc,82,001\n").notes == ()


def test_the_spellings_of_artists_and_file_names_are_singers_too(tmp_path: Path) -> None:
    text = "file,score,singer,artist,source\n203_a,80,,,\nx_b,81,203.0,,\nc,82,邓丽君,,\nd,83,,邓\u3000丽君,清唱\n"
    clips = table(tmp_path, text, singer_from=r"^(\d+)_").clips
    assert [clip.singer_id for clip in clips] == ["203", "203", "邓丽君", "邓丽君"]
    assert clips[3].artist == "邓 丽君"


def test_ids_that_have_lost_digits_refuse_their_rows(tmp_path: Path) -> None:
    rows = [
        "a,80,4.40106E+17,",
        'b,81,"4,40106e+17",',
        "c,82,,1.2E+15",
        "d,83,440106199001011234,",
        "e,84,2.0388712E7,",
    ]
    labels = table(tmp_path, "\n".join(["file,score,singer,song", *rows]))
    assert [clip.singer_id for clip in labels.clips] == ["440106199001011234", "20388712"]
    check_row_errors(labels, {1: "singer_id 4.40106E+17", 2: "singer_id 4,40106e+17", 3: "song_id 1.2E+15"})


def test_unused_columns_that_contradict_the_scores_are_noted(tmp_path: Path) -> None:
    header = "file,score,split,band,score_breath,音准,score_remark"
    rows = ["a,87,train,85-90,140,80,1000 times better", "b,70,TEST,85-90,60,-3,", "c,60,,60至65,,,", "d,66,,good,x,,"]
    labels = table(tmp_path, "\n".join([header, *rows]))
    assert len(labels.clips) == 4
    assert labels.splits == {"a": "train", "b": "TEST"}
    assert labels.unknown_columns == ("split", "band", "score_breath", "音准", "score_remark")
    found = [re.search(r"^column (\w+): (\d) of (\d) .*row (\d): ([^,]*)", note) for note in labels.notes]
    figures = [match.groups() if match else None for match in found]
    expected = [("band", "1", "4", "2", "85-90"), ("score_breath", "1", "3", "1", "140"), ("音准", "1", "2", "2", "-3")]
    assert sorted(figures) == sorted(expected)


def test_messages_do_not_contain_whole_cells(tmp_path: Path) -> None:
    labels = table(tmp_path, f"file,score\n{'a' * 9_000},80\nb,{'9' * 9_000}\nc,{'x' * 9_000}\n")
    check_row_errors(labels, {1: "9000", 2: "0-100", 3: "x"})
    assert all(len(error.reason) + len(error.audio_file) < 200 for error in labels.row_errors)
    with pytest.raises(DataError, match=r"\b500\b") as caught:
        table(tmp_path, ",".join(["file", *["score"] * 500]) + "\na\n")
    assert len(str(caught.value)) < 500
    assert "--map" not in str(caught.value)  # it cannot name one of several equal headers


def test_links_errors_and_formulas_of_a_workbook(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    for row in (
        ["录音", "分数", "演唱者", "备注"],
        ["播放", 80, "s1"],
        ["b.m4a", "=40+1", "s2"],
        ["c.m4a", 70, "#N/A"],
    ):
        sheet.append(row)
    sheet.append(["d.m4a", 0.9, "s4", "#REF!"])
    sheet["A2"].hyperlink = "https://h/a.m4a"
    sheet["B5"].number_format = "0%"
    book.save(tmp_path / "labels.xlsx")
    labels = read_labels(tmp_path / "labels.xlsx")
    assert [(clip.audio_file, clip.score) for clip in labels.clips] == [("https://h/a.m4a", 80.0), ("d.m4a", 90.0)]
    check_row_errors(labels, {2: "row 3 B3 =40+1", 3: "row 4 演唱者 #N/A"})


def test_invisible_characters_in_headers(tmp_path: Path) -> None:
    assert table(tmp_path, "audio\u200b_file,\u2060score\na.m4a,85\n").clips == [Clip("a.m4a", 85.0, row=1)]
