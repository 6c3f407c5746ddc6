import re

import pytest

from audioscore.data.clips import Clip
from audioscore.data.split.groups import (
    can_fill,
    content_key,
    empty_splits,
    group_clips,
    group_key,
    join_same_voice,
    previous_split,
)
from audioscore.errors import DataError


def test_a_recording_is_stored_by_content_else_by_name() -> None:
    clip = Clip("a.m4a", singer_id="A", sha256="5f")
    assert (group_key(clip), content_key(clip)) == ("singer:a", "sha256:5f")
    assert previous_split(clip, {"file:a.m4a": "val", "singer:a": "test"}) == "val"
    assert previous_split(clip, {"file:a.m4a": "val", "sha256:5f": "train"}) == "train"
    assert previous_split(clip, {"singer:a": "test"}) is None


def test_links_are_transitive() -> None:
    clips = [Clip(f"{name}.m4a", singer_id=name, sha256="same" if name in "ab" else name) for name in "abcd"]
    found = group_clips(clips, [["b.m4a", "c"]], {})
    assert [(group.name, [clip.audio_file for clip in group.clips]) for group in found.groups] == [
        ("singer:a", ["a.m4a", "b.m4a", "c.m4a"]),
        ("singer:d", ["d.m4a"]),
    ]
    assert empty_splits(found.groups) == ["train", "val", "test"]
    assert not can_fill(found.groups)
    with pytest.raises(DataError, match=r"1 of 2 .*\(gone\)"):
        group_clips(clips, [["a.m4a", "gone"]], {})


def test_one_clip_that_links_two_splits_is_excluded_without_others() -> None:
    clips = [Clip(f"{name}.m4a", singer_id=name) for name in "abc"]
    known = {"singer:a": "train", "singer:b": "val", "singer:c": "test"}
    found = group_clips(clips, [["a.m4a", "b.m4a"], ["b.m4a", "c.m4a"]], known)
    # b is excluded because of c in test; then a has no link.
    assert {name: out.split for name, out in found.left_out.items()} == {"b.m4a": "val"}
    assert [group.split for group in found.groups] == ["train", "test"]


def test_one_of_two_names_of_one_recording_is_excluded() -> None:
    clips = [Clip("a.m4a", sha256="s"), Clip("b.m4a", sha256="s")]
    found = group_clips(clips, [], {"file:a.m4a": "train", "file:b.m4a": "test"})
    (out,) = found.left_out.values()
    assert (out.audio_file, out.split) == ("a.m4a", "train")
    assert re.search(r"a\.m4a.*\btrain\b.*\btest\b", out.describe())


def test_new_groups_follow_most_of_the_clips_of_their_voice() -> None:
    clips = [Clip(f"{number}.m4a", sha256=str(number)) for number in range(6)]
    known = {"sha256:0": "train", "sha256:1": "test", "sha256:2": "test"}
    groups = group_clips(clips, [], known).groups
    joined, apart = join_same_voice(groups, [["0.m4a", "1.m4a", "2.m4a", "3.m4a"], ["4.m4a", "5.m4a", "gone.m4a"]])
    assert apart == 1
    assert [([clip.audio_file for clip in group.clips], group.split) for group in joined] == [
        (["0.m4a"], "train"),
        (["1.m4a"], "test"),
        (["2.m4a"], "test"),
        (["3.m4a"], "test"),
        (["4.m4a", "5.m4a"], None),
    ]
