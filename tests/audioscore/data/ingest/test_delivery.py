from pathlib import Path

import pytest

from audioscore.data.clips import Clip
from audioscore.data.ingest.delivery import read_delivery
from audioscore.data.labels import Fault
from audioscore.errors import DataError

SEED = Path(__file__).with_name("seed_index.json")  # the specification's example, byte for byte


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_keeps_its_repeats(tmp_path: Path) -> None:
    path = write(tmp_path / "new.csv", "录音链接,标记分数,备注\na.wav,80,x\na.wav,90,\n,70,\n")
    delivery = read_delivery(path, source="ktv")
    assert [(clip.audio_file, clip.score, clip.source) for clip in delivery.clips] == [
        ("a.wav", 80.0, "ktv"),
        ("a.wav", 90.0, "ktv"),
    ]
    assert delivery.columns == {"audio_file": "录音链接", "score": "标记分数"}
    assert delivery.left_out == ("备注",)
    assert delivery.faults == [Fault(3, "", "no file name")]


def test_the_specifications_index_is_read_byte_for_byte() -> None:
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
    assert delivery.faults == [Fault(4, "'d\\n'", "the name holds a control character, such as a line end")]


def test_an_index_in_the_wrong_order_is_refused_unless_it_is_to_be_sorted(tmp_path: Path) -> None:
    path = write(tmp_path / "train.json", '[[{"audio_file": "a", "score": 70}, {"audio_file": "b", "score": 80}]]')
    with pytest.raises(DataError, match=r"a \(score 70, position 1\) stands above b \(score 80, position 2\)"):
        read_delivery(path)
    assert [clip.audio_file for clip in read_delivery(path, resort=True).clips] == ["b", "a"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("empty.json", "[]", r"empty\.json names no recording"),
        ("empty.csv", "audio_file,score\n", r"empty\.csv names no recording"),
        ("notes.txt", "a", r"notes\.txt: \.txt is not read\. Give \.csv, \.tsv, \.xlsx, \.jsonl or \.json"),
    ],
)
def test_what_is_no_delivery_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_delivery(write(tmp_path / name, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.csv: no such file\. Give a table \(\.csv, .*\) or an index \(\.json\)"):
        read_delivery(tmp_path / "gone.csv")
    with pytest.raises(DataError, match=r"gone\.json: no such file"):
        read_delivery(tmp_path / "gone.json")
