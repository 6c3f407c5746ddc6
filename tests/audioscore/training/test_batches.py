import hashlib
import itertools
import random
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from audioscore.errors import DataError, UsageError
from audioscore.training.batches import draw_batches


@dataclass(frozen=True)
class Row:
    """One row of a labels table, as the sampler sees it."""

    score: float
    source: str
    group: int
    key: str


def draw(rows: list[Row], batch_clips: int, seed: int = 1, epoch: int = 0) -> list[list[Row]]:
    scores, sources, groups, keys = (
        [getattr(row, name) for row in rows] for name in ("score", "source", "group", "key")
    )
    batches = draw_batches(scores, sources, groups, keys=keys, batch_clips=batch_clips, seed=seed, epoch=epoch)
    return [[rows[number] for number in batch] for batch in batches]


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def corpus(count: int, share: float = 0.3, seed: int = 0) -> list[Row]:
    """KTV singing below 85, and a share of a-cappella above."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        ktv = rng.random() >= share
        score = rng.uniform(50, 85) if ktv else rng.uniform(85, 99)
        rows.append(Row(round(float(score), 1), "ktv" if ktv else "acapella", 0, key(number)))
    return rows


def order_groups(sizes: list[int], first: int = 10_000) -> list[Row]:
    return [
        Row(float(-row), "ktv", number, key(first + 100 * number + row))
        for number, size in enumerate(sizes, 1)
        for row in range(size)
    ]


tables = st.lists(
    st.tuples(st.integers(50, 56), st.sampled_from(["ktv", "acapella", ""]), st.integers(0, 3)), max_size=60
).map(lambda rows: [Row(float(score), source, group, key(n)) for n, (score, source, group) in enumerate(rows)])


@given(tables, st.integers(2, 20), st.integers(-3, 3), st.integers(0, 3))
@settings(deadline=None)
def test_every_clip_once_in_batches_of_equal_size(rows: list[Row], batch_clips: int, seed: int, epoch: int) -> None:
    batches = draw(rows, batch_clips, seed, epoch)
    assert sorted(row.key for batch in batches for row in batch) == sorted(row.key for row in rows)
    sizes = [len(batch) for batch in batches]
    assert len(batches) == -(-len(rows) // batch_clips)
    assert max(sizes, default=0) <= batch_clips
    assert max(sizes, default=0) - min(sizes, default=0) <= 1


@given(tables, st.integers(2, 20), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_rows_changes_no_batch(rows: list[Row], batch_clips: int, generator: random.Random) -> None:
    shuffled = list(rows)
    generator.shuffle(shuffled)
    assert draw(shuffled, batch_clips) == draw(rows, batch_clips)


def test_the_names_of_groups_change_nothing() -> None:
    rows = corpus(20) + order_groups([3, 4, 5])
    names = {0: 0, 1: 99, 2: -4, 3: 1}
    renamed = [Row(row.score, row.source, names[row.group], row.key) for row in rows]
    wanted = [[row.key for row in batch] for batch in draw(rows, 8)]
    assert [[row.key for row in batch] for batch in draw(renamed[::-1], 8)] == wanted


def test_a_recording_in_the_main_list_and_two_groups_is_drawn_three_times_in_any_row_order() -> None:
    rows = corpus(9)
    rows += [Row(2.0, "ktv", 1, rows[0].key), Row(1.0, "ktv", 1, rows[1].key)]
    rows += [Row(2.0, "ktv", 2, rows[0].key), Row(1.0, "ktv", 2, rows[2].key)]
    wanted = draw(rows, 5)
    assert sum(row.key == rows[0].key for batch in wanted for row in batch) == 3
    for seed in range(20):
        assert draw([rows[n] for n in np.random.default_rng(seed).permutation(len(rows))], 5) == wanted


def test_seed_and_epoch_decide_and_each_changes_the_batches() -> None:
    rows = corpus(64)
    assert draw(rows, 16, seed=1, epoch=2) == draw(rows, 16, seed=1, epoch=2)
    contents = [
        {frozenset(row.key for row in batch) for batch in draw(rows, 16, seed, epoch)}
        for seed, epoch in ((1, 0), (1, 1), (2, 0), (2, 1), (-1, 0))
    ]
    assert all(not first & second for first, second in itertools.combinations(contents, 2))


def strata_of(rows: list[Row], quantiles: int) -> list[set[str]]:
    """Keys of each source's parts, by score."""
    strata = []
    for source in {row.source for row in rows}:
        members = sorted((row for row in rows if row.source == source), key=lambda row: row.score)
        strata += [{members[n].key for n in part} for part in np.array_split(np.arange(len(members)), quantiles)]
    return strata


