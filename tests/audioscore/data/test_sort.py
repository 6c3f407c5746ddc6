import json
import random
from pathlib import Path

import pytest

from audioscore.data.clips import Clip
from audioscore.data.index import read_index
from audioscore.data.sort import sort_clips, write_sorted
from audioscore.data.split import assign_splits, read_splits
from audioscore.errors import DataError


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
