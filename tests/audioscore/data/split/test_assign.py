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
from audioscore.data.split.assign import SPLITS, Splits, assign_splits, read_splits
from audioscore.data.split.groups import group_key
from audioscore.errors import DataError, UsageError


def corpus(singers: int, clips: int, *, source: str = "ktv", low: float = 50, high: float = 85) -> list[Clip]:
    """`clips` recordings of each singer, each of its own song; scores run evenly over the range."""
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
    remembered: dict[str, str] | None = None,
    together: Sequence[Collection[str]] = (),
    alike: Sequence[Collection[str]] = (),
) -> Splits:
    return assign_splits(clips, val=0.1, test=0.1, seed=seed, remembered=remembered, together=together, alike=alike)


def left_out(splits: Splits) -> list[tuple[str, str, str]]:
    """Each clip that is left out, its split, and the name, the split or the singer in the reason."""
    words = re.compile(r"\S+\.m4a|\btrain\b|\bval\b|\btest\b|\bktv\d\b|\bA\b")
    return [(one.audio_file, one.split, " ".join(words.findall(one.reason))) for one in splits.report.left_out]


def warned(splits: Splits, *figures: str) -> bool:
    """Whether one warning holds these words in this order."""
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


def test_songs_stay_in_one_split_where_the_data_allow() -> None:
    # Singers come in pairs that share their four songs: nothing forces a song into two splits.
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


def test_clips_without_singers_are_known_by_content_and_counted() -> None:
    clips = unnamed(20, 2)[:7] + corpus(20, 2)[7:]
    result = split(clips)
    assert result.report.unknown_singers == 7
    assert warned(result, "7", "40", "singer")
    assert sum(key.startswith("singer:") for key in result.groups) == 20
    assert {f"sha256:{clip.sha256}" for clip in clips} <= set(result.groups)


def test_identical_audio_and_what_is_kept_together_are_one_group() -> None:
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
    result = split(clips, together=pairs)
    assert len({result.of[clip.audio_file] for clip in clips[:3]}) == 1
    assert result.report.groups == 10


def test_groups_keep_their_split_and_old_ones_are_not_forgotten() -> None:
    remembered = {"singer:ktv0": "test", "singer:ktv1": "test", "singer:ktv2": "val", "singer:left": "val"}
    result = split(corpus(12, 2), remembered=remembered)
    assert remembered.items() <= result.groups.items()
    assert result.report.new_groups == 9
    assert result.report.splits["test"].singers == 2  # a sixth of the clips is already more than its share


def test_a_clip_that_gains_or_loses_its_singer_keeps_its_split() -> None:
    clips = unnamed(12, 1)
    first = split(clips)
    tested = next(clip for clip in clips if first.of[clip.audio_file] == "test")
    second = split(
        [replace(clip, singer_id="new") if clip == tested else clip for clip in clips], remembered=first.groups
    )
    assert second.of == first.of
    assert second.groups["singer:new"] == "test"
    third = split(corpus(12, 2))
    assert split(unnamed(12, 2), remembered=third.groups).of == third.of


def test_a_recording_of_two_singers_in_two_splits_is_left_out_of_train() -> None:
    clips = corpus(6, 1)
    shared = replace(clips[0], audio_file="copy.m4a", singer_id="ktv1")
    result = split([*clips, shared], remembered={"singer:ktv0": "train", "singer:ktv1": "test"})
    assert left_out(result) == [("ktv/0.m4a", "train", "copy.m4a test")]
    assert "ktv/0.m4a" not in result.of
    assert (result.of["copy.m4a"], result.groups["singer:ktv0"]) == ("test", "train")
    assert result.report.splits["test"].clips == 2
    assert warned(result, "1", "7", "ktv/0.m4a", "train", "copy.m4a", "test")


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (("train", "test"), [("ktv/0.m4a", "train", "ktv/1.m4a test")]),
        (("test", "train"), [("ktv/1.m4a", "train", "ktv/0.m4a test")]),
        (("val", "train"), [("ktv/1.m4a", "train", "ktv/0.m4a val")]),
        (("val", "test"), [("ktv/0.m4a", "val", "ktv/1.m4a test")]),
        (("val", "val"), []),
    ],
)
def test_near_duplicates_in_two_splits(places: tuple[str, str], expected: list[tuple[str, str, str]]) -> None:
    remembered = {"singer:ktv0": places[0], "singer:ktv1": places[1]}
    result = split(corpus(9, 2), remembered=remembered, together=[("ktv/0.m4a", "ktv/1.m4a")])
    assert left_out(result) == expected
    assert len(result.of) == 18 - len(expected)
    assert remembered.items() <= result.groups.items()


def test_a_new_singer_between_two_splits_gives_way() -> None:
    together = [("ktv/0.m4a", "ktv/2.m4a"), ("ktv/1.m4a", "ktv/11.m4a")]  # 2 and 11 are ktv2's
    result = split(corpus(9, 2), remembered={"singer:ktv0": "train", "singer:ktv1": "test"}, together=together)
    assert left_out(result) == [("ktv/11.m4a", "train", "ktv/1.m4a test")]
    assert (result.of["ktv/2.m4a"], result.groups["singer:ktv2"]) == ("train", "train")


