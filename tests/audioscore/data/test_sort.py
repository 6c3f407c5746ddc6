import json
import logging
import random
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from audioscore.config import SplitSection
from audioscore.data.clips import Clip
from audioscore.data.index import read_index, write_index
from audioscore.data.sort import read_split, sort_clips, sort_folder, write_sorted
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


def test_clips_without_scores_are_in_no_split(tmp_path: Path) -> None:
    write_index(tmp_path / "index" / "val.json", [[Clip("b", 80.0)], [Clip("a"), Clip("c")]])
    assert [clip.audio_file for clip in read_split(tmp_path, "val")] == ["b"]
