import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from audioscore.config import EvaluationSection
from audioscore.errors import DataError
from audioscore.evaluation.gate.decision import CHAMPION, compare_with_champion, decide
from audioscore.evaluation.gate.slices import SliceRule
from audioscore.evaluation.predictions import Prediction


def clips(seed: int, singers: int = 30, each: int = 4) -> tuple[np.ndarray, dict[str, Any]]:
    """Human scores of two sources in two bands, and the arguments that describe the clips."""
    rng = np.random.default_rng(seed)
    ktv = np.repeat(np.arange(singers) % 2 == 0, each)
    scores = np.where(ktv, rng.uniform(50, 85, len(ktv)), rng.uniform(85, 99, len(ktv)))
    names = [f"s{number}" for number in np.repeat(np.arange(singers), each)]
    return scores, {"scores": scores, "singers": names, "sources": np.where(ktv, "ktv", "acapella").tolist()}


def predict(scores: np.ndarray, noise: float, seed: int) -> np.ndarray:
    return scores + np.random.default_rng(seed).normal(0, noise, len(scores))


def test_a_better_challenger_is_promoted() -> None:
    scores, about = clips(0)
    decision = decide(predict(scores, 2, 1), predict(scores, 12, 2), **about, dropped=7, resamples=400)
    assert decision.promoted
    assert 0 < decision.lo < decision.delta
    for figure in (f"{decision.delta:+.3f}", "120 test clips", "30 singers", "7 more"):
        assert figure in decision.reason


def test_a_worse_challenger_is_refused() -> None:
    scores, about = clips(0)
    decision = decide(predict(scores, 12, 2), predict(scores, 2, 1), **about, resamples=400)
    assert not decision.promoted
    assert decision.hi < 0
    assert f"{decision.delta:+.3f}" in decision.reason


def test_a_model_never_replaces_itself() -> None:
    scores, about = clips(0)
    predictions = predict(scores, 5, 1)
    decision = decide(predictions, predictions.copy(), **about, margin=-0.5)
    assert (decision.promoted, decision.delta, decision.lo, decision.hi) == (False, 0.0, 0.0, 0.0)


def test_a_margin_asks_for_more() -> None:
    scores, about = clips(0)
    pair = predict(scores, 2, 1), predict(scores, 12, 2)
    assert decide(*pair, **about, resamples=400).promoted
    strict = decide(*pair, **about, resamples=400, margin=0.5)
    assert not strict.promoted
    assert "0.5" in strict.reason


def test_a_model_of_the_domain_alone_is_not_promoted() -> None:
    scores, about = clips(3)
    domain_only = np.where(scores < 85, 68.0, 92.0) + np.random.default_rng(4).normal(0, 3, len(scores))
    first = decide(domain_only, None, **about, resamples=400)
    assert not first.promoted
    assert re.search(r"\b0\.3\b", first.reason)
    against = decide(domain_only, np.random.default_rng(5).normal(0, 1, len(scores)), **about, resamples=400)
    assert against.overall_delta > 0.5
    assert not against.promoted


def test_points_added_to_one_source_do_not_promote_a_copy_of_the_champion() -> None:
    scores, about = clips(3)
    champion = predict(scores, 8, 1) * 0.5
    attack = champion + np.where(np.array(about["sources"]) == "acapella", 8.0, 0.0)
    decision = decide(attack, champion, **about, resamples=400)
    assert decision.overall_delta > 0
    assert (decision.promoted, decision.delta, decision.lo, decision.hi) == (False, 0.0, 0.0, 0.0)


def test_a_fall_of_the_overall_order_prevents_promotion() -> None:
    scores, about = clips(0)
    ktv = np.array(about["sources"]) == "ktv"
    better_within = predict(scores, 1, 1) + np.where(ktv, 30.0, 0.0)
    decision = decide(better_within, predict(scores, 8, 2), **about, resamples=400)
    assert decision.lo > 0 > decision.overall_delta
    assert not decision.promoted
    assert not any(one.verdict == "fell" for one in decision.slices)
    fall = -decision.overall_delta
    assert not decide(better_within, predict(scores, 8, 2), **about, overall_margin=fall - 0.01).promoted
    assert decide(better_within, predict(scores, 8, 2), **about, overall_margin=fall + 0.01).promoted