def test_a_clip_given_to_a_singer_of_another_split_is_left_out() -> None:
    clips = corpus(9, 2)
    first = split(clips)
    tested = next(clip for clip in clips if first.of[clip.audio_file] == "test")
    trainer = next(clip.singer_id for clip in clips if first.of[clip.audio_file] == "train")
    corrected = [replace(clip, singer_id=trainer) if clip == tested else clip for clip in clips]
    second = split(corrected, remembered=first.groups)
    assert left_out(second) == [(tested.audio_file, "test", f"{trainer} train")]
    assert second.of == {name: place for name, place in first.of.items() if name != tested.audio_file}


def test_recordings_that_turn_out_to_be_one_singers_follow_the_most_of_them() -> None:
    clips = unnamed(12, 1)
    places = ("train", "train", "test", "val", "val", "test", "test", "train", "val")
    known = {f"sha256:{clip.sha256}": place for clip, place in zip(clips, places, strict=False)}
    named = [replace(clip, singer_id="A" if index < 3 else None) for index, clip in enumerate(clips)]
    result = split(named, remembered=known)
    assert result.groups["singer:a"] == "train"
    assert left_out(result) == [("ktv/2.m4a", "test", "A train")]
    again = split(named, remembered=result.groups)
    assert (again.of, left_out(again), again.groups) == (result.of, left_out(result), result.groups)


def test_a_singers_spelling_does_not_split_them() -> None:
    clips = corpus(12, 2)
    mixed = [*clips[:12], *(replace(clip, singer_id=str(clip.singer_id).upper()) for clip in clips[12:])]
    assert split(mixed).of == split(clips).of
    assert sum(count.singers for count in split(mixed).report.splits.values()) == 12


def test_voices_join_new_groups() -> None:
    clips = unnamed(12, 4)
    voices = [[clip.audio_file for clip in clips[start::12]] for start in range(12)]
    for seed in range(3):
        result = split(clips, seed=seed, alike=voices)
        assert all(len({result.of[name] for name in voice}) == 1 for voice in voices)
        assert (result.report.groups, result.report.unknown_singers) == (48, 48)
        assert not warned(result, "48", "48", "singer")
    assert any(len({split(clips).of[name] for name in voice}) > 1 for voice in voices)


def test_a_voice_in_one_split_draws_new_clips_there_and_in_two_moves_nothing() -> None:
    clips = unnamed(12, 2)
    names = [clip.audio_file for clip in clips]
    places = ("test", "train", "test", "val", "val", "train", "train")
    known = {f"sha256:{clip.sha256}": place for clip, place in zip(clips, places, strict=False)}
    result = split(clips, remembered=known, alike=[[names[0], names[10]], [names[1], names[3], names[4], names[11]]])
    assert [result.of[name] for name in names[:7]] == list(places)
    assert (result.of[names[10]], result.of[names[11]]) == ("test", "val")
    assert result.report.voices_apart == 1
    assert warned(result, "1", "voices")
    assert known.items() <= result.groups.items()


def test_voices_that_would_empty_a_split_are_not_used() -> None:
    clips = unnamed(12, 2)
    names = [clip.audio_file for clip in clips]
    result = split(clips, alike=[names[:12], names[12:]])
    assert result.of == split(clips).of
    assert re.search(r"\b2\b.*split\.same_voice_cosine", result.report.warnings[-1])
    assert warned(result, "24", "24", "singer")


def test_too_few_singers_and_missing_clips_are_refused() -> None:
    with pytest.raises(DataError, match=r"\b20 clips\b.*\b2 singers\b.*\b1 more"):
        split(corpus(2, 10))
    with pytest.raises(DataError, match=r"\btest\b.*\b0 of 3\b"):
        split(corpus(3, 2), remembered={"singer:ktv0": "train", "singer:ktv1": "train", "singer:ktv2": "val"})
    with pytest.raises(DataError, match=r"1 of 2 .*\(gone\)"):
        split(corpus(12, 1), together=[{"ktv/0.m4a", "gone"}])


@pytest.mark.parametrize(("val", "test"), [(0, 0.1), (0.1, 0), (0.5, 0.5), (-0.1, 0.2), (float("nan"), 0.1)])
def test_shares_that_leave_a_split_empty_are_refused(val: float, test: float) -> None:
    with pytest.raises(UsageError):
        assign_splits(corpus(9, 1), val=val, test=test, seed=0)


def test_shortfalls_become_warnings() -> None:
    result = split(corpus(3, 2) + corpus(1, 4, source="acapella"))
    assert sum("acapella" in warning for warning in result.report.warnings) == 2
    assert warned(result, "(20%)", "10%")


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


def try_split(clips: list[Clip], **options: Any) -> Splits:
    """The splits, unless there are too few singers for them, which another test covers."""
    try:
        return split(clips, **options)
    except DataError:
        assume(False)
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
def test_added_groups_move_no_clip(clips: list[Clip], added: list[Clip], seed: int) -> None:
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
