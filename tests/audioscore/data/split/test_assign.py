import random
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from audioscore.data.clips import Clip
from audioscore.data.split.assign import Splits, assign_splits, balance_groups, read_splits
from audioscore.data.split.groups import SPLITS, can_fill, group_clips, group_key
from audioscore.errors import DataError, UsageError


def corpus(singers: int, clips: int, *, source: str = "ktv", low: float = 50, high: float = 85) -> list[Clip]:
    """`clips` recordings per singer, each of a different song, with evenly spaced scores."""
    total = singers * clips
    return [
        Clip(
            f"{source}/{n}.m4a", low + (high - low) * n / total, f"{source}{n % singers}", f"{source}-song{n}", source,
            sha256=f"{source}-{n:04d}",
        )
        for n in range(total)
    ]  # fmt: skip


def unnamed(singers: int, clips: int) -> list[Clip]:
    return [replace(clip, singer_id=None) for clip in corpus(singers, clips)]


def split(
    clips: list[Clip],
    *,
    seed: int = 0,
    previous: dict[str, str] | None = None,
    same_recording: Sequence[Collection[str]] = (),
    same_voice: Sequence[Collection[str]] = (),
) -> Splits:
    return assign_splits(
        clips, val=0.1, test=0.1, seed=seed, previous=previous, same_recording=same_recording, same_voice=same_voice
    )


def left_out(splits: Splits) -> list[tuple[str, str, str]]:
    """Each excluded clip, its split, and the name, the split or the singer in the reason."""
    words = re.compile(r"\S+\.m4a|\btrain\b|\bval\b|\btest\b|\bktv\d\b|\bA\b")
    return [(one.audio_file, one.split, " ".join(words.findall(one.reason))) for one in splits.report.left_out]


def warned(splits: Splits, *figures: str) -> bool:
    """Whether one warning contains these words in this order."""
    pattern = ".*".join(rf"(?<!\w){re.escape(figure)}(?!\w)" for figure in figures)
    return any(re.search(pattern, warning) for warning in splits.report.warnings)


def test_every_split_gets_its_share_of_every_source_and_level() -> None:
    clips = corpus(60, 5) + corpus(40, 5, source="acapella", low=85, high=99)
    result = split(clips)
    report = result.report
    for name, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        counts = report.splits[name]
        assert counts.clips == pytest.approx(500 * share, abs=5)
        assert counts.sources["ktv"] == pytest.approx(300 * share, abs=5)
        assert counts.sources["acapella"] == pytest.approx(200 * share, abs=5)
        assert (counts.lowest or 99) < 60
        assert (counts.highest or 0) > 95
    assert report.warnings == []
    assert (report.groups, report.new_groups, report.unknown_singers, report.shared_songs) == (100, 100, 0, 0)
    assert report.to_json()["splits"]["train"]["clips"] == report.splits["train"].clips
    assert split(clips).of == result.of
    assert split(clips, seed=1).of != result.of


def test_songs_are_in_one_split_if_possible() -> None:
    # Pairs of singers share four songs, so no song needs to be in two splits.
    clips = [replace(clip, song_id=f"song{index % 60 // 2}-{index // 60}") for index, clip in enumerate(corpus(60, 4))]
    report = split(clips).report
    assert report.shared_songs == 0
    assert report.splits["test"].clips == pytest.approx(24, abs=4)


def test_the_song_overlap_is_counted() -> None:
    songs = [f"hit{index // 30}" if index % 30 else None for index in range(60)]
    clips = [replace(clip, song_id=song) for clip, song in zip(corpus(30, 2), songs, strict=True)]
    result = split(clips)
    trained = {clip.song_id for clip in clips if result.of[clip.audio_file] == "train"}
    tested = [clip.song_id for clip in clips if result.of[clip.audio_file] == "test" and clip.song_id]
    shared = sum(song in trained for song in tested)
    assert shared > 0
    assert (result.report.shared_songs, result.report.shared_song_share) == (shared, shared / len(tested))
    assert warned(result, str(shared), str(len(tested)), "song")
    assert result.report.unknown_songs == 2


def test_clips_without_singers_are_stored_by_content_and_counted() -> None:
    clips = unnamed(20, 2)[:7] + corpus(20, 2)[7:]
    result = split(clips)
    assert result.report.unknown_singers == 7
    assert warned(result, "7", "40", "singer")
    assert sum(key.startswith("singer:") for key in result.groups) == 20
    assert {f"sha256:{clip.sha256}" for clip in clips} <= set(result.groups)


