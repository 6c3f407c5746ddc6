import math
from typing import Any

import numpy as np
import pytest

from audioscore.errors import DataError
from audioscore.evaluation.gate import choose_winner, decide


def clips(seed: int, singers: int = 30, each: int = 4) -> tuple[np.ndarray, dict[str, Any]]:
    """Human scores of two domains in two bands, and the arguments that describe the clips."""
    rng = np.random.default_rng(seed)
    ktv = np.repeat(np.arange(singers) % 2 == 0, each)
    scores = np.where(ktv, rng.uniform(50, 85, len(ktv)), rng.uniform(85, 99, len(ktv)))
    names = [f"s{number}" for number in np.repeat(np.arange(singers), each)]
    return scores, {"scores": scores, "singers": names, "sources": np.where(ktv, "ktv", "acapella").tolist()}


def heard(scores: np.ndarray, noise: float, seed: int) -> np.ndarray:
    return scores + np.random.default_rng(seed).normal(0, noise, len(scores))


def test_a_better_challenger_is_promoted() -> None:
    scores, about = clips(0)
    decision = decide(heard(scores, 2, 1), heard(scores, 12, 2), **about, dropped=7, resamples=400)
    assert decision.promoted
    assert decision.delta is not None
    assert decision.lo is not None
    assert 0 < decision.lo < decision.delta
    assert f"difference {decision.delta:+.3f}" in decision.reason
    assert "120 test clips of 30 singers (7 more left out, because a model had trained on them)" in decision.reason


def test_a_worse_challenger_is_refused() -> None:
    scores, about = clips(0)
    decision = decide(heard(scores, 12, 2), heard(scores, 2, 1), **about, resamples=400)
    assert not decision.promoted
    assert decision.hi is not None
    assert decision.hi < 0
    assert "not shown to be above 0" in decision.reason


def test_a_model_never_replaces_itself() -> None:
    scores, about = clips(0)
    predictions = heard(scores, 5, 1)
    decision = decide(predictions, predictions.copy(), **about, margin=-0.5)
    assert (decision.promoted, decision.delta, decision.lo, decision.hi) == (False, 0.0, 0.0, 0.0)
    assert "equal" in decision.reason


def test_a_margin_asks_for_more() -> None:
    scores, about = clips(0)
    pair = heard(scores, 2, 1), heard(scores, 12, 2)
    assert decide(*pair, **about, resamples=400).promoted
    strict = decide(*pair, **about, resamples=400, margin=0.5)
    assert not strict.promoted
    assert "not shown to be above 0.5" in strict.reason


def test_hearing_only_the_domain_is_refused_with_and_without_a_champion() -> None:
    scores, about = clips(3)
    room = np.where(scores < 85, 68.0, 92.0) + np.random.default_rng(4).normal(0, 3, len(scores))
    first = decide(room, None, **about, resamples=400)
    assert not first.promoted
    assert "reaches the 0.3 required" in first.reason
    assert "not shown to be above 0" in first.reason
    against = decide(room, np.random.default_rng(5).normal(0, 1, len(scores)), **about, resamples=400)
    assert against.lo is not None
    assert against.lo > 0
    assert not against.promoted


def test_a_first_model_must_rank() -> None:
    scores, about = clips(0)
    good = decide(heard(scores, 4, 1), None, **about, resamples=400)
    assert good.promoted
    assert (good.delta, good.lo, good.hi) == (None, None, None)
    assert not decide(heard(scores, 4, 1), None, **about, resamples=400, min_spearman=0.999).promoted
    constant = decide(np.full(len(scores), 75.0), None, **about, resamples=50)
    assert not constant.promoted
    assert "undefined" in constant.reason


@pytest.mark.parametrize(("constant", "named"), [(0, "challenger"), (1, "champion")])
def test_a_constant_model_cannot_be_compared(constant: int, named: str) -> None:
    scores, about = clips(0)
    models = [heard(scores, 4, 1), heard(scores, 4, 2)]
    models[constant] = np.full(len(scores), 75.0)
    decision = decide(*models, **about, resamples=50)
    assert not decision.promoted
    assert f"the {named}'s Spearman is undefined" in decision.reason


def test_too_little_to_judge_by_is_refused() -> None:
    scores, about = clips(0, singers=2, each=4)
    few = decide(scores, None, **about)
    assert not few.promoted
    assert "8 test clips of 2 singers, where at least 10 clips of 2 singers are needed" in few.reason
    one = {**clips(0, singers=5)[1], "singers": ["only"] * 20}
    assert "20 test clips of 1 singer," in decide(one["scores"], None, **one).reason
    nothing = decide([], None, scores=[], singers=[], sources=[])
    assert "0 test clips of no singer" in nothing.reason


def test_few_and_unknown_singers_are_mentioned() -> None:
    scores, about = clips(0, singers=5)
    assert "5 singers, so few singers that intervals are rough" in decide(scores, None, **about, resamples=50).reason
    names = [None if number < 3 else name for number, name in enumerate(about["singers"])]
    assert "5 singers and 3 unknown singers" in decide(scores, None, **{**about, "singers": names}).reason


def test_different_clips_are_an_error() -> None:
    scores, about = clips(0)
    with pytest.raises(DataError, match="scores 120, challenger 119, singers 120, sources 120, champion 120"):
        decide(scores[1:], scores, **about)


def test_equal_models_are_rarely_promoted() -> None:
    promoted = 0
    for trial in range(500):
        scores, about = clips(trial, singers=30, each=2)
        singer = np.repeat(np.random.default_rng([trial, 9]).normal(0, 3, 30), 2)  # what both mishear of a singer
        pair = [heard(scores + singer, 4, seed) for seed in (2 * trial, 2 * trial + 1)]
        promoted += decide(*pair, **about, resamples=120, seed=trial).promoted
    assert promoted <= 25  # 5 %


def test_the_winner_has_the_best_mean_over_seeds() -> None:
    assert choose_winner({"baseline": [0.5, 0.6], "hybrid": [0.9, 0.1]}) == "baseline"
    assert choose_winner({"baseline": [0.5, 0.5], "hybrid": [0.5, 0.5]}) == "baseline"
    assert choose_winner({"hybrid": [0.5], "baseline": [0.5]}) == "hybrid"
    assert choose_winner({"baseline": [0.3, 0.3], "hybrid": [0.5, math.nan]}) == "baseline"
    assert choose_winner({"baseline": [None], "hybrid": [0.1]}) == "hybrid"


def test_a_winner_needs_values() -> None:
    with pytest.raises(DataError, match="none for any plan"):
        choose_winner({})
    with pytest.raises(DataError, match=r"none for \['hybrid'\]"):
        choose_winner({"baseline": [0.5], "hybrid": []})
    with pytest.raises(DataError, match="None of 3 validation values of 2 plans is defined"):
        choose_winner({"baseline": [None, math.nan], "hybrid": [None]})