def test_a_first_model_must_rank() -> None:
    scores, about = clips(0)
    good = decide(predict(scores, 4, 1), None, **about, resamples=400)
    assert good.promoted
    assert (good.delta, good.lo, good.hi) == (None, None, None)
    assert not decide(predict(scores, 4, 1), None, **about, resamples=400, min_spearman=0.999).promoted
    constant = decide(np.full(len(scores), 75.0), None, **about, resamples=50)
    assert not constant.promoted
    assert (constant.delta, constant.lo, constant.hi) == (None, None, None)


@pytest.mark.parametrize(("constant", "named"), [(0, "challenger"), (1, "champion")])
def test_a_constant_model_cannot_be_compared(constant: int, named: str) -> None:
    scores, about = clips(0)
    models = [predict(scores, 4, 1), predict(scores, 4, 2)]
    models[constant] = np.full(len(scores), 75.0)
    decision = decide(*models, **about, resamples=50)
    assert not decision.promoted
    assert re.search(rf"\b{named}\b.*undefined", decision.reason)


def test_too_few_clips_or_singers_are_not_promoted() -> None:
    scores, about = clips(0, singers=2, each=4)
    few = decide(scores, None, **about)
    assert not few.promoted
    assert re.search(r"\b8 .*\b2 singers.*\b10 clips.*\b7 singers", few.reason)
    scores, about = clips(0, singers=2, each=20)
    assert re.search(r"\b40 .*\b2 singers", decide(scores, None, **about).reason)
    assert re.search(r"\b6 singers", decide(clips(0, singers=6)[0], None, **clips(0, singers=6)[1]).reason)
    one = {**clips(0, singers=5)[1], "singers": ["only"] * 20}
    assert re.search(r"\b20 .*\b1 singer\b", decide(one["scores"], None, **one).reason)
    nothing = decide([], None, scores=[], singers=[], sources=[])
    assert not nothing.promoted
    assert re.search(r"\b0 test clips", nothing.reason)


def test_few_and_unknown_singers_are_mentioned() -> None:
    scores, about = clips(0, singers=8)
    assert "8 singers" in decide(scores, None, **about, resamples=50).reason
    names = [None if number < 3 else name for number, name in enumerate(about["singers"])]
    assert "3 unknown" in decide(scores, None, **{**about, "singers": names}).reason


def test_different_clips_are_an_error() -> None:
    scores, about = clips(0)
    with pytest.raises(DataError, match=r"challenger 119, .*champion 120"):
        decide(scores[1:], scores, **about)


def test_a_fall_on_one_source_prevents_promotion() -> None:
    scores, about = clips(0, singers=40)
    ktv = np.array(about["sources"]) == "ktv"
    old = np.where(ktv, predict(100 - scores, 5, 2), predict(scores, 1, 2))
    new = np.where(ktv, predict(scores, 0.5, 1), predict(scores, 4, 3))
    decision = decide(new, old, **about, resamples=400)
    assert decision.lo > 0
    assert not decision.promoted
    fell = {one.title: one for one in decision.slices if one.verdict == "fell"}
    assert "source acapella" in fell
    assert "source ktv" not in fell
    assert "source acapella (" in decision.reason
    assert "80 clips, 20 singers" in decision.reason
    lenient = decide(new, old, **about, resamples=400, slices=SliceRule(margin=1.9))
    assert lenient.promoted
    sizable = [one for one in lenient.slices if one.verdict != "too small"]
    assert f"{len(sizable)} slices" in lenient.reason
    assert "1.9" in lenient.reason


