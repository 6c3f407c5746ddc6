from pathlib import Path

import openpyxl
import pytest

from audioscore.data.clips import Clip
from audioscore.data.delivery.gather import read_delivery
from audioscore.errors import DataError

SEED = Path(__file__).with_name("seed_index.json")  # the example of the specification, unchanged


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_keeps_repeated_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "new.csv", "录音链接,标记分数,备注\na.wav,80,x\na.wav,90,\n,70,\n")
    delivery = read_delivery(path, source="ktv")
    assert [(clip.audio_file, clip.score, clip.source) for clip in delivery.clips] == [
        ("a.wav", 80.0, "ktv"),
        ("a.wav", 90.0, "ktv"),
    ]
    assert delivery.columns == {"audio_file": "录音链接", "score": "标记分数"}
    assert delivery.unknown_columns == ("备注",)
    assert [(row.row, row.audio_file) for row in delivery.row_errors] == [(3, "")]


def test_the_index_of_the_specification_is_read() -> None:
    delivery = read_delivery(SEED)
    folder = "/data/nfs/audioscore/data/sort/data/audio"
    assert delivery.clips == []
    assert [[clip.audio_file for clip in group] for group in delivery.groups] == [
        [f"{folder}/20732755_final.m4a", f"{folder}/463674_250811122315010877.m4a"]
    ]


def test_an_index_with_scores_is_clips_and_without_is_groups(tmp_path: Path) -> None:
    path = write(
        tmp_path / "train.json",
        '[[{"audio_file": "a", "score": 90,}, {"audio_file": "b", "score": 80}], [{"audio_file": "c"}, '
        '{"audio_file": "d\\n"}, {"audio_file": "e", "source": "acapella"}], []]',
    )
    delivery = read_delivery(path, source="ktv")
    assert delivery.clips == [Clip("a", 90.0, source="ktv", row=1), Clip("b", 80.0, source="ktv", row=2)]
    assert delivery.groups == [[Clip("c", source="ktv", row=3), Clip("e", source="acapella", row=5)]]
    assert [(row.row, row.audio_file) for row in delivery.row_errors] == [(4, "'d\\n'")]


def test_an_index_in_the_wrong_order_is_refused_or_sorted(tmp_path: Path) -> None:
    path = write(tmp_path / "train.json", '[[{"audio_file": "a", "score": 70}, {"audio_file": "b", "score": 80}]]')
    with pytest.raises(DataError, match=r"a .*\b70\b.*\b1\b.*\bb .*\b80\b.*\b2\b"):
        read_delivery(path)
    assert [clip.audio_file for clip in read_delivery(path, resort=True).clips] == ["b", "a"]


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("empty.json", "[]", r"empty\.json"),
        ("empty.csv", "audio_file,score\n", r"empty\.csv"),
        ("notes.md", "a", r"notes\.md.*\.csv, \.tsv, \.xlsx, \.jsonl or \.json"),
        ("gone.csv", None, r"gone\.csv.*\(\.csv, .*\).*\(\.json\)"),
        ("gone.json", None, r"gone\.json"),
    ],
)
def test_empty_unreadable_and_missing_files_are_refused(
    tmp_path: Path, name: str, text: str | None, names: str
) -> None:
    if text is not None:
        write(tmp_path / name, text)
    with pytest.raises(DataError, match=names):
        read_delivery(tmp_path / name)


def test_hidden_rows_are_read_if_they_are_included(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    for row in (["录音", "分数"], ["a.m4a", 80], ["b.m4a", 90]):
        sheet.append(row)
    sheet.row_dimensions[3].hidden = True
    book.save(tmp_path / "new.xlsx")
    delivery = read_delivery(tmp_path / "new.xlsx")
    assert ([clip.audio_file for clip in delivery.clips], len(delivery.notes)) == (["a.m4a"], 1)
    assert delivery.locations == {1: "sheet Sheet, row 2"}
    included = read_delivery(tmp_path / "new.xlsx", include_hidden=True)
    assert ([clip.audio_file for clip in included.clips], included.notes) == (["a.m4a", "b.m4a"], ())