def test_identical_audio_and_near_duplicates_are_one_group() -> None:
    clips = corpus(12, 2)
    twin = replace(clips[0], audio_file="copy.m4a", singer_id=None)
    other = replace(clips[0], audio_file="other.m4a", singer_id="ktv5")
    joined = [clip.audio_file for clip in [*clips, twin, other] if clip.singer_id in (None, "ktv0", "ktv5")]
    for seed in range(5):
        result = split([*clips, twin, other], seed=seed)
        assert len({result.of[name] for name in joined}) == 1
        assert result.report.groups == 11
    clips = corpus(12, 1)
    pairs = [{clips[0].sha256 or "", clips[1].audio_file}, {clips[1].audio_file, clips[2].audio_file}]
    result = split(clips, same_recording=pairs)
    assert len({result.of[clip.audio_file] for clip in clips[:3]}) == 1
    assert result.report.groups == 10


def test_groups_keep_their_split_and_previous_groups_are_kept() -> None:
    previous = {"singer:ktv0": "test", "singer:ktv1": "test", "singer:ktv2": "val", "singer:left": "val"}
    result = split(corpus(12, 2), previous=previous)
    assert previous.items() <= result.groups.items()
    assert result.report.new_groups == 9
    assert result.report.splits["test"].singers == 2  # a sixth of the clips is already more than the share


def test_a_clip_that_gains_or_loses_its_singer_keeps_its_split() -> None:
    clips = unnamed(12, 1)
    first = split(clips)
    tested = next(clip for clip in clips if first.of[clip.audio_file] == "test")
    second = split(
        [replace(clip, singer_id="new") if clip == tested else clip for clip in clips], previous=first.groups
    )
    assert second.of == first.of
    assert second.groups["singer:new"] == "test"
    third = split(corpus(12, 2))
    assert split(unnamed(12, 2), previous=third.groups).of == third.of


def test_a_recording_of_two_singers_in_two_splits_is_excluded_from_train() -> None:
    clips = corpus(6, 1)
    shared = replace(clips[0], audio_file="copy.m4a", singer_id="ktv1")
    result = split([*clips, shared], previous={"singer:ktv0": "train", "singer:ktv1": "test"})
    assert left_out(result) == [("ktv/0.m4a", "train", "copy.m4a test")]
    assert "ktv/0.m4a" not in result.of
    assert (result.of["copy.m4a"], result.groups["singer:ktv0"]) == ("test", "train")
    assert result.report.splits["test"].clips == 2
    assert warned(result, "1", "7", "ktv/0.m4a", "train", "copy.m4a", "test")


@pytest.mark.parametrize(
    ("assigned", "expected"),
    [
        (("train", "test"), [("ktv/0.m4a", "train", "ktv/1.m4a test")]),
        (("test", "train"), [("ktv/1.m4a", "train", "ktv/0.m4a test")]),
        (("val", "train"), [("ktv/1.m4a", "train", "ktv/0.m4a val")]),
        (("val", "test"), [("ktv/0.m4a", "val", "ktv/1.m4a test")]),
        (("val", "val"), []),
    ],
)
def test_near_duplicates_in_two_splits(assigned: tuple[str, str], expected: list[tuple[str, str, str]]) -> None:
    previous = {"singer:ktv0": assigned[0], "singer:ktv1": assigned[1]}
    result = split(corpus(9, 2), previous=previous, same_recording=[("ktv/0.m4a", "ktv/1.m4a")])
    assert left_out(result) == expected
    assert len(result.of) == 18 - len(expected)
    assert previous.items() <= result.groups.items()


def test_a_new_singer_with_links_to_two_splits_loses_one_clip() -> None:
    same_recording = [("ktv/0.m4a", "ktv/2.m4a"), ("ktv/1.m4a", "ktv/11.m4a")]  # 2 and 11 belong to ktv2
    result = split(
        corpus(9, 2), previous={"singer:ktv0": "train", "singer:ktv1": "test"}, same_recording=same_recording
    )
    assert left_out(result) == [("ktv/11.m4a", "train", "ktv/1.m4a test")]
    assert (result.of["ktv/2.m4a"], result.groups["singer:ktv2"]) == ("train", "train")


def test_a_clip_corrected_to_a_singer_of_another_split_is_excluded() -> None:
    clips = corpus(9, 2)
    first = split(clips)
    tested = next(clip for clip in clips if first.of[clip.audio_file] == "test")
    trainer = next(clip.singer_id for clip in clips if first.of[clip.audio_file] == "train")
    corrected = [replace(clip, singer_id=trainer) if clip == tested else clip for clip in clips]
    second = split(corrected, previous=first.groups)
    assert left_out(second) == [(tested.audio_file, "test", f"{trainer} train")]
    assert second.of == {name: split for name, split in first.of.items() if name != tested.audio_file}


