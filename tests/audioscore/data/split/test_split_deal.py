from collections import Counter

import pytest

from audioscore.data.clips import Clip
from audioscore.data.split.assign import deal

SHARES = (0.6, 0.2, 0.2)


def groups(count: int, size: int) -> list[list[Clip]]:
    return [[Clip(f"{group}-{clip}", 50.0 + group, source="ktv") for clip in range(size)] for group in range(count)]


def dealt(parts: list[list[Clip]], places: list[int | None], seed: int = 0) -> list[int]:
    return deal(parts, [part[0].audio_file for part in parts], places, SHARES, seed=seed, score_levels=4)


def test_parts_get_their_shares() -> None:
    for seed in range(3):
        counts = Counter(dealt(groups(50, 3), [None] * 50, seed))
        assert [counts[part] for part in range(3)] == pytest.approx([30, 10, 10], abs=1)


def test_what_has_a_place_keeps_it_and_counts() -> None:
    places: list[int | None] = [2] * 20 + [None] * 30
    parts = dealt(groups(50, 3), places)
    assert parts[:20] == [2] * 20
    assert Counter(parts[20:])[2] == 0  # 20 of 50 is twice that part's share


def test_an_empty_part_gets_the_smallest_new_group() -> None:
    large = groups(3, 40)
    assert sorted(dealt(large, [None] * 3)) == [0, 1, 2]
    parts = dealt([*large, [Clip("small", 70.0)], [Clip("other", 70.0), Clip("two", 70.0)]], [0, 0, 0, None, None])
    assert parts[:3] == [0, 0, 0]
    assert sorted(parts[3:]) == [1, 2]


def test_the_order_of_the_groups_does_not_matter() -> None:
    listed = groups(20, 2)
    there = dealt(listed, [None] * 20)
    assert dealt(listed[::-1], [None] * 20)[::-1] == there


def test_groups_that_share_a_song_share_a_split() -> None:
    listed = [[Clip(f"{group}-{clip}", 70.0, song_id=f"{group // 2}") for clip in range(2)] for group in range(30)]
    parts = dealt(listed, [None] * 30)
    assert all(parts[group] == parts[group + 1] for group in range(0, 30, 2))
