import json
import logging
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from audioscore.config import SMALL, SplitSection, load_config
from audioscore.data.clips import Clip
from audioscore.data.index import read_index, write_index
from audioscore.data.sort import (
    check_indexes,
    read_relative,
    read_split,
    sort_clips,
    sort_folder,
    sort_index_file,
    write_sorted,
)
from audioscore.data.split import assign_splits, read_splits
from audioscore.errors import DataError
from audioscore.files import write_json


def test_clips_run_from_high_to_low_whatever_order_they_came_in() -> None:
    expected = [
        Clip("d", 90.0),
        Clip("b", 80.0),
        Clip("c", 80.0),
        Clip("z", 80.0, sha256="0"),
        Clip("a", 80.0, sha256="1"),
    ]
    for seed in range(5):
        shuffled = random.Random(seed).sample(expected, len(expected))
        assert sort_clips(shuffled) == expected


def test_clips_without_scores_have_no_place() -> None:
    with pytest.raises(DataError, match=r"1 of 2 clips have no score and cannot be sorted \(a\)"):
        sort_clips([Clip("a"), Clip("b", 1.0)])


def test_three_indexes_and_the_splits_are_written(tmp_path: Path) -> None:
    clips = [Clip(f"{number}.m4a", float(number), f"s{number % 10}", sha256=str(number)) for number in range(40)]
    splits = assign_splits(clips, val=0.2, test=0.2, seed=3)
    write_sorted(tmp_path, clips, splits)
    read = {name: read_index(tmp_path / "index" / f"{name}.json") for name in ("train", "val", "test")}
    assert all(len(groups) == 1 for groups in read.values())
    assert {clip.audio_file: name for name, (group,) in read.items() for clip in group} == splits.of
    assert sorted((clip for (group,) in read.values() for clip in group), key=lambda clip: clip.score or 0) == clips
    assert read_splits(tmp_path / "splits.json") == (3, splits.groups)
    assert json.loads((tmp_path / "splits.json").read_text())["seed"] == 3


def test_a_clip_without_a_split_stops_the_writing(tmp_path: Path) -> None:
    clips = [Clip(f"{number}.m4a", 80.0, f"s{number}") for number in range(5)]
    splits = assign_splits(clips, val=0.2, test=0.2, seed=0)
    with pytest.raises(DataError, match=r"1 of 6 clips have no split \(new\.m4a\)"):
        write_sorted(tmp_path, [*clips, Clip("new.m4a", 1.0)], splits)
    assert list(tmp_path.iterdir()) == []


def validated(folder: Path, clips: list[Clip]) -> Path:
    """What the gate leaves behind."""
    write_json(folder / "clips.json", [asdict(clip) for clip in clips])
    return folder


def sung(number: int) -> Clip:
    return Clip(
        f"{number}.m4a", 50.0 + number, f"s{number % 10}", f"song{number % 3}", sha256=str(number), raters=(1.0, 2.0)
    )


def test_a_folder_is_sorted_and_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clips = [sung(number) for number in range(40)]
    section = SplitSection(val=0.2, test=0.2, seed=3)
    with caplog.at_level(logging.WARNING, "audioscore.data.sort"):
        splits = sort_folder(tmp_path, validated(tmp_path / "gate", clips), tmp_path / "out", section)
    new, *others = [record.message for record in caplog.records]
    assert new == "splits: new, and not remembered for later data; `audioscore data sort` remembers them"
    assert others == list(splits.report.warnings)
    read = [read_split(tmp_path / "out", split) for split in ("train", "val", "test")]
    assert sorted((clip for part in read for clip in part), key=lambda clip: clip.score or 0) == clips
    for part in read:
        assert [clip.score for clip in part] == sorted((clip.score for clip in part), reverse=True)
    assert json.loads((tmp_path / "out" / "split_report.json").read_text()) == splits.report.to_json()


def test_a_remembered_singer_keeps_the_split(tmp_path: Path) -> None:
    section = SplitSection(val=0.2, test=0.2, seed=3)
    first = sort_folder(tmp_path, validated(tmp_path / "a", [sung(n) for n in range(40)]), tmp_path, section)
    new = [replace(sung(number), singer_id=f"new{number % 5}") for number in range(40, 60)]
    more = validated(tmp_path / "b", [*(sung(n) for n in range(40)), *new])
    second = sort_folder(tmp_path, more, tmp_path / "out", SplitSection(val=0.2, test=0.2, seed=99))
    assert {name: second.of[name] for name in first.of} == first.of
    assert len(second.of) == 60


