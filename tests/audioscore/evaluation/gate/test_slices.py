from typing import Any

import numpy as np
import pytest
from scipy import stats

from audioscore.evaluation.bootstrap import cluster_counts
from audioscore.evaluation.gate.slices import Slice, SliceRule, compare_slices, slices_text

SINGERS = np.repeat(np.arange(20), 4)
SOURCES = ["ktv" if singer % 2 else None for singer in SINGERS]


def compare(new: np.ndarray, old: np.ndarray, human: np.ndarray, **rule: Any) -> dict[str, Slice]:
    counts = cluster_counts(SINGERS, 200, 0)
    found = compare_slices(human, new, old, SINGERS, SOURCES, counts, SliceRule(**rule), 0.95)
    return {one.title: one for one in found}


def human_scores() -> np.ndarray:
    return np.random.default_rng(0).uniform(55, 99, len(SINGERS))


def test_figures_are_scipys() -> None:
    human = human_scores()
    new, old = (human + np.random.default_rng(seed).normal(0, 5, len(human)) for seed in (1, 2))
    found = compare(new, old, human)
    member = np.array([source == "ktv" for source in SOURCES])
    ktv = found["source ktv"]
    assert (ktv.clips, ktv.singers) == (40, 10)
    assert ktv.challenger == pytest.approx(stats.spearmanr(human[member], new[member]).statistic)
    assert ktv.champion == pytest.approx(stats.spearmanr(human[member], old[member]).statistic)
    assert ktv.delta == pytest.approx((ktv.challenger or 0) - (ktv.champion or 0))
    assert [title for title in found if title.startswith("source")] == ["source ktv", "source unknown"]
    assert sum(one.clips for title, one in found.items() if title.startswith("band")) == 80


def test_a_fall_must_be_large_and_shown() -> None:
    human = human_scores()
    noise = [np.random.default_rng(seed).normal(0, 5, len(human)) for seed in (1, 2)]
    by_chance = compare(human + noise[0], human + noise[1], human, margin=0.0)
    assert all(one.verdict != "fell" for one in by_chance.values() if one.hi is not None and one.hi >= 0)
    worse = compare(-human, human + noise[1], human)
    assert all(one.verdict == "fell" for one in worse.values() if one.verdict != "too small")
    assert compare(-human, human + noise[1], human, margin=2.1)["source ktv"].verdict == "kept"


def test_an_undefined_rank_is_a_fall() -> None:
    human = human_scores()
    ktv = np.array([source == "ktv" for source in SOURCES])
    found = compare(np.where(ktv, 70.0, human), human + np.random.default_rng(2).normal(0, 5, len(human)), human)
    slot = found["source ktv"]
    assert (slot.verdict, slot.challenger, slot.lo) == ("fell", None, None)
    assert slot.delta == pytest.approx(-(slot.champion or 0))
    assert "source ktv (0." in slices_text([slot], 0.05)
    assert "undefined, 40 clips, 10 singers" in slices_text([slot], 0.05)


def test_two_undefined_ranks_are_equal() -> None:
    human = human_scores()
    assert compare(np.full(80, 1.0), np.full(80, 2.0), human)["source ktv"].verdict == "kept"


def test_too_few_singers_are_too_little() -> None:
    human = human_scores()
    found = compare(-human, human, human, min_singers=11)
    assert {one.verdict for one in found.values()} <= {"too small", "fell"}
    assert (found["source ktv"].verdict, found["source ktv"].delta) == ("too small", None)


def test_no_slices_give_no_text() -> None:
    assert slices_text([], 0.05) == ""