def test_recordings_with_a_common_new_singer_follow_most_of_them() -> None:
    clips = unnamed(12, 1)
    assigned = ("train", "train", "test", "val", "val", "test", "test", "train", "val")
    known = {f"sha256:{clip.sha256}": split for clip, split in zip(clips, assigned, strict=False)}
    named = [replace(clip, singer_id="A" if index < 3 else None) for index, clip in enumerate(clips)]
    result = split(named, previous=known)
    assert result.groups["singer:a"] == "train"
    assert left_out(result) == [("ktv/2.m4a", "test", "A train")]
    again = split(named, previous=result.groups)
    assert (again.of, left_out(again), again.groups) == (result.of, left_out(result), result.groups)


def test_spellings_of_a_singer_are_one_singer() -> None:
    clips = corpus(12, 2)
    mixed = [*clips[:12], *(replace(clip, singer_id=str(clip.singer_id).upper()) for clip in clips[12:])]
    assert split(mixed).of == split(clips).of
    assert sum(count.singers for count in split(mixed).report.splits.values()) == 12


def test_voices_join_new_groups() -> None:
    clips = unnamed(12, 4)
    voices = [[clip.audio_file for clip in clips[start::12]] for start in range(12)]
    for seed in range(3):
        result = split(clips, seed=seed, same_voice=voices)
        assert all(len({result.of[name] for name in voice}) == 1 for voice in voices)
        assert (result.report.groups, result.report.unknown_singers) == (48, 48)
        assert not warned(result, "48", "48", "singer")
    assert any(len({split(clips).of[name] for name in voice}) > 1 for voice in voices)


def test_new_clips_follow_a_voice_in_one_split_and_previous_clips_never_move() -> None:
    clips = unnamed(12, 2)
    names = [clip.audio_file for clip in clips]
    assigned = ("test", "train", "test", "val", "val", "train", "train")
    known = {f"sha256:{clip.sha256}": split for clip, split in zip(clips, assigned, strict=False)}
    result = split(clips, previous=known, same_voice=[[names[0], names[10]], [names[1], names[3], names[4], names[11]]])
    assert [result.of[name] for name in names[:7]] == list(assigned)
    assert (result.of[names[10]], result.of[names[11]]) == ("test", "val")
    assert result.report.voices_apart == 1
    assert warned(result, "1", "voices")
    assert known.items() <= result.groups.items()


def test_voices_that_would_leave_a_split_empty_are_ignored() -> None:
    clips = unnamed(12, 2)
    names = [clip.audio_file for clip in clips]
    result = split(clips, same_voice=[names[:12], names[12:]])
    assert result.of == split(clips).of
    assert re.search(r"\b2\b.*split\.same_voice_cosine", result.report.warnings[-1])
    assert warned(result, "24", "24", "singer")


def test_too_few_singers_and_missing_clips_are_refused() -> None:
    with pytest.raises(DataError, match=r"\b20 clips\b.*\b2 singers\b.*\b1 more"):
        split(corpus(2, 10))
    with pytest.raises(DataError, match=r"\btest\b.*\b0 of 3\b"):
        split(corpus(3, 2), previous={"singer:ktv0": "train", "singer:ktv1": "train", "singer:ktv2": "val"})
    with pytest.raises(DataError, match=r"1 of 2 .*\(gone\)"):
        split(corpus(12, 1), same_recording=[{"ktv/0.m4a", "gone"}])


@pytest.mark.parametrize(("val", "test"), [(0, 0.1), (0.1, 0), (0.5, 0.5), (-0.1, 0.2), (float("nan"), 0.1)])
def test_shares_that_leave_a_split_empty_are_refused(val: float, test: float) -> None:
    with pytest.raises(UsageError):
        assign_splits(corpus(9, 1), val=val, test=test, seed=0)


def test_deviations_from_the_shares_are_warnings() -> None:
    result = split(corpus(3, 2) + corpus(1, 4, source="acapella"))
    assert sum("acapella" in warning for warning in result.report.warnings) == 2
    assert warned(result, "(20%)", "10%")


SHARES = (0.6, 0.2, 0.2)


def ktv_groups(count: int, size: int) -> list[list[Clip]]:
    return [[Clip(f"{group}-{clip}", 50.0 + group, source="ktv") for clip in range(size)] for group in range(count)]


def balanced(groups: list[list[Clip]], fixed: list[int | None], seed: int = 0) -> list[int]:
    return balance_groups(groups, [group[0].audio_file for group in groups], fixed, SHARES, seed=seed, score_levels=4)


