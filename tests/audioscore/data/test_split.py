import random
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from audioscore.data.clips import Clip
from audioscore.data.split import SPLITS, Splits, assign_splits, read_splits, write_splits
from audioscore.data.split_groups import group_key
from audioscore.errors import DataError, UsageError


def corpus(singers: int, takes: int, *, source: str = "ktv", low: float = 50, high: float = 85) -> list[Clip]:
    """Every singer sings `takes` songs of their own; scores run evenly over the range."""
    total = singers * takes
    return [
        Clip(
            f"{source}/{number}.m4a",
            low + (high - low) * number / total,
            f"{source}{number % singers}",
            f"{source}-song{number}",
            source,
            sha256=f"{source}-{number:04d}",
        )
        for number in range(total)
    ]


def split(
    clips: list[Clip],
    *,
    seed: int = 0,
    remembered: dict[str, str] | None = None,
    together: Sequence[Collection[str]] = (),
    alike: Sequence[Collection[str]] = (),
) -> Splits:
    return assign_splits(clips, val=0.1, test=0.1, seed=seed, remembered=remembered, together=together, alike=alike)


def left_out(splits: Splits) -> list[str]:
    return [one.describe() for one in splits.report.left_out]


def test_every_split_gets_its_share_of_every_source_and_level() -> None:
    clips = corpus(60, 5) + corpus(40, 5, source="acapella", low=85, high=99)
    report = split(clips).report
    for name, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        counts = report.splits[name]
        assert counts.clips == pytest.approx(500 * share, abs=5)
        assert counts.sources["ktv"] == pytest.approx(300 * share, abs=5)
        assert counts.sources["acapella"] == pytest.approx(200 * share, abs=5)
        assert counts.lowest is not None
        assert counts.highest is not None
        assert counts.lowest < 60
        assert counts.highest > 95
    assert report.warnings == []
    assert (report.groups, report.new_groups, report.unknown_singers, report.shared_songs) == (100, 100, 0, 0)
    assert report.to_json()["splits"]["train"]["clips"] == report.splits["train"].clips


def test_seeds_differ_and_repeat() -> None:
    clips = corpus(30, 3)
    assert split(clips).of == split(clips).of
    assert split(clips).of != split(clips, seed=1).of


def test_songs_stay_on_one_side_where_the_data_allow() -> None:
    # Singers come in pairs that share their four songs: nothing forces a song into two splits.
    clips = [replace(clip, song_id=f"song{index % 60 // 2}-{index // 60}") for index, clip in enumerate(corpus(60, 4))]
    report = split(clips).report
    assert report.shared_songs == 0
    assert report.splits["test"].clips == pytest.approx(24, abs=4)


def test_the_song_overlap_is_counted() -> None:
    clips = [
        replace(clip, song_id=f"hit{index // 30}" if index % 30 else None) for index, clip in enumerate(corpus(30, 2))
    ]
    result = split(clips)
    trained = {clip.song_id for clip in clips if result.of[clip.audio_file] == "train"}
    tested = [clip.song_id for clip in clips if result.of[clip.audio_file] == "test" and clip.song_id]
    shared = sum(song in trained for song in tested)
    assert shared > 0
    assert (result.report.shared_songs, result.report.shared_song_share) == (shared, shared / len(tested))
    assert f"{shared} of {len(tested)} test clips with a known song have it in train too." in result.report.warnings
    assert result.report.unknown_songs == 2


def test_clips_without_singers_are_known_by_content_and_counted() -> None:
    clips = [replace(clip, singer_id=None) if index < 7 else clip for index, clip in enumerate(corpus(20, 2))]
    result = split(clips)
    assert result.report.unknown_singers == 7
    assert "7 of 40 clips have no singer" in " ".join(result.report.warnings)
    assert sum(key.startswith("singer:") for key in result.groups) == 20
    assert {f"sha256:{clip.sha256}" for clip in clips} <= set(result.groups)


def test_identical_audio_is_one_group() -> None:
    clips = corpus(12, 2)
    twin = replace(clips[0], audio_file="copy.m4a", singer_id=None)
    other = replace(clips[0], audio_file="other.m4a", singer_id="ktv5")
    for seed in range(5):
        result = split([*clips, twin, other], seed=seed)
        joined = {
            result.of[clip.audio_file] for clip in [*clips, twin, other] if clip.singer_id in (None, "ktv0", "ktv5")
        }
        assert len(joined) == 1
        assert result.report.groups == 11