def test_small_slices_are_named_and_not_compared() -> None:
    scores, about = clips(0)
    pair = predict(scores, 2, 1), predict(scores, 12, 2)
    decision = decide(*pair, **about, resamples=100, slices=SliceRule(min_clips=40))
    small = [one for one in decision.slices if one.verdict == "too small"]
    assert [one.kind for one in decision.slices][:2] == ["source", "source"]
    assert {one.kind for one in small} == {"band"}
    assert all(one.clips < 40 and one.delta is None for one in small)
    assert ", ".join(one.title for one in small) in decision.reason
    parts = decision.parts()
    assert (parts["clips"], parts["singers"], parts["dropped"]) == (120, 30, 0)
    assert sum(one["clips"] for one in parts["slices"] if one["kind"] == "band") == 120


def test_a_failed_robustness_test_refuses_and_is_named() -> None:
    scores, about = clips(0)
    pair = predict(scores, 2, 1), predict(scores, 12, 2)
    for old in (pair[1], None):
        assert decide(pair[0], old, **about, resamples=100).promoted
        decision = decide(pair[0], old, **about, resamples=100, failed_tests=["noise 10 dB", "clipping"])
        assert not decision.promoted
        assert "noise 10 dB, clipping" in decision.reason
        assert decision.parts()["probes"] == ["noise 10 dB", "clipping"]


def test_equal_models_are_rarely_promoted() -> None:
    """Equally good pairs with shared and own errors by singer: a promotion rate above 5 % is ruled out (one-sided)."""
    trials, promoted = 500, 0
    for trial in range(trials):
        scores, about = clips(trial, singers=30, each=2)
        rng = np.random.default_rng([trial, 9])
        shared, *own = (np.repeat(rng.normal(0, spread, 30), 2) for spread in (3, 2, 2))
        pair = [scores + shared + errors + rng.normal(0, 4, 60) for errors in own]
        promoted += decide(*pair, **about, resamples=120, seed=trial).promoted
    assert stats.binomtest(promoted, trials).proportion_ci(0.90, "exact").high <= 0.05  # 5 % on each side


Make = Callable[..., list[Prediction]]
BOTH = {"baseline": 0, "hybrid": 1}
SETTINGS = EvaluationSection(resamples=100)


def champion_rows(rows: list[Prediction]) -> list[Prediction]:
    test = [row for row in rows if (row.plan, row.seed, row.split) == ("baseline", 1, "test")]
    return [replace(row, plan="models:/scorer@champion", seed=7) for row in test]


def test_every_model_is_evaluated_on_the_champions_clips(make_predictions: Make) -> None:
    rows = make_predictions()
    champion = champion_rows(rows)[8:]
    found = compare_with_champion(rows, BOTH, champion, SETTINGS)
    assert (found["counts"]["clips"], found["dropped"]) == (40, 8)
    assert list(found["plans"]) == ["baseline", "hybrid", CHAMPION]
    human = [row.human for row in champion]
    old = stats.spearmanr(human, [row.predicted for row in champion]).statistic
    compared_clips = {row.clip for row in champion}
    ours = [row for row in rows if (row.plan, row.seed) == ("hybrid", 1) and row.clip in compared_clips]
    new = stats.spearmanr([row.human for row in ours], [row.predicted for row in ours]).statistic
    assert found["plans"][CHAMPION]["spearman"]["value"] == pytest.approx(old)
    compared = found["variants"]["compared"]["hybrid"]["spearman"]
    assert found["variants"]["reference"] == CHAMPION
    assert compared["delta"] == pytest.approx(new - old)
    assert compared["lo"] < compared["delta"] < compared["hi"]


def test_a_clip_outside_the_test_split_is_an_error(make_predictions: Make) -> None:
    rows = make_predictions()
    other = replace(champion_rows(rows)[0], sha256="f" * 64)
    with pytest.raises(DataError, match=r"\b1 of .*\b49 clips"):
        compare_with_champion(rows, BOTH, [*champion_rows(rows), other], SETTINGS)


def test_a_champion_trained_on_all_test_clips_is_an_error(make_predictions: Make) -> None:
    with pytest.raises(DataError, match=r"\b48 test clips"):
        compare_with_champion(make_predictions(), BOTH, [], SETTINGS)