def test_balanced_splits_have_their_shares() -> None:
    for seed in range(3):
        counts = Counter(balanced(ktv_groups(50, 3), [None] * 50, seed))
        assert [counts[split] for split in range(3)] == pytest.approx([30, 10, 10], abs=1)


def test_fixed_groups_keep_their_split_and_count() -> None:
    fixed: list[int | None] = [2] * 20 + [None] * 30
    assigned = balanced(ktv_groups(50, 3), fixed)
    assert assigned[:20] == [2] * 20
    assert Counter(assigned[20:])[2] == 0  # 20 of 50 is twice the share of that split


def test_an_empty_split_gets_the_smallest_new_group() -> None:
    large = ktv_groups(3, 40)
    assert sorted(balanced(large, [None] * 3)) == [0, 1, 2]
    assigned = balanced(
        [*large, [Clip("small", 70.0)], [Clip("other", 70.0), Clip("two", 70.0)]], [0, 0, 0, None, None]
    )
    assert assigned[:3] == [0, 0, 0]
    assert sorted(assigned[3:]) == [1, 2]


def test_the_order_of_the_groups_does_not_matter() -> None:
    listed = ktv_groups(20, 2)
    assigned = balanced(listed, [None] * 20)
    assert balanced(listed[::-1], [None] * 20)[::-1] == assigned


def test_groups_with_the_same_song_have_the_same_split() -> None:
    listed = [[Clip(f"{group}-{clip}", 70.0, song_id=f"{group // 2}") for clip in range(2)] for group in range(30)]
    assigned = balanced(listed, [None] * 30)
    assert all(assigned[group] == assigned[group + 1] for group in range(0, 30, 2))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ""),
        ("{", "JSON"),
        ("[]", '"seed".*"groups"'),
        ('{"seed": 0, "groups": {"a": "train", "b": "dev"}}', r"1 of 2 .*\(b: dev\)"),
    ],
)
def test_a_damaged_splits_json_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "splits.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=rf"splits\.json.*{words}"):
        read_splits(path)


@st.composite
def any_corpus(draw: st.DrawFn, prefix: str = "", least: int = 1) -> list[Clip]:
    singers = st.none() | st.integers(0, 12).map(lambda singer: f"{prefix}{singer}")
    contents = st.integers(0, 20).map(lambda content: f"{prefix}{content}" if content < 18 else None)
    songs = st.none() | st.integers(0, 5).map(str)
    sources = st.sampled_from(["ktv", "acapella", None])
    rows = st.tuples(st.none() | st.floats(50, 99), singers, songs, sources, contents)
    drawn = draw(st.lists(rows, min_size=least, max_size=30))
    return [Clip(f"{prefix}{index}.m4a", *row, sha256=content) for index, (*row, content) in enumerate(drawn)]


def try_split(
    clips: list[Clip],
    *,
    previous: dict[str, str] | None = None,
    same_recording: Sequence[Collection[str]] = (),
    **options: Any,
) -> Splits:
    """The splits; examples with too few groups to fill them are skipped, and any other error is raised."""
    try:
        return split(clips, previous=previous, same_recording=same_recording, **options)
    except DataError as error:
        groups = group_clips(clips, same_recording, previous or {}).groups
        new = sum(group.split is None for group in groups)
        too_few = [str(len(clips)), str(len(groups))] if len(groups) < 3 else [str(new), str(len(groups))]
        assume(can_fill(groups) or re.findall(r"\d+", str(error))[:2] != too_few)
        raise


@settings(max_examples=40, deadline=None)
@given(any_corpus(), st.integers(0, 3), st.randoms(use_true_random=False))
def test_no_singer_and_no_recording_is_in_two_splits_in_any_order(
    clips: list[Clip], seed: int, shuffler: random.Random
) -> None:
    result = try_split(clips, seed=seed)
    found: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        found[group_key(clip)].add(result.of[clip.audio_file])
        found[f"content {clip.sha256 or clip.audio_file}"].add(result.of[clip.audio_file])
    assert all(len(splits) == 1 for splits in found.values())
    assert set(Counter(result.of.values())) == set(SPLITS)
    assert {key: splits for key, splits in result.groups.items() if key in found} == {
        key: next(iter(splits)) for key, splits in found.items() if not key.startswith("content ")
    }
    shuffled = list(clips)
    shuffler.shuffle(shuffled)
    again = try_split(shuffled, seed=seed)
    assert (again.of, again.groups) == (result.of, result.groups)


