from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy.stats import kstest, spearmanr

from audioscore.demo.plan import NUISANCES, SOURCES, PlannedClip, plan_corpus
from audioscore.errors import UsageError

PLAN = plan_corpus()


def of(source: str, plan: list[PlannedClip] = PLAN) -> list[PlannedClip]:
    return [clip for clip in plan if clip.source == source]


def test_the_demo_corpus_has_its_counts() -> None:
    assert len(PLAN) == len({clip.audio_file for clip in PLAN}) == 384
    assert Counter(clip.source for clip in PLAN) == {"ktv": 192, "acapella": 192}
    assert set(Counter(clip.singer.singer_id for clip in PLAN).values()) == {4}
    assert len({(clip.singer.singer_id, clip.source) for clip in PLAN}) == 96
    assert len({clip.song.song_id for clip in PLAN}) == 16
    assert len({(clip.singer.singer_id, clip.song.song_id) for clip in PLAN}) == 384


@pytest.mark.parametrize("source", SOURCES)
def test_scores_fill_the_band_and_follow_quality(source: str) -> None:
    low, high, _ = SOURCES[source]
    scores = np.array([clip.score for clip in of(source)])
    quality = [0.5 * clip.q_timbre + 0.5 * clip.q_performance for clip in of(source)]
    assert low <= scores.min()
    assert scores.max() <= high
    assert kstest((scores - low) / (high - low), "uniform").statistic < 0.05
    assert spearmanr(quality, scores).statistic > 0.98
    assert (np.round(scores, 1) == scores).all()


@pytest.mark.parametrize("source", [None, *SOURCES])
@pytest.mark.parametrize("name", [*NUISANCES, "order", "silence"])
def test_nothing_else_correlates_with_the_score(name: str, source: str | None) -> None:
    values = [number if name == "order" else getattr(clip, name, 0.0) for number, clip in enumerate(PLAN)]
    if name == "silence":
        values = [(clip.lead + clip.trail) / clip.seconds for clip in PLAN]
    here = [(value, clip.score) for value, clip in zip(values, PLAN, strict=True) if source in (None, clip.source)]
    assert abs(spearmanr(*zip(*here, strict=True)).statistic) < 0.1


def test_sources_share_their_lengths_levels_and_silences() -> None:
    for name, (low, high) in NUISANCES.items():
        values = {source: sorted(getattr(clip, name) for clip in of(source)) for source in SOURCES}
        assert values["ktv"] == values["acapella"]
        assert low <= values["ktv"][0] < values["ktv"][-1] <= high


@pytest.mark.parametrize(
    ("share", "scored", "other"), [(0.0, "q_performance", "q_timbre"), (1.0, "q_timbre", "q_performance")]
)
def test_the_timbre_share_decides_what_is_scored(share: float, scored: str, other: str) -> None:
    plan = plan_corpus(48, 4, seed=5, timbre_share=share)
    for clips in (of(source, plan) for source in SOURCES):
        scores = [clip.score for clip in clips]
        assert spearmanr(scores, [getattr(clip, scored) for clip in clips]).statistic > 0.98
        assert abs(spearmanr(scores, [getattr(clip, other) for clip in clips]).statistic) < 0.2


def test_plans_follow_the_seed_and_singers_do_not_depend_on_their_number() -> None:
    assert plan_corpus(6, 2, seed=1) == plan_corpus(6, 2, seed=1)
    assert plan_corpus(6, 2, seed=1) != plan_corpus(6, 2, seed=2)
    few = {clip.singer.singer_id: clip.singer for clip in plan_corpus(4, 1, seed=1)}
    many = {clip.singer.singer_id: clip.singer for clip in plan_corpus(9, 3, seed=1)}
    assert all(many[name] == singer for name, singer in few.items())


@pytest.mark.parametrize("count", [2, 3, 7])
def test_small_corpora_have_both_sources(count: int) -> None:
    assert set(Counter(clip.source for clip in plan_corpus(count, 1, songs=1))) == set(SOURCES)


@pytest.mark.parametrize(
    ("arguments", "figures"),
    [
        ({"singers": 1}, r"\b2 singers\b.*\b1\b"),
        ({"clips_per_singer": 0}, r"\b0\b.*\b16\b"),
        ({"songs": 0}, r"\b4\b.*\b0\b"),
        ({"seed": -3}, "-3"),
        ({"timbre_share": 1.5}, r"\b0\b.*\b1\b.*\b1\.5\b"),
    ],
)
def test_impossible_corpora_are_refused(arguments: dict[str, Any], figures: str) -> None:
    with pytest.raises(UsageError, match=figures):
        plan_corpus(**arguments)