def test_what_is_kept_together_is_one_group() -> None:
    clips = corpus(12, 1)
    pairs = [{clips[0].sha256 or "", clips[1].audio_file}, {clips[1].audio_file, clips[2].audio_file}]
    result = split(clips, together=pairs)
    assert len({result.of[clip.audio_file] for clip in clips[:3]}) == 1
    assert result.report.groups == 10
    with pytest.raises(DataError, match=r"1 of 2 clips to keep together are not in the data \(gone\)"):
        split(clips, together=[{clips[0].audio_file, "gone"}])


def test_groups_keep_their_split_and_old_ones_are_not_forgotten() -> None:
    remembered = {"singer:ktv0": "test", "singer:ktv1": "test", "singer:ktv2": "val", "singer:left": "val"}
    result = split(corpus(12, 2), remembered=remembered)
    assert remembered.items() <= result.groups.items()
    assert result.report.new_groups == 9
    assert result.report.splits["test"].singers == 2  # a sixth of the clips is already more than its share


def test_a_clip_that_gains_a_singer_keeps_its_split() -> None:
    clips = [replace(clip, singer_id=None) for clip in corpus(12, 1)]
    first = split(clips)
    tested = next(clip for clip in clips if first.of[clip.audio_file] == "test")
    named = [replace(clip, singer_id="new") if clip == tested else clip for clip in clips]
    second = split(named, remembered=first.groups)
    assert second.of == first.of
    assert second.groups["singer:new"] == "test"


def test_a_recording_of_two_singers_in_two_splits_is_left_out_of_train() -> None:
    clips = corpus(6, 1)
    shared = replace(clips[0], audio_file="copy.m4a", singer_id="ktv1")
    result = split([*clips, shared], remembered={"singer:ktv0": "train", "singer:ktv1": "test"})
    assert left_out(result) == ["ktv/0.m4a left out of train: identical to copy.m4a in test"]
    assert "ktv/0.m4a" not in result.of
    assert (result.of["copy.m4a"], result.groups["singer:ktv0"], result.report.splits["test"].clips) == (
        "test",
        "train",
        2,
    )
    assert f"1 of 7 clips are in no split, since each would link two splits ({left_out(result)[0]})." in (
        result.report.warnings
    )


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (("train", "test"), ["ktv/0.m4a left out of train: near-identical to ktv/1.m4a in test"]),
        (("test", "train"), ["ktv/1.m4a left out of train: near-identical to ktv/0.m4a in test"]),
        (("val", "train"), ["ktv/1.m4a left out of train: near-identical to ktv/0.m4a in val"]),
        (("val", "test"), ["ktv/0.m4a left out of val: near-identical to ktv/1.m4a in test"]),
        (("val", "val"), []),
    ],
)
def test_near_duplicates_in_two_splits(places: tuple[str, str], expected: list[str]) -> None:
    clips = corpus(9, 2)
    remembered = {"singer:ktv0": places[0], "singer:ktv1": places[1]}
    result = split(clips, remembered=remembered, together=[("ktv/0.m4a", "ktv/1.m4a")])
    assert left_out(result) == expected
    assert len(result.of) == 18 - len(expected)
    assert remembered.items() <= result.groups.items()


def test_a_new_singer_between_two_splits_gives_way() -> None:
    clips = corpus(9, 2)
    result = split(
        clips,
        remembered={"singer:ktv0": "train", "singer:ktv1": "test"},
        together=[("ktv/0.m4a", "ktv/2.m4a"), ("ktv/1.m4a", "ktv/11.m4a")],  # 2 and 11 are ktv2's
    )
    assert left_out(result) == ["ktv/11.m4a left out of train: near-identical to ktv/1.m4a in test"]
    assert (result.of["ktv/2.m4a"], result.groups["singer:ktv2"]) == ("train", "train")


def test_a_clip_given_to_a_singer_of_another_split_is_left_out() -> None:
    clips = corpus(9, 2)
    first = split(clips)
    tested = next(clip for clip in clips if first.of[clip.audio_file] == "test")
    trainer = next(clip.singer_id for clip in clips if first.of[clip.audio_file] == "train")
    corrected = [replace(clip, singer_id=trainer) if clip == tested else clip for clip in clips]
    second = split(corrected, remembered=first.groups)
    assert left_out(second) == [
        f"{tested.audio_file} left out of test: it was there before, and its singer {trainer} is in train"
    ]
    assert second.of == {name: place for name, place in first.of.items() if name != tested.audio_file}


