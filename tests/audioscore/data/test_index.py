import json
import logging
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioscore.data.clips import Clip
from audioscore.data.index import read_index, read_with_notes, without_trailing_commas, write_index
from audioscore.errors import DataError


def write(folder: Path, text: str) -> Path:
    path = folder / "train.json"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_an_index_without_scores_keeps_its_order_and_may_have_trailing_commas(tmp_path: Path, mark: str) -> None:
    names = ["/data/audio/463674_250811122315010877.m4a", "a,]", 'b",}', "c\\", "d\\\\,]"]
    text = "[[" + "".join('{"audio_file": ' + json.dumps(name) + ",\n}," for name in names) + "]\n,]"
    (group,) = read_index(write(tmp_path, mark + text))
    assert [clip.audio_file for clip in group] == names
    assert [clip.score for clip in group] == [None] * 5


@settings(max_examples=25, deadline=None)
@given(st.recursive(st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_valid_json_does_not_change(value: object) -> None:
    assert without_trailing_commas(json.dumps(value)) == json.dumps(value)


def test_groups_and_a_bare_list(tmp_path: Path) -> None:
    several = read_index(write(tmp_path, '[[{"audio_file": "a"}], [{"audio_file": "b"}, {"audio_file": "c"}]]'))
    assert [[clip.audio_file for clip in group] for group in several] == [["a"], ["b", "c"]]
    bare = read_index(write(tmp_path, '[{"audio_file": "a", "score": 90}, {"audio_file": "b", "score": 80}]'))
    assert [[clip.score for clip in group] for group in bare] == [[90.0, 80.0]]
    assert read_index(write(tmp_path, "[]")) == []
    assert read_index(write(tmp_path, "[[]]")) == [[]]


def test_the_first_inversion_is_reported_and_resort_corrects_it(tmp_path: Path) -> None:
    scores = [("a", 90), ("b", 80), ("c", 85.5), ("d", 80), ("e", 99)]
    path = write(tmp_path, json.dumps([[{"audio_file": name, "score": score} for name, score in scores]]))
    with pytest.raises(DataError) as caught:
        read_index(path)
    expected = r"b \(score 80, position 2\).* c \(score 85\.5, position 3\).*--resort"
    assert re.search(expected, str(caught.value))
    (group,) = read_index(path, resort=True)
    assert [clip.audio_file for clip in group] == ["e", "a", "c", "b", "d"]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("[[{]]", ["train.json", "JSON"]),
        ('{"a": 1}', ["train.json", "list"]),
        ('[[], {"audio_file": "a"}]', ["train.json", "list"]),
        ('[[{"file": "a"}]]', ["group 1, position 1", "audio_file"]),
        ('[["a"]]', ["group 1, position 1", "audio_file"]),
        *(
            (f'[[{{"audio_file": "a", "{key}": {value}}}]]', ["position 1, a", f"{key} is {value}", kind])
            for key, value, kind in (
                ("score", '"90"', "0-100"),
                ("score", "190", "0-100"),
                ("score", "NaN", "0-100"),
                ("score", "true", ""),
                ("seconds", "-Infinity", ""),
                ("raters", "90", "list"),
                ("bytes", "1.5", "whole"),
                ("artist", "[]", "text"),
                ("seconds", '"x"', ""),
            )
        ),
        *(
            (f'[[{{"audio_file": "a", "{key}": {value}}}]]', ["position 1, a", f"{key} is ", "999", kind])
            for key, value, kind in (
                ("score", "9" * 400, "0-100"),
                ("score", "-" + "9" * 400, "0-100"),
                ("raters", f"[{'9' * 400}]", "0-100"),
                ("seconds", "9" * 400, "number"),
            )
        ),
        (
            '[[{"audio_file": "a", "score": 90}, {"audio_file": "b"}, {"audio_file": "c", "score": null}]]',
            ["group 1", "2 of 3", "(b, c)"],
        ),
    ],
)
def test_other_json_is_refused(tmp_path: Path, entry: str, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        read_index(write(tmp_path, entry), resort=True)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_missing_index_is_refused_and_other_encodings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    with pytest.raises(DataError, match=r"train\.json"):
        read_index(path)
    path.write_bytes('[[{"audio_file": "录音"}]]'.encode("gbk"))
    assert read_index(path) == [[Clip("录音")]]
    path.write_bytes(b"\xff[[]]")
    with pytest.raises(DataError, match=r"UTF-8.*GB18030"):
        read_index(path)


def test_equal_scores_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_text(json.dumps([[{"audio_file": f"{number}.wav", "score": 80} for number in range(3)]]))
    assert len(read_with_notes(path)[1]) == 1


def test_unknown_keys_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "audioscore.data.index"):
        read_index(write(tmp_path, '[[{"audio_file": "a", "singer_id": 7, "socre": 1}]]'))
    [message] = caplog.messages
    assert re.search(r"train\.json.*\bsocre\b", message)
    assert "singer_id" not in message


