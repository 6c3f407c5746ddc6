import tempfile
from pathlib import Path

import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioscore.data.clips import Clip
from audioscore.data.labels import LabelsTable, find_labels, read_labels, write_labels
from audioscore.errors import DataError, UsageError


def wide(text: str) -> str:
    """Full-width digits, as Chinese input methods type them."""
    return text.translate({ord(mark): ord(mark) + 0xFEE0 for mark in "0123456789."})


def table(
    folder: Path, text: str, encoding: str = "utf-8", *, singer_from: str | None = None, source: str | None = None
) -> LabelsTable:
    path = folder / "labels.csv"
    path.write_bytes(text.encode(encoding))
    return read_labels(path, singer_from=singer_from, source=source)


def reasons(labels: LabelsTable) -> dict[int, str]:
    return {fault.row: fault.reason for fault in labels.faults}


def test_english_headers_in_any_spelling(tmp_path: Path) -> None:
    labels = table(tmp_path, "File Name, RATING ,Singer-ID,song_id\na.m4a,85.5,001,s1\n")
    assert labels.clips == [Clip("a.m4a", 85.5, "001", "s1", row=1)]
    assert labels.columns == {
        "audio_file": "File Name",
        "score": "RATING",
        "singer_id": "Singer-ID",
        "song_id": "song_id",
    }
    assert labels.faults == []


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


def test_a_source_for_the_rows_that_name_none(tmp_path: Path) -> None:
    text = "file,score,artist,source\n1,60,x,ktv\n2,90,x,\n"
    assert [clip.singer_id for clip in table(tmp_path, text, source="acapella").clips] == [None, "x"]


def test_the_singer_from_the_base_name(tmp_path: Path) -> None:
    text = "file,score,singer\nx/203_1.m4a,60,\n203_2.m4a,61,005\nnone.m4a,62,\nhttps://h/9_9/204_b.m4a?k=7_,63,\n"
    clips = table(tmp_path, text, singer_from=r"^(\d+)_").clips
    assert [clip.singer_id for clip in clips] == ["203", "005", None, "204"]