def test_recordings_that_turn_out_to_be_one_singers_follow_the_most_of_them() -> None:
    clips = [replace(clip, singer_id=None) for clip in corpus(12, 1)]
    places = ("train", "train", "test", "val", "val", "test", "test", "train", "val")
    known = {f"sha256:{clip.sha256}": place for clip, place in zip(clips, places, strict=False)}
    named = [replace(clip, singer_id="A" if index < 3 else None) for index, clip in enumerate(clips)]
    result = split(named, remembered=known)
    assert result.groups["singer:a"] == "train"
    assert left_out(result) == ["ktv/2.m4a left out of test: it was there before, and its singer A is in train"]
    again = split(named, remembered=result.groups)
    assert (again.of, left_out(again), again.groups) == (result.of, left_out(result), result.groups)


def test_a_singer_who_is_forgotten_keeps_the_split() -> None:
    clips = corpus(12, 2)
    first = split(clips)
    assert split([replace(clip, singer_id=None) for clip in clips], remembered=first.groups).of == first.of


def test_a_singers_spelling_does_not_split_them() -> None:
    clips = corpus(12, 2)
    wide = [
        replace(clip, singer_id=str(clip.singer_id).upper()) if index % 2 else clip for index, clip in enumerate(clips)
    ]
    assert split(wide).of == split(clips).of
    assert sum(count.singers for count in split(wide).report.splits.values()) == 12


def test_voices_join_new_groups() -> None:
    clips = [replace(clip, singer_id=None) for clip in corpus(12, 4)]
    voices = [[clip.audio_file for clip in clips[start::12]] for start in range(12)]
    for seed in range(3):
        result = split(clips, seed=seed, alike=voices)
        assert all(len({result.of[name] for name in voice}) == 1 for voice in voices)
        assert (result.report.groups, result.report.unknown_singers) == (48, 48)
        assert "no singer" not in " ".join(result.report.warnings)
    assert any(len({split(clips).of[name] for name in voice}) > 1 for voice in voices)


def test_a_voice_in_one_split_draws_new_clips_there_and_in_two_moves_nothing() -> None:
    clips = [replace(clip, singer_id=None) for clip in corpus(12, 2)]
    names = [clip.audio_file for clip in clips]
    places = ("test", "train", "test", "val", "val", "train", "train")
    known = {f"sha256:{clip.sha256}": place for clip, place in zip(clips, places, strict=False)}
    result = split(clips, remembered=known, alike=[[names[0], names[10]], [names[1], names[3], names[4], names[11]]])
    assert [result.of[name] for name in names[:7]] == list(places)
    assert (result.of[names[10]], result.of[names[11]]) == ("test", "val")
    assert result.report.voices_apart == 1
    assert "1 estimated voices have clips in several splits" in " ".join(result.report.warnings)
    assert known.items() <= result.groups.items()


def test_voices_that_would_empty_a_split_are_not_used() -> None:
    clips = [replace(clip, singer_id=None) for clip in corpus(12, 2)]
    names = [clip.audio_file for clip in clips]
    result = split(clips, alike=[names[:12], names[12:]])
    assert result.of == split(clips).of
    assert result.report.warnings[-1] == (
        "2 estimated voices would leave a split empty and are not used. Raise split.same_voice_cosine."
    )
    assert "24 of 24 clips have no singer" in " ".join(result.report.warnings)


def test_too_few_singers_are_refused() -> None:
    with pytest.raises(DataError, match=r"20 clips by 2 singers cannot fill train, val and test.*at least 1 more"):
        split(corpus(2, 10))
    with pytest.raises(DataError, match=r"no clip is left for test: all but 0 of 3 groups are remembered"):
        split(corpus(3, 2), remembered={"singer:ktv0": "train", "singer:ktv1": "train", "singer:ktv2": "val"})


@pytest.mark.parametrize(("val", "test"), [(0, 0.1), (0.1, 0), (0.5, 0.5), (-0.1, 0.2), (float("nan"), 0.1)])
def test_shares_that_leave_a_split_empty_are_refused(val: float, test: float) -> None:
    with pytest.raises(UsageError, match="must both be above 0"):
        assign_splits(corpus(9, 1), val=val, test=test, seed=0)


def test_shortfalls_become_warnings() -> None:
    clips = corpus(3, 2) + corpus(1, 4, source="acapella")
    warnings = " ".join(split(clips).report.warnings)
    assert warnings.count("holds no clip of source acapella") == 2
    assert "(20%), wanted 10%" in warnings