@settings(max_examples=25, deadline=None)
@given(any_corpus(), any_corpus("new"), st.integers(0, 3))
def test_added_groups_move_no_clip(clips: list[Clip], added: list[Clip], seed: int) -> None:
    first = try_split(clips)
    second = try_split(clips + added, seed=seed, previous=first.groups)
    assert first.of.items() <= second.of.items()
    assert first.groups.items() <= second.groups.items()


@st.composite
def two_batches(draw: st.DrawFn) -> tuple[list[Clip], list[Clip]]:
    """A corpus and its next version: removed and new clips; added, removed and corrected singers."""
    clips = draw(any_corpus(least=10))
    changed = [
        replace(clip, singer_id=draw(st.sampled_from([clip.singer_id, None, "0", "1", "NEW"])))
        for clip in clips
        if draw(st.integers(0, 9))
    ]
    new = [replace(clip, audio_file=f"late-{clip.audio_file}") for clip in draw(any_corpus(least=5))]
    return clips, changed + new


def some_names(draw: Any, clips: list[Clip]) -> list[list[str]]:
    names = st.sampled_from([clip.audio_file for clip in clips])
    found: list[list[str]] = draw(st.lists(st.lists(names, min_size=2, max_size=3, unique=True), max_size=3))
    return found


@settings(max_examples=40, deadline=None)
@given(two_batches(), st.data())
def test_no_clip_moves_and_no_group_is_divided_after_additions_and_corrections(
    batches: tuple[list[Clip], list[Clip]], data: st.DataObject
) -> None:
    clips, later = batches
    first = try_split(clips, same_voice=some_names(data.draw, clips), same_recording=some_names(data.draw, clips))
    pairs = some_names(data.draw, later)
    second = try_split(later, previous=first.groups, same_voice=some_names(data.draw, later), same_recording=pairs)
    before: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        if clip.audio_file in first.of:
            before[clip.sha256 or clip.audio_file].add(first.of[clip.audio_file])
    for clip in later:
        split_now, earlier = second.of.get(clip.audio_file), before[clip.sha256 or clip.audio_file]
        assert split_now is None or not earlier or earlier == {split_now}
    found: dict[str, set[str]] = defaultdict(set)
    for clip in later:
        if clip.audio_file in second.of:
            for key in (group_key(clip), f"content {clip.sha256 or clip.audio_file}"):
                found[key].add(second.of[clip.audio_file])
    for number, pair in enumerate(pairs):
        found[f"pair {number}"] = {second.of[name] for name in pair if name in second.of}
    assert all(len(splits) <= 1 for splits in found.values())
    assert {one.audio_file for one in second.report.left_out} == {clip.audio_file for clip in later} - set(second.of)
    assert first.groups.items() <= second.groups.items()
    again = split(later, previous=second.groups, same_recording=pairs)
    assert again.of == second.of


@pytest.mark.parametrize("then", ["s{}\u200b", "s{}", "S{}", "\uff33{}"])
def test_old_spellings_of_a_singer_keep_their_split_and_entry(then: str) -> None:
    clips = [replace(clip, singer_id=clip.singer_id.replace("ktv", "S")) for clip in corpus(12, 3) if clip.singer_id]
    first = split(clips)
    one = next(clip for clip in clips if first.of[clip.audio_file] == "train")
    groups = {key: name for key, name in first.groups.items() if key != group_key(one)}
    groups |= {f"singer:{then.format(str(one.singer_id)[1:])}": "test"}
    new = [replace(clip, audio_file=f"new/{clip.audio_file}", sha256=f"new {clip.sha256}") for clip in clips]
    again = split(new, previous=groups)
    assert {again.of[clip.audio_file] for clip in new if clip.singer_id == one.singer_id} == {"test"}
    assert groups.items() <= again.groups.items()
    assert [key for key in again.groups if key.startswith("singer:")] == [
        key for key in sorted(groups) if key.startswith("singer:")
    ]


def test_spellings_in_several_splits_follow_their_recordings() -> None:
    clips = [replace(clip, singer_id=f"{number % 12:03d}") for number, clip in enumerate(corpus(12, 3))]
    first = split(clips)
    one, *_ = own = [clip for clip in clips if clip.singer_id == "007"]
    groups = {key: name for key, name in first.groups.items() if key != "singer:7"}
    groups |= {"singer:07": "val", "singer:007": "test"} | {f"sha256:{clip.sha256}": "test" for clip in own}
    assert group_key(one) == "singer:7"
    again = split(clips, previous=groups)
    assert {again.of[clip.audio_file] for clip in own} == {"test"}
    assert again.groups == groups | {"singer:7": "test"}