@pytest.mark.parametrize(
    ("pattern", "message"), [("(", "is not a regular"), (r"\d", "has 0 groups"), ("()()", "has 2")]
)
def test_a_bad_singer_pattern_is_refused(tmp_path: Path, pattern: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        table(tmp_path, "file,score\na,1\n", singer_from=pattern)


def test_bad_rows_are_listed_and_the_others_kept(tmp_path: Path) -> None:
    cells = ["85", "", "abc", "101", "-1", "nan", "inf", "8 5", "85,5", "9²", "1_0", wide("100"), "85分", "9" * 400]
    rows = [f'{number}.m4a,"{cell}"' for number, cell in enumerate(cells, 1)]
    labels = table(tmp_path, "\n".join(["file,score", *rows, ",70", "x.m4a,70,80"]))
    assert [(clip.row, clip.score) for clip in labels.clips] == [(1, 85.0), (12, 100.0), (13, 85.0)]
    assert reasons(labels) | {14: ""} == {
        2: "no score",
        3: "score 'abc' is not a number",
        4: "score 101 is outside 0-100",
        5: "score -1 is outside 0-100",
        6: "no score",
        7: "score 'inf' is not a number",
        8: "score '8 5' is not a number",
        9: "score '85,5' is not a number",
        10: "score '9²' is not a number",
        11: "score '1_0' is not a number",
        14: "",
        15: "no file name",
        16: "3 cells for 2 columns: a delimiter inside a cell needs quotes",
    }
    assert [fault.audio_file for fault in labels.faults[:2]] == ["2.m4a", "3.m4a"]


def test_raters_are_kept_and_stand_in_for_a_missing_score_column(tmp_path: Path) -> None:
    labels = table(tmp_path, "file,评分2,评分1\na,90,80\nb,,71\nc,,\nd,80,x\ne,60,-\n")
    assert [(clip.score, clip.raters) for clip in labels.clips] == [
        (85.0, (80.0, 90.0)),
        (71.0, (71.0,)),
        (60.0, (None, 60.0)),
    ]
    assert labels.columns == {"audio_file": "file", "rater_1": "评分1", "rater_2": "评分2"}
    assert reasons(labels) == {3: "no score, and no rater gave one", 4: "rater_1: score 'x' is not a number"}
    scored = table(tmp_path, "file,score,Rater 1,rater_2\na,70,80,90\nb,,80,90\n")
    assert [(clip.score, clip.raters) for clip in scored.clips] == [(70.0, (80.0, 90.0))]
    assert reasons(scored) == {2: "no score"}


def test_repeated_files_count_once_or_not_at_all(tmp_path: Path) -> None:
    labels = table(tmp_path, "file,score\na,80\nb,70\n./a,80.0\nb,71\nc,60\nB,70\n")
    assert [clip.audio_file for clip in labels.clips] == ["a", "c", "B"]
    assert reasons(labels) == {
        2: "conflict: scored 70 in row 2, 71 in row 4",
        3: "duplicate of row 1: same file, same score 80",
        4: "conflict: scored 70 in row 2, 71 in row 4",
    }


def test_missing_columns_are_named_with_what_would_do(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        table(tmp_path, "文件名,备注,points\na,b,1\n")
    message = str(caught.value)
    assert "labels.csv has no column score; its headers are 文件名, 备注, points." in message
    assert "标记分数" in message
    assert "rater_1" in message
    assert "--map score=HEADER" in message
    assert "录音链接" not in message


def test_a_map_names_the_column(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("file,points,score\na,85,1\n", encoding="utf-8")
    labels = read_labels(path, column_map={"score": "Points"})
    assert (labels.clips[0].score, labels.columns["score"]) == (85.0, "points")
    with pytest.raises(DataError, match=r"has no column 'mark' for score; its headers are file, points, score"):
        read_labels(path, column_map={"score": "mark"})
    with pytest.raises(UsageError, match=r"--map knows no column scroe\. Use one of audio_file, score"):
        read_labels(path, column_map={"scroe": "points"})


def test_two_columns_of_one_meaning_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'分数' \(column 2\) and 'score' \(column 4\) both mean score"):
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
    assert reasons(labels) == {
        1: "conflict: scored 85 in row 1, 84 in row 4",
        2: "sheet 'KTV': score 'x' is not a number",
        4: "conflict: scored 85 in row 1, 84 in row 4",
        5: "sheet '说明' was left out: it has no column for audio_file and none for score",
    }
    notes.cell(1, 1, "file")
    book.save(tmp_path / "labels.xlsx")
    with pytest.raises(DataError, match=r"labels\.xlsx, sheet '说明', has no column score; its headers are file"):
        read_labels(tmp_path / "labels.xlsx")


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text('{"audio": "a", "score": 85, "singer_id": "001"}\nxx\n{"audio": "b", "score": NaN}\n', "utf-8")
    labels = read_labels(path)
    assert labels.clips == [Clip("a", 85.0, "001", row=1)]
    assert sorted(reasons(labels)) == [2, 3]


def test_ten_thousand_rows(tmp_path: Path) -> None:
    rows = [f"audio/{number}.m4a,{50 + number % 50},s{number % 97}" for number in range(10_000)]
    labels = table(tmp_path, "\n".join(["audio_file,score,singer_id", *rows]))
    assert (len(labels.clips), labels.clips[-1].row, labels.faults) == (10_000, 10_000, [])


def test_find_labels_wants_exactly_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no labels table\. Put one of labels\.csv, labels\.tsv"):
        find_labels(tmp_path)
    (tmp_path / "labels.tsv").touch()
    assert find_labels(tmp_path) == tmp_path / "labels.tsv"
    (tmp_path / "labels.csv").touch()
    with pytest.raises(DataError, match=r"holds 2 labels tables \(labels\.csv, labels\.tsv\)"):
        find_labels(tmp_path)


text = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)
clip = st.builds(
    Clip,
    audio_file=text,
    score=st.floats(0, 100),
    singer_id=st.none() | text,
    song_id=st.none() | text,
    source=st.sampled_from([None, "ktv"]),
    artist=st.none() | text,
    raters=st.lists(st.floats(0, 100), max_size=3).map(tuple),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(clip, unique_by=lambda clip: clip.audio_file, min_size=1, max_size=8))
def test_what_is_written_is_read_back(clips: list[Clip]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_labels(Path(folder) / "labels.csv", clips)
        labels = read_labels(Path(folder) / "labels.csv")
    read = {clip.audio_file: clip for clip in labels.clips}
    # Names that are one path, such as `a` and `./a`, are repeats; every other clip comes back as it was.
    for row, written in enumerate(clips, 1):
        if written.audio_file in read and read[written.audio_file].row == row:
            assert read[written.audio_file] == Clip(**{**vars(written), "row": row})
    assert len(labels.clips) + len(labels.faults) == len(clips)
    assert all("same file" in fault.reason or "conflict" in fault.reason for fault in labels.faults)


def test_clips_without_scores_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 2 clips have no score \(a\)"):
        write_labels(tmp_path / "labels.csv", [Clip("a"), Clip("b", 80.0)])
    assert not (tmp_path / "labels.csv").exists()