def held(batches: list[list[Row]], keys: set[str]) -> list[int]:
    return [sum(row.key in keys for row in batch) for batch in batches]


@given(st.integers(4, 200), st.floats(0, 1), st.integers(4, 40), st.integers(0, 5))
@settings(deadline=None)
def test_every_batch_holds_its_share_of_every_source(count: int, share: float, batch_clips: int, seed: int) -> None:
    rows = corpus(count, share, seed)
    batches = draw(rows, batch_clips, seed)
    sources = strata_of(rows, 1)
    rare = any(len(keys) < 2 * len(batches) for keys in sources)
    for keys in sources:
        counts = held(batches, keys)
        even = [len(keys) // len(batches), -(-len(keys) // len(batches))]
        if not rare and count >= 4 * len(batches):
            assert [min(counts), max(counts)] == even
        elif len(keys) >= 2 * len(batches) and count >= 4 * len(batches):
            assert even[0] - 1 <= min(counts) <= max(counts) <= even[1] + 1


def test_every_batch_holds_its_share_of_every_quantile_of_every_source() -> None:
    rows = [Row(50 + n / 10, "ktv", 0, key(n)) for n in range(320)]
    rows += [Row(85 + n / 50, "acapella", 0, key(1000 + n)) for n in range(480)]
    batches = draw(rows, 40)
    assert [held(batches, keys) for keys in sorted(strata_of(rows, 4), key=len)] == [[4] * 20] * 4 + [[6] * 20] * 4


def test_a_rare_source_is_drawn_in_pairs() -> None:
    rows = corpus(100, share=0.0) + [Row(90.0 + n / 10, "acapella", 0, key(500 + n)) for n in range(6)]
    met = set()
    for epoch in range(40):
        batches = draw(rows, 10, epoch=epoch)
        assert sorted(held(batches, {row.key for row in rows[100:]})) == [0] * 8 + [2] * 3
        met |= {frozenset(row.key for row in batch if row.source == "acapella") for batch in batches} - {frozenset()}
    assert len(met) == 15, "all pairs occur over the epochs"


@pytest.mark.parametrize("batch_clips", [2, 3])
def test_batches_of_two_or_three_clips_hold_pairs_of_all_kinds(batch_clips: int) -> None:
    kinds = Counter(
        "".join(sorted(row.source[0] for row in batch[:2])) for batch in draw(corpus(600, share=0.5), batch_clips)
    )
    assert set(kinds) == {"aa", "ak", "kk"}
    assert kinds["ak"] == pytest.approx(sum(kinds.values()) / 2, rel=0.25)


def test_small_gaps_are_as_frequent_as_among_all_pairs() -> None:
    def share_of_small(batches: list[list[Row]]) -> float:
        return float(np.mean(np.concatenate([pdist([[row.score] for row in batch]) < 1 for batch in batches])))

    rows = corpus(400)
    drawn = share_of_small([batch for epoch in range(10) for batch in draw(rows, 32, epoch=epoch)])
    assert drawn == pytest.approx(share_of_small([rows]), rel=0.2)


@pytest.mark.parametrize("batch_clips", [2, 4, 8, 12])
def test_over_the_epochs_every_two_clips_meet(batch_clips: int) -> None:
    rows = corpus(24)
    met = {
        frozenset((first.key, second.key))
        for epoch in range(200)
        for batch in draw(rows, batch_clips, epoch=epoch)
        for first, second in itertools.combinations(batch, 2)
    }
    assert len(met) == 24 * 23 // 2


def parts_of(batches: list[list[Row]]) -> dict[int, list[int]]:
    """Sizes of the parts that each relative group was dealt in."""
    parts: dict[int, list[int]] = {}
    for batch in batches:
        for group, size in Counter(row.group for row in batch if row.group != 0).items():
            parts.setdefault(group, []).append(size)
    return {group: sorted(sizes) for group, sizes in parts.items()}


def test_relative_groups_that_fit_stay_whole_and_are_spread_over_the_batches() -> None:
    sizes = [5, 3, 4, 2, 5]
    batches = draw(corpus(81) + order_groups(sizes), 20)
    assert len(batches) == 5
    assert parts_of(batches) == {group: [size] for group, size in enumerate(sizes, 1)}
    assert [len({row.group for row in batch} - {0}) for batch in batches] == [1] * 5
    for batch in batches:
        assert {row.source for row in batch} == {"ktv", "acapella"}
        assert np.ptp([row.score for row in batch if row.group == 0]) > 30


@pytest.mark.parametrize(
    ("clips", "sizes", "batch_clips", "wanted"),
    [
        (0, [11], 10, {1: [5, 6]}),  # not ten clips and a single one
        (0, [16], 5, {1: [4, 4, 4, 4]}),
        (30, [16], 20, {1: [16]}),
        (6, [6, 6, 6, 6], 10, {1: [6], 2: [6], 3: [6], 4: [3, 3]}),
        (2, [9, 9], 10, {1: [9], 2: [9]}),
        (0, [2, 2, 2], 2, {1: [2], 2: [2], 3: [2]}),
    ],
)
def test_a_large_group_is_halved(clips: int, sizes: list[int], batch_clips: int, wanted: dict[int, list[int]]) -> None:
    parts = parts_of(draw(corpus(clips) + order_groups(sizes), batch_clips))
    assert sorted(parts.values()) == sorted(wanted.values())  # which of the equal groups is split is random


@given(st.lists(st.integers(1, 9), max_size=8), st.integers(0, 60), st.integers(9, 20), st.integers(0, 5))
@settings(deadline=None)
def test_groups_are_split_only_if_they_fit_nowhere(sizes: list[int], clips: int, batch_clips: int, seed: int) -> None:
    batches = draw(corpus(clips) + order_groups(sizes), batch_clips, seed)
    parts = parts_of(batches)
    # Pairs of clips of a rare source are assigned among the groups of their size, so only larger groups are compared.
    split = [group for group, parts_of_group in parts.items() if len(parts_of_group) > 1 and sizes[group - 1] > 2]
    for group in split:
        free = [sum(row.group in (0, group) for row in batch) for batch in batches]
        assigned_later = sum(size for other, size in enumerate(sizes, 1) if other != group and size <= sizes[group - 1])
        assert max(free) < sizes[group - 1] + assigned_later


def test_no_clip_and_one_clip() -> None:
    assert draw([], 8) == []
    assert draw(corpus(1), 8) == [corpus(1)]


def test_bad_input_is_refused() -> None:
    rows = corpus(4)
    with pytest.raises(UsageError, match="batch_clips 1"):
        draw(rows, 1)
    with pytest.raises(DataError, match=rf"1 of 5 .*{key(77)[:12]}"):
        draw([*rows, Row(float("nan"), "ktv", 0, key(77))], 2)
    with pytest.raises(ValueError, match="2, 1, 2, 2"):
        draw_batches([1.0, 2.0], ["ktv"], [0, 0], keys=["a", "b"], batch_clips=2, seed=0, epoch=0)
