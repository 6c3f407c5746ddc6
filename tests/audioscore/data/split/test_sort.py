import json
import logging
import random
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from audioscore.config import SplitSection
from audioscore.data.clips import Clip
from audioscore.data.index import read_index, write_index
from audioscore.data.split.assign import assign_splits, read_splits
from audioscore.data.split.sort import (
    check_indexes,
    index_notes,
    read_split,
    read_unscored_groups,
    sort_clips,
    sort_folder,
    sort_index_file,
    write_sorted,
)
from audioscore.errors import DataError
from audioscore.files import write_json


def test_clips_are_sorted_high_to_low_from_any_order() -> None:
    names = [("d", 90.0, None), ("b", 80.0, None), ("c", 80.0, None), ("z", 80.0, "0"), ("a", 80.0, "1")]
    expected = [Clip(name, score, sha256=sha256) for name, score, sha256 in names]
    for seed in range(5):
        assert sort_clips(random.Random(seed).sample(expected, len(expected))) == expected
    with pytest.raises(DataError, match=r"1 of 2 .*\(a\)"):
        sort_clips([Clip("a"), Clip("b", 1.0)])


def test_a_clip_without_a_split_prevents_writing(tmp_path: Path) -> None:
    clips = [Clip(f"{number}.m4a", 80.0, f"s{number}") for number in range(5)]
    splits = assign_splits(clips, val=0.2, test=0.2, seed=0)
    with pytest.raises(DataError, match=r"1 of 6 .*\(new\.m4a\)"):
        write_sorted(tmp_path, [*clips, Clip("new.m4a", 1.0)], splits)
    assert list(tmp_path.iterdir()) == []


SECTION = SplitSection(val=0.2, test=0.2, seed=3)


def validated(folder: Path, clips: list[Clip]) -> Path:
    """A folder with the output of the gate."""
    write_json(folder / "clips.json", [asdict(clip) for clip in clips])
    return folder


def clip_number(n: int) -> Clip:
    return Clip(f"{n}.m4a", 50.0 + n, f"s{n % 10}", f"song{n % 3}", sha256=str(n), raters=(1.0, 2.0))


def forty() -> list[Clip]:
    return [clip_number(number) for number in range(40)]