def test_splits_json_round_trip(tmp_path: Path) -> None:
    result = split(corpus(9, 1), seed=7)
    write_splits(tmp_path / "splits.json", result)
    assert read_splits(tmp_path / "splits.json") == (7, result.groups)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("{", "is not JSON"),
        ("[]", 'lacks "seed" or "groups"'),
        ('{"seed": 0, "groups": {"a": "train", "b": "dev"}}', r"1 of 2 groups are in no split \(b: dev\)"),
    ],
)
def test_a_damaged_splits_json_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "splits.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_splits(path)


@st.composite
def any_corpus(draw: st.DrawFn, prefix: str = "", least: int = 1) -> list[Clip]:
    drawn = draw(
        st.lists(
            st.tuples(
                st.integers(0, 12) | st.none(),  # singer
                st.integers(0, 20),  # content
                st.integers(0, 5) | st.none(),  # song
                st.sampled_from(["ktv", "acapella", None]),
                st.floats(50, 99) | st.none(),
            ),
            min_size=least,
            max_size=30,
        )
    )
    return [
        Clip(
            f"{prefix}{index}.m4a",
            score,
            None if singer is None else f"{prefix}{singer}",
            None if song is None else str(song),
            source,
            sha256=f"{prefix}{content}" if content < 18 else None,
        )
        for index, (singer, content, song, source, score) in enumerate(drawn)
    ]


def try_split(clips: list[Clip], **options: Any) -> Splits:
    try:
        return split(clips, **options)
    except DataError as fault:
        assume("cannot fill" not in str(fault))
        assume("no clip is left for" not in str(fault))
        raise


@settings(max_examples=40, deadline=None)
@given(any_corpus(), st.integers(0, 3), st.randoms(use_true_random=False))
def test_no_singer_and_no_recording_is_in_two_splits_whatever_the_order(
    clips: list[Clip], seed: int, shuffler: random.Random
) -> None:
    result = try_split(clips, seed=seed)
    places: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        places[group_key(clip)].add(result.of[clip.audio_file])
        places[f"content {clip.sha256 or clip.audio_file}"].add(result.of[clip.audio_file])
    assert all(len(found) == 1 for found in places.values())
    assert set(Counter(result.of.values())) == set(SPLITS)
    assert {key: splits for key, splits in result.groups.items() if key in places} == {
        key: next(iter(found)) for key, found in places.items() if not key.startswith("content ")
    }
    shuffled = list(clips)
    shuffler.shuffle(shuffled)
    again = try_split(shuffled, seed=seed)
    assert (again.of, again.groups) == (result.of, result.groups)


@settings(max_examples=25, deadline=None)
@given(any_corpus(), any_corpus("new"), st.integers(0, 3))
def test_added_groups_move_nobody(clips: list[Clip], added: list[Clip], seed: int) -> None:
    first = try_split(clips)
    second = try_split(clips + added, seed=seed, remembered=first.groups)
    assert first.of.items() <= second.of.items()
    assert first.groups.items() <= second.groups.items()


@st.composite
def two_batches(draw: st.DrawFn) -> tuple[list[Clip], list[Clip]]:
    """A corpus, and what it is later: clips gone, clips new, singers learned, lost and corrected."""
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
def test_nothing_moves_and_nothing_straddles_whatever_is_added_or_corrected(
    batches: tuple[list[Clip], list[Clip]], data: st.DataObject
) -> None:
    clips, later = batches
    first = try_split(clips, alike=some_names(data.draw, clips), together=some_names(data.draw, clips))
    pairs = some_names(data.draw, later)
    second = try_split(later, remembered=first.groups, alike=some_names(data.draw, later), together=pairs)
    before: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        if clip.audio_file in first.of:
            before[clip.sha256 or clip.audio_file].add(first.of[clip.audio_file])
    for clip in later:
        place, earlier = second.of.get(clip.audio_file), before[clip.sha256 or clip.audio_file]
        assert place is None or not earlier or earlier == {place}
    places: dict[str, set[str]] = defaultdict(set)
    for clip in later:
        if clip.audio_file in second.of:
            for key in (group_key(clip), f"content {clip.sha256 or clip.audio_file}"):
                places[key].add(second.of[clip.audio_file])
    for number, pair in enumerate(pairs):
        places[f"pair {number}"] = {second.of[name] for name in pair if name in second.of}
    assert all(len(found) <= 1 for found in places.values())
    assert {one.audio_file for one in second.report.left_out} == {clip.audio_file for clip in later} - set(second.of)
    assert first.groups.items() <= second.groups.items()
    again = split(later, remembered=second.groups, together=pairs)
    assert again.of == second.of
