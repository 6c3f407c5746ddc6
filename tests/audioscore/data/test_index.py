import json
import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioscore.data.clips import Clip
from audioscore.data.index import read_index, without_trailing_commas, write_index
from audioscore.errors import DataError

SEED_EXAMPLE = """[
    [
        {
            "audio_file": "/data/audio/20732755_final.m4a",
        },
        {
            "audio_file": "/data/audio/463674_250811122315010877.m4a",
        }
    ]
]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "train.json"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_predecessors_index_is_trusted_in_its_order(tmp_path: Path, mark: str) -> None:
    (group,) = read_index(write(tmp_path, mark + SEED_EXAMPLE))
    assert [clip.audio_file[-8:] for clip in group] == ["inal.m4a", "0877.m4a"]
    assert [clip.score for clip in group] == [None, None]


def test_commas_inside_strings_stay(tmp_path: Path) -> None:
    names = ["a,]", 'b",}', "c\\", "d\\\\,]"]
    text = "[[" + "".join('{"audio_file": ' + json.dumps(name) + ",\n}," for name in names) + "]\n,]"
    (group,) = read_index(write(tmp_path, text))
    assert [clip.audio_file for clip in group] == names


@settings(max_examples=25, deadline=None)
@given(st.recursive(st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_valid_json_is_left_alone(value: object) -> None:
    assert without_trailing_commas(json.dumps(value)) == json.dumps(value)


def test_groups_and_a_bare_list(tmp_path: Path) -> None:
    several = read_index(write(tmp_path, '[[{"audio_file": "a"}], [{"audio_file": "b"}, {"audio_file": "c"}]]'))
    assert [[clip.audio_file for clip in group] for group in several] == [["a"], ["b", "c"]]
    bare = read_index(write(tmp_path, '[{"audio_file": "a", "score": 90}, {"audio_file": "b", "score": 80}]'))
    assert [[clip.score for clip in group] for group in bare] == [[90.0, 80.0]]
    assert read_index(write(tmp_path, "[]")) == []
    assert read_index(write(tmp_path, "[[]]")) == [[]]


def test_the_first_inversion_is_named_and_resort_mends_it(tmp_path: Path) -> None:
    scores = [("a", 90), ("b", 80), ("c", 85.5), ("d", 80), ("e", 99)]
    path = write(tmp_path, json.dumps([[{"audio_file": name, "score": score} for name, score in scores]]))
    with pytest.raises(DataError) as caught:
        read_index(path)
    message = str(caught.value)
    assert "b (score 80, position 2) stands above c (score 85.5, position 3)" in message
    assert "--resort" in message
    (group,) = read_index(path, resort=True)
    assert [clip.audio_file for clip in group] == ["e", "a", "c", "b", "d"]


def test_a_group_with_and_without_scores_is_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path, '[[{"audio_file": "a", "score": 90}, {"audio_file": "b"}, {"audio_file": "c", "score": null}]]'
    )
    with pytest.raises(DataError, match=r"group 1: 2 of 3 clips have no score \(b, c\)"):
        read_index(path, resort=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[{]]", r"train\.json is not JSON"),
        ('{"a": 1}', r"train\.json is not a list of groups"),
        ('[[], {"audio_file": "a"}]', r"is not a list of groups"),
        ('[[{"file": "a"}]]', r"group 1, position 1: an entry without audio_file"),
        ('[["a"]]', r"group 1, position 1: an entry without audio_file"),
        ('[[{"audio_file": "a", "score": "90"}]]', r'position 1, a: score is "90"\. Give a number in 0-100'),
        ('[[{"audio_file": "a", "score": 190}]]', r"score is 190"),
        ('[[{"audio_file": "a", "score": NaN}]]', r"score is NaN"),
        ('[[{"audio_file": "a", "score": true}]]', r"score is true"),
        ('[[{"audio_file": "a", "raters": 90}]]', r"raters is 90\. Give a list of numbers"),
        ('[[{"audio_file": "a", "bytes": 1.5}]]', r"bytes is 1\.5\. Give a whole number"),
        ('[[{"audio_file": "a", "artist": []}]]', r"artist is \[\]\. Give text"),
        ('[[{"audio_file": "a", "seconds": "x"}]]', r'seconds is "x"\. Give a number\.'),
    ],
)
def test_what_is_no_index_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_index(write(tmp_path, text))


def test_a_missing_index_or_another_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such index"):
        read_index(tmp_path / "train.json")
    (tmp_path / "train.json").write_bytes('[[{"audio_file": "录音"}]]'.encode("gbk"))
    assert read_index(tmp_path / "train.json") == [[Clip("录音")]]
    (tmp_path / "train.json").write_bytes(b"\xff[[]]")
    with pytest.raises(DataError, match="neither UTF-8 nor GB18030"):
        read_index(tmp_path / "train.json")


def test_foreign_keys_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read_index(write(tmp_path, '[[{"audio_file": "a", "singer_id": 7, "socre": 1}]]'))
    assert caplog.messages == ["train.json: keys left out: socre"]


def test_what_is_written_is_valid_json_and_read_back(tmp_path: Path) -> None:
    full = Clip(
        "录音.m4a", 90.5, "001", "s", "ktv", "x", (90.0, None, 91.0), 3, "s3://b/k", "5fd2", 4.25, -20.5, 1234, 31.5
    )
    groups = [[full, Clip("b", 90.5), Clip("c", 0.0)], [Clip("d"), Clip("e", singer_id="2")], []]
    path = tmp_path / "index" / "train.json"
    write_index(path, groups)
    assert read_index(path) == groups
    assert json.loads(path.read_text(encoding="utf-8"))[0][1] == {"audio_file": "b", "score": 90.5}


def test_an_index_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a \(score 1, position 1\) stands above b \(score 2, position 2\)"):
        write_index(tmp_path / "train.json", [[Clip("a", 1.0), Clip("b", 2.0)]])
    with pytest.raises(DataError, match="1 of 2 clips have no score"):
        write_index(tmp_path / "train.json", [[Clip("a", 1.0), Clip("b")]])
    assert list(tmp_path.iterdir()) == []