def test_a_folder_is_sorted_and_split_and_a_second_sort_writes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate, out = validated(tmp_path / "gate", forty()), tmp_path / "out"
    with caplog.at_level(logging.WARNING, "audioscore.data.split.sort"):
        splits = sort_folder(tmp_path, gate, out, SECTION)
    new, *others = [record.message for record in caplog.records]
    assert "`audioscore data sort`" in new
    assert others == list(splits.report.warnings)
    read = {split: read_split(out, split) for split in ("train", "val", "test")}
    assert {clip.audio_file: split for split, part in read.items() for clip in part} == splits.of
    assert sorted((clip for part in read.values() for clip in part), key=lambda clip: clip.score or 0) == forty()
    for part in read.values():
        assert [clip.score for clip in part] == sorted((clip.score for clip in part), reverse=True)
    assert json.loads((out / "split_report.json").read_text()) == splits.report.to_json()
    assert read_splits(out / "splits.json") == (3, splits.groups, {})
    sort_folder(tmp_path, gate, tmp_path, SECTION)
    files = [tmp_path / "splits.json", *(tmp_path / "index").iterdir()]
    before = [(path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in files]
    sort_folder(tmp_path, gate, tmp_path, SECTION)
    assert [(path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in files] == before
    assert [len(read_index(path)) for path in files[1:]] == [1, 1, 1]


def test_a_previous_singer_keeps_the_split(tmp_path: Path) -> None:
    first = sort_folder(tmp_path, validated(tmp_path / "a", forty()), tmp_path, SECTION)
    new = [replace(clip_number(number), singer_id=f"new{number % 5}") for number in range(40, 60)]
    more = validated(tmp_path / "b", [*forty(), *new])
    second = sort_folder(tmp_path, more, tmp_path / "out", SplitSection(val=0.2, test=0.2, seed=99))
    assert {name: second.of[name] for name in first.of} == first.of
    assert len(second.of) == 60


def names(groups: list[list[Clip]]) -> list[list[str]]:
    return [[clip.audio_file for clip in group] for group in groups]


def test_unscored_groups_are_read_separately(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "audioscore.data.split.sort")
    clips = forty()
    # Ten singers with two clips each, best first; and a group with a single clip in one split.
    whole = [replace(clip_number(number), score=None, raters=()) for number in range(100, 120)]
    gate = validated(tmp_path / "gate", clips)
    first = sort_folder(tmp_path, gate, tmp_path, SECTION)
    train, test = (next(clip for clip in clips if first.of[clip.audio_file] == split) for split in ("train", "test"))
    singers = {"x": train.singer_id, "y": test.singer_id, "z": train.singer_id}
    mixed = [Clip(f"{name}.m4a", None, singer, sha256=name) for name, singer in singers.items()]
    write_index(gate / "order.json", [whole, mixed])
    result = sort_folder(tmp_path, gate, tmp_path, SECTION)
    for split in ("train", "val", "test"):
        expected = [[clip.audio_file for clip in whole if result.of[clip.audio_file] == split]]
        assert names(read_unscored_groups(tmp_path, split)) == expected + (
            [["x.m4a", "z.m4a"]] if split == "train" else []
        )
        scored = {name for name in first.of if first.of[name] == split}
        assert {clip.audio_file for clip in read_split(tmp_path, split)} == scored
    assert sum(count.unscored for count in result.report.splits.values()) == 23
    assert result.report.warnings[-1] in [record.message for record in caplog.records]
    assert re.findall(r"\d+", result.report.warnings[-1]) == ["22", "2", "1"]


def test_near_duplicates_are_in_one_split_unless_previous_splits_differ(tmp_path: Path) -> None:
    gate = validated(tmp_path / "gate", forty())
    write_json(gate / "near_duplicates.json", [["0.m4a", "1.m4a"]])
    for seed in range(4):
        of = sort_folder(tmp_path, gate, tmp_path / "out", SplitSection(val=0.2, test=0.2, seed=seed)).of
        assert of["0.m4a"] == of["1.m4a"]
    write_json(tmp_path / "splits.json", {"seed": 0, "groups": {"singer:s0": "train", "singer:s1": "test"}})
    splits = sort_folder(tmp_path, gate, tmp_path / "out", SECTION)
    (out,) = splits.report.left_out
    assert (out.audio_file, out.split) == ("0.m4a", "train")
    assert re.search(r"1\.m4a.*\btest\b", out.reason)
    assert "0.m4a" not in {clip.audio_file for clip in read_split(tmp_path / "out", "train")}
    report = json.loads((tmp_path / "out" / "split_report.json").read_text())
    assert report["left_out"] == [asdict(out)]
    assert report["splits"]["test"]["wanted"] == 0.2


def test_clips_without_singer_are_grouped_by_voice_if_needed(tmp_path: Path) -> None:
    calls: list[int] = []

    def embed(clips: Sequence[Clip]) -> NDArray[np.float64]:
        calls.append(len(clips))
        return np.eye(10)[[int(clip.audio_file.removesuffix(".m4a")) % 10 for clip in clips]]

    assert sort_folder(tmp_path, validated(tmp_path / "a", forty()), tmp_path / "out", SECTION, embed).of
    gate = validated(tmp_path / "b", [replace(clip, singer_id=None) for clip in forty()])
    off = sort_folder(tmp_path, gate, tmp_path / "out", SECTION.model_copy(update={"pseudo_singers": False}), embed)
    assert re.search(r"40 of 40\b.*singer", " ".join(off.report.warnings))
    assert calls == []
    clips = [replace(clip, singer_id=None) if clip.score and clip.score >= 70 else clip for clip in forty()]
    splits = sort_folder(tmp_path, validated(tmp_path / "gate", clips), tmp_path, SECTION, embed)
    assert calls == [40]
    for number in range(10):
        assert len({splits.of[f"{number + ten}.m4a"] for ten in (0, 10, 20, 30)}) == 1
    assert re.search(r"20 of 40\b.*\b10 voices", " ".join(splits.report.warnings))
    report = splits.report.to_json()
    assert report["pseudo_singers"] == {f"{number}.m4a": f"s{number % 10}" for number in range(20, 40)}
    assert all(clip.singer_id is None for clip in read_split(tmp_path, "train") if float(clip.score or 0) >= 70)


UNSORTED = [
    [{"audio_file": "a", "score": 60, "x": 1}, {"audio_file": "b", "score": 70.5}, {"audio_file": "c", "score": 65}]
]
INVERSION = r"train\.json, group 1: a \(score 60, position 1\).* b \(score 70\.5, position 2\).*--resort"


def test_an_unsorted_index_prevents_sorting_and_is_corrected_in_place(tmp_path: Path) -> None:
    data, gate = tmp_path / "data", validated(tmp_path / "gate", forty())
    assert check_indexes(data) == []
    path, val = data / "index" / "train.json", data / "index" / "val.json"
    write_json(path, UNSORTED)
    for target in (data, tmp_path / "out"):
        with pytest.raises(DataError, match=INVERSION):
            sort_folder(data, gate, target, SECTION)
    assert json.loads(path.read_text()) == UNSORTED
    assert [item.name for item in data.iterdir()] == ["index"]
    assert not (tmp_path / "out").exists()
    write_json(val, [[{"audio_file": "x"}, {"audio_file": "y"}]])
    with pytest.raises(DataError, match=INVERSION):
        check_indexes(data)
    assert check_indexes(data, resort=True) == check_indexes(data) == [path, val]
    assert json.loads(path.read_text()) == [[UNSORTED[0][1], UNSORTED[0][2], UNSORTED[0][0]]]
    write_json(path, UNSORTED)
    sort_folder(data, gate, data, SECTION, resort=True)
    assert len(read_split(data, "train")) > 20


def test_an_index_is_corrected_without_loss(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    text = '\ufeff[[{"audio_file": "a", "score": 1, "mood": "sad"}, {"audio_file": "b", "score": 2},],]'
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"scores\.json, group 1: a \(score 1, position 1\)"):
        sort_index_file(path)
    assert path.read_text(encoding="utf-8") == text
    assert sort_index_file(path, resort=True)
    assert json.loads(path.read_text(encoding="utf-8")) == [
        [{"audio_file": "b", "score": 2}, {"audio_file": "a", "score": 1, "mood": "sad"}]
    ]
    stamp = path.stat().st_mtime_ns
    assert not sort_index_file(path, resort=True)
    assert path.stat().st_mtime_ns == stamp
    path.write_text('[[{"audio_file": "a", "score": 1, "weight": NaN}, {"audio_file": "b", "score": 2}]]')
    with pytest.raises(DataError, match=r"scores\.json: .*\bJSON\b"):
        sort_index_file(path, resort=True)
    assert "NaN" in path.read_text()


def test_a_stated_split_that_is_not_the_assigned_one_is_a_warning(tmp_path: Path) -> None:
    gate = validated(tmp_path / "gate", forty())
    plain = sort_folder(tmp_path, gate, tmp_path / "out", SECTION)
    write_json(gate / "stated_splits.json", dict.fromkeys(plain.of, "test"))
    stated = sort_folder(tmp_path, gate, tmp_path / "out", SECTION)
    other = sum(split != "test" for split in plain.of.values())
    [note] = [warning for warning in stated.report.warnings if warning not in plain.report.warnings]
    assert stated.of == plain.of
    assert f"{other} of 40" in note


def test_singers_and_recordings_in_several_indexes_are_noted(tmp_path: Path) -> None:
    train, test = tmp_path / "train.json", tmp_path / "test.json"
    write_index(train, [[Clip("a", 90.0, "S1"), Clip("b", 80.0, "S2"), Clip("c", 70.0)]])
    write_index(test, [[Clip("./a", 90.0, "s1\u200b"), Clip("d", 80.0, "S3")], []])
    empty, recordings, singers = sorted(
        index_notes([train, test]), key=lambda note: ("singers" in note, "of them" in note)
    )
    assert re.search(r"test\.json: 1 of 2 ", empty)
    assert re.search(r"train\.json, test\.json: 1 .*\(a\)", recordings)
    assert re.search(r"train\.json, test\.json: 1 .*\(s1\)", singers)
    assert index_notes([train]) == []