def names(groups: list[list[Clip]]) -> list[list[str]]:
    return [[clip.audio_file for clip in group] for group in groups]


def test_scored_and_unscored_clips_are_read_apart(tmp_path: Path) -> None:
    write_index(tmp_path / "index" / "val.json", [[Clip("b", 80.0)], [Clip("a"), Clip("c")], []])
    assert [clip.audio_file for clip in read_split(tmp_path, "val")] == ["b"]
    assert names(read_relative(tmp_path, "val")) == [["a", "c"]]


SECTION = SplitSection(val=0.2, test=0.2, seed=3)


def test_groups_with_order_only_follow_the_main_list(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clips = [sung(number) for number in range(40)]
    # Ten singers with two clips each, best first; and a group of which one part is a single clip.
    whole = [replace(sung(number), score=None, raters=()) for number in range(100, 120)]
    gate = validated(tmp_path / "gate", clips)
    first = sort_folder(tmp_path, gate, tmp_path, SECTION)
    train, test = (next(clip for clip in clips if first.of[clip.audio_file] == place) for place in ("train", "test"))
    mixed = [
        Clip("x.m4a", None, train.singer_id, sha256="x"),
        Clip("y.m4a", None, test.singer_id, sha256="y"),
        Clip("z.m4a", None, train.singer_id, sha256="z"),
    ]
    write_index(gate / "order.json", [whole, mixed])
    result = sort_folder(tmp_path, gate, tmp_path, SECTION)
    for split in ("train", "val", "test"):
        place = {clip.audio_file for clip in whole if result.of[clip.audio_file] == split}
        expected = [[clip.audio_file for clip in whole if clip.audio_file in place]]
        assert names(read_relative(tmp_path, split)) == expected + ([["x.m4a", "z.m4a"]] if split == "train" else [])
        assert {clip.audio_file for clip in read_split(tmp_path, split)} == {
            name for name in first.of if first.of[name] == split
        }
    assert sum(count.unscored for count in result.report.splits.values()) == 23
    assert result.report.warnings[-1] in [record.message for record in caplog.records]
    assert result.report.warnings[-1] == (
        "22 clips in groups (2) carry order but no scores: they are learned from, and no figure counts them. "
        "1 more are alone in their split, with nothing to compare, and left out."
    )


def test_near_duplicates_stay_together_and_give_way_to_what_is_remembered(tmp_path: Path) -> None:
    gate = validated(tmp_path / "gate", [sung(number) for number in range(40)])
    write_json(gate / "near_duplicates.json", [["0.m4a", "1.m4a"]])
    for seed in range(4):
        of = sort_folder(tmp_path, gate, tmp_path / "out", SplitSection(val=0.2, test=0.2, seed=seed)).of
        assert of["0.m4a"] == of["1.m4a"]
    write_json(tmp_path / "splits.json", {"seed": 0, "groups": {"singer:s0": "train", "singer:s1": "test"}})
    splits = sort_folder(tmp_path, gate, tmp_path / "out", SECTION)
    (out,) = splits.report.left_out
    assert out.describe() == "0.m4a left out of train: near-identical to 1.m4a in test"
    assert "0.m4a" not in {clip.audio_file for clip in read_split(tmp_path / "out", "train")}
    report = json.loads((tmp_path / "out" / "split_report.json").read_text())
    assert report["left_out"] == [
        {"audio_file": "0.m4a", "split": "train", "reason": "near-identical to 1.m4a in test"}
    ]
    assert report["splits"]["test"]["wanted"] == 0.2


def voice_of(clip: Clip) -> list[float]:
    return np.eye(10)[int(clip.audio_file.removesuffix(".m4a")) % 10].tolist()


def test_unknown_singers_are_heard(tmp_path: Path) -> None:
    clips = [replace(sung(number), singer_id=None if number >= 20 else f"s{number % 10}") for number in range(40)]
    gate = validated(tmp_path / "gate", clips)
    asked: list[int] = []

    def embed(heard: Sequence[Clip]) -> NDArray[np.float64]:
        asked.append(len(heard))
        return np.array([voice_of(clip) for clip in heard])

    splits = sort_folder(tmp_path, gate, tmp_path, SECTION, embed)
    assert asked == [40]
    for number in range(10):
        assert len({splits.of[f"{number + ten}.m4a"] for ten in (0, 10, 20, 30)}) == 1
    assert "20 of 40 clips have no singer: grouped into 10 voices" in " ".join(splits.report.warnings)
    report = splits.report.to_json()
    assert report["pseudo_singers"] == {f"{number}.m4a": f"s{number % 10}" for number in range(20, 40)}
    assert all(clip.singer_id is None for clip in read_split(tmp_path, "train") if float(clip.score or 0) >= 70)


def test_voices_are_not_asked_for_without_need(tmp_path: Path) -> None:
    def embed(heard: Sequence[Clip]) -> NDArray[np.float64]:
        raise AssertionError

    clips = [sung(number) for number in range(40)]
    assert sort_folder(tmp_path, validated(tmp_path / "a", clips), tmp_path / "out", SECTION, embed).of
    gate = validated(tmp_path / "b", [replace(clip, singer_id=None) for clip in clips])
    off = sort_folder(tmp_path, gate, tmp_path / "out", SECTION.model_copy(update={"pseudo_singers": False}), embed)
    assert "40 of 40 clips have no singer: two of them in different splits may share one" in " ".join(
        off.report.warnings
    )


def test_a_second_sort_writes_nothing(tmp_path: Path) -> None:
    gate = validated(tmp_path / "gate", [sung(number) for number in range(40)])
    sort_folder(tmp_path, gate, tmp_path, SECTION)
    files = [tmp_path / "splits.json", *(tmp_path / "index").iterdir()]
    before = [(path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in files]
    sort_folder(tmp_path, gate, tmp_path, SECTION)
    assert [(path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in files] == before
    assert len(json.loads((tmp_path / "index" / "train.json").read_bytes())) == 1


TAMPERED = [
    [
        {"audio_file": "a", "score": 60, "note": "mine"},
        {"audio_file": "b", "score": 70.5},
        {"audio_file": "c", "score": 65},
    ]
]
INVERSION = r"train\.json, group 1: a \(score 60, position 1\) stands above b \(score 70\.5, position 2\).*--resort"


def test_an_index_in_the_wrong_order_stops_the_sorting_before_anything_is_written(tmp_path: Path) -> None:
    gate = validated(tmp_path / "gate", [sung(number) for number in range(40)])
    path = tmp_path / "data" / "index" / "train.json"
    write_json(path, TAMPERED)
    for target in (tmp_path / "data", tmp_path / "out"):
        with pytest.raises(DataError, match=INVERSION):
            sort_folder(tmp_path / "data", gate, target, SECTION)
    assert json.loads(path.read_text()) == TAMPERED
    assert [item.name for item in (tmp_path / "data").iterdir()] == ["index"]
    assert not (tmp_path / "out").exists()
    sort_folder(tmp_path / "data", gate, tmp_path / "data", SECTION, resort=True)
    assert len(read_split(tmp_path / "data", "train")) > 20


def test_indexes_are_checked_and_mended_in_place(tmp_path: Path) -> None:
    assert check_indexes(tmp_path) == []
    path = tmp_path / "index" / "train.json"
    write_json(path, TAMPERED)
    write_json(tmp_path / "index" / "val.json", [[{"audio_file": "x"}, {"audio_file": "y"}]])
    with pytest.raises(DataError, match=INVERSION):
        check_indexes(tmp_path)
    assert check_indexes(tmp_path, resort=True) == [path, tmp_path / "index" / "val.json"]
    assert json.loads(path.read_text()) == [[TAMPERED[0][1], TAMPERED[0][2], TAMPERED[0][0]]]
    assert check_indexes(tmp_path) == [path, tmp_path / "index" / "val.json"]


def test_an_index_is_mended_without_loss(tmp_path: Path) -> None:
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
    with pytest.raises(DataError, match=r"scores\.json holds a number that JSON has not"):
        sort_index_file(path, resort=True)
    assert "NaN" in path.read_text()


def test_a_tampered_index_stops_training(tmp_path: Path) -> None:
    from audioscore.encoders.extract import Extraction, write_extraction
    from audioscore.training.train import train_plan

    gate = validated(tmp_path / "gate", [sung(number) for number in range(40)])
    sort_folder(tmp_path, gate, tmp_path, SECTION)
    path = tmp_path / "index" / "train.json"
    groups = json.loads(path.read_text())
    groups[0][3], groups[0][5] = groups[0][5], groups[0][3]
    path.write_text(json.dumps(groups))
    write_extraction(Extraction(str(tmp_path / "store"), {}, 0, 0, 0, 0.0), {}, tmp_path / "features")
    config = load_config(SMALL)
    lower = groups[0][3]["audio_file"]
    with pytest.raises(DataError, match=rf"train\.json, group 1: {lower} .*position 4\) stands above .*position 5\)"):
        train_plan(
            "baseline", tmp_path, tmp_path / "features", tmp_path / "model", config.training,
            data_digest="", code_revision="",
        )  # fmt: skip
