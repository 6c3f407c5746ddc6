import random
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from audioscore.data.clips import Clip
from audioscore.data.split import SPLITS, Splits, assign_splits, group_key, read_splits, write_splits
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
) -> Splits:
    return assign_splits(clips, val=0.1, test=0.1, seed=seed, remembered=remembered, together=together)


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
    assert sum(key.startswith("sha256:") for key in result.groups) == 7


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


def test_groups_remembered_apart_cannot_be_merged() -> None:
    clips = corpus(6, 1)
    shared = replace(clips[0], audio_file="copy.m4a", singer_id="ktv1")
    remembered = {"singer:ktv0": "train", "singer:ktv1": "test"}
    with pytest.raises(DataError, match=r"2 groups share recordings.*\(singer:ktv0 in train, singer:ktv1 in test\)"):
        split([*clips, shared], remembered=remembered)


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
def any_corpus(draw: st.DrawFn, prefix: str = "") -> list[Clip]:
    drawn = draw(
        st.lists(
            st.tuples(
                st.integers(0, 12) | st.none(),  # singer
                st.integers(0, 20),  # content
                st.integers(0, 5) | st.none(),  # song
                st.sampled_from(["ktv", "acapella", None]),
                st.floats(50, 99) | st.none(),
            ),
            min_size=1,
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


def try_split(clips: list[Clip], *, seed: int = 0, remembered: dict[str, str] | None = None) -> Splits:
    try:
        return split(clips, seed=seed, remembered=remembered)
    except DataError as fault:
        assume("cannot fill" not in str(fault))
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