def test_a_written_index_is_valid_json_and_reads_back(tmp_path: Path) -> None:
    full = Clip(
        "录音.m4a", 90.5, "001", "s", "ktv", "x", (90.0, None, 91.0), 3, "s3://b/k", "5fd2", 4.25, -20.5, 1234, 31.5
    )
    groups = [[full, Clip("b", 90.5), Clip("c", 0.0)], [Clip("d"), Clip("e", singer_id="2")], []]
    path = tmp_path / "index" / "train.json"
    write_index(path, groups)
    assert read_index(path) == groups
    assert json.loads(path.read_text(encoding="utf-8"))[0][1] == {"audio_file": "b", "score": 90.5}


def test_an_unreadable_index_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a \(score 1, position 1\).* b \(score 2, position 2\)"):
        write_index(tmp_path / "train.json", [[Clip("a", 1.0), Clip("b", 2.0)]])
    with pytest.raises(DataError, match=r"1 of 2\b"):
        write_index(tmp_path / "train.json", [[Clip("a", 1.0), Clip("b")]])
    assert list(tmp_path.iterdir()) == []


def test_ids_have_one_spelling_and_are_text(tmp_path: Path) -> None:
    singers = ['"S01"', '"s01\\u200b"', "7", "7.0", '"007"']
    entries = ", ".join(f'{{"audio_file": "{number}", "singer_id": {one}}}' for number, one in enumerate(singers))
    (group,), notes = read_with_notes(write(tmp_path, f"[[{entries}]]"))
    assert [clip.singer_id for clip in group] == ["S01", "S01", "7", "7", "7"]
    [note] = notes
    assert re.search(r"^train\.json: singer_id: 2 of 2 ", note)
    for one in ('"4.40106E+17"', "4.4e99", "7.5", "NaN"):
        with pytest.raises(DataError, match=r"position 1, a: .*singer_id"):
            read_index(write(tmp_path, f'[[{{"audio_file": "a", "singer_id": {one}}}]]'))


def names_as_index(*groups: str) -> str:
    """An index with a group for each text; each letter is a recording, a digit behind it its score in tens."""
    clips = [re.findall(r"([a-z])(\d?)", group) for group in groups]
    named = [
        [{"audio_file": name} | ({"score": int(tens) * 10} if tens else {}) for name, tens in group] for group in clips
    ]
    return json.dumps(named)


@pytest.mark.parametrize(
    ("groups", "figures"),
    [
        (["ab", "ba"], [r"\b2 .*\(a, b\)", r"\b2 .*groups 1, 2 .*\(a, b\)"]),
        (["ab", "bc", "ca", "de"], [r"\b3 ", r"\b3 .*groups 1, 2, 3 .*\(a, b, c\)"]),
        (["a9b8", "b7a6"], [r"\b2 ", r"\b2 .*a: 90, 60, b: 80, 70", r"\b2 .*groups 1, 2\b"]),
        (["a9b9", "b9a9"], [r"\b2 of? ?.*\(a, b\)", r"\b4 .*\b90\b"]),
        (["a9b8c8", "c7b6"], [r"\b2 ", r"\b2 .*b: 80, 60, c: 80, 70"]),
        (["ab", "bc"], [r"\b1 .*\(b\)"]),
        (["aba"], [r"\b1 .*\(a\)", r"\b2 .*\(a, b\)"]),
        (["ab", "", "c", ""], [r"2 of 4 .*\b2, 4\b", r"1 of 4 .*\b3\b"]),
        (["ab", "cd"], []),
    ],
)
def test_groups_that_contradict_each_other_are_noted(tmp_path: Path, groups: list[str], figures: list[str]) -> None:
    read, notes = read_with_notes(write(tmp_path, names_as_index(*groups)))
    assert [len(group) for group in read] == [len(re.findall("[a-z]", group)) for group in groups]
    assert [bool(re.search(figure, note)) for figure, note in zip(figures, notes, strict=True)] == [True] * len(figures)


def test_names_of_one_file_are_one_recording_in_the_notes(tmp_path: Path) -> None:
    names = [["./a/x\u00e9", "b"], ["b", "a/xe\u0301"]]
    text = json.dumps([[{"audio_file": name} for name in group] for group in names])
    assert len(read_with_notes(write(tmp_path, text))[1]) == 2


def test_many_contradictions_are_one_short_sentence_each(tmp_path: Path) -> None:
    names = [f"recording-{number:05d}" for number in range(20_000)]
    text = json.dumps([[{"audio_file": name} for name in order] for order in (names, names[::-1])])
    notes = read_with_notes(write(tmp_path, text))[1]
    assert [len(note) < 300 for note in notes] == [True, True]
    assert all("20000" in note for note in notes)


def test_keys_that_contradict_the_file_are_noted(tmp_path: Path) -> None:
    entries = [
        {"audio_file": "a", "score": 90, "split": "train", "band": "90-95"},
        {"audio_file": "b", "score": 80, "split": "test", "band": "85-90"},
        {"audio_file": "c", "score": 70},
    ]
    split, band = read_with_notes(write(tmp_path, json.dumps([entries])))[1]
    assert re.search(r"train\.json: .*\bsplit\b.*\b1\b.*b: test", split)
    assert re.search(r"train\.json: .*\bband\b.*\b1\b.*b: 85-90, score 80", band)
