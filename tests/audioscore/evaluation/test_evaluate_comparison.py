import math
from collections.abc import Callable

import numpy as np
import pytest

from audioscore.evaluation.bootstrap import (
    ResampledClips,
    ResampledValue,
    cluster_counts,
    holm,
    paired_difference,
    resample_test_split,
    two_sided_p,
)
from audioscore.evaluation.evaluate import compare_plans, compare_variants, default_reference, resampled_ranks
from audioscore.evaluation.metrics import spearman, within_sources
from audioscore.evaluation.predictions import Prediction

NOISE = {"baseline": 5.0, "hybrid": 4.0, "muq_frozen": 6.0, "campplus_only": 30.0}


@pytest.fixture
def test(make_predictions: Callable[..., list[Prediction]]) -> ResampledClips:
    rows = [row for row in make_predictions({"baseline": 1.0}, (0,)) if row.split == "test"]
    return resample_test_split(rows, 400, 0.95, 0)[0]


@pytest.fixture
def predicted(test: ResampledClips) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    return {plan: test.scores + rng.normal(0, noise, 48) for plan, noise in NOISE.items()}


def test_the_difference_is_the_paired_one(test: ResampledClips, predicted: dict[str, np.ndarray]) -> None:
    ranks = {plan: resampled_ranks(values, test) for plan, values in predicted.items()}
    found = compare_plans(ranks, test)
    first, second = predicted["hybrid"], predicted["baseline"]
    overall = paired_difference(spearman, test.scores, first, second, test.counts)
    within = paired_difference(within_sources(test.sources), test.scores, first, second, test.counts)
    assert found == {**overall.as_dict("delta"), "within_source": within.as_dict("delta")}
    assert compare_plans({"baseline": ranks["baseline"]}, test) is None


def test_every_other_plan_is_compared_and_corrected(test: ResampledClips, predicted: dict[str, np.ndarray]) -> None:
    ranks = {plan: resampled_ranks(values, test) for plan, values in predicted.items()}
    found = compare_variants(ranks, "hybrid", test)
    assert (found["reference"], found["family"]) == ("hybrid", 3)
    assert list(found["compared"]) == ["baseline", "muq_frozen", "campplus_only"]
    raw = {}
    for plan, figures in found["compared"].items():
        resampled = spearman(test.scores, predicted[plan], test.counts) - spearman(
            test.scores, predicted["hybrid"], test.counts
        )
        raw[plan] = two_sided_p(resampled)
        assert figures["spearman"]["p"] == pytest.approx(raw[plan])
        assert figures["spearman"]["delta"] == pytest.approx(
            spearman(test.scores, predicted[plan]) - spearman(test.scores, predicted["hybrid"])
        )
    adjusted = holm(raw)
    assert {plan: one["spearman"]["p_holm"] for plan, one in found["compared"].items()} == pytest.approx(adjusted)
    worst = found["compared"]["campplus_only"]["spearman_within_source"]
    assert worst["hi"] < 0
    assert (worst["p"], worst["p_holm"]) == (pytest.approx(2 / 401), pytest.approx(3 * 2 / 401))


def test_a_plan_against_itself_is_no_finding_and_an_undefined_one_no_member(test: ResampledClips) -> None:
    same = resampled_ranks(test.scores + np.sin(np.arange(48)), test)
    undefined = dict.fromkeys(same, ResampledValue(math.nan, np.full(400, math.nan)))
    found = compare_variants({"a": same, "b": same, "c": undefined}, "a", test)["compared"]
    assert (found["b"]["spearman"]["delta"], found["b"]["spearman"]["p"], found["b"]["spearman"]["p_holm"]) == (0, 1, 1)
    assert (found["c"]["spearman"]["p"], found["c"]["spearman"]["p_holm"]) == (None, None)
    assert found["c"]["spearman"]["no_interval"]


def test_the_reference_is_plan_a_unless_validation_names_one() -> None:
    nothing: dict[str, ResampledValue] = {}
    assert default_reference({"hybrid": nothing, "baseline": nothing}) == "baseline"
    assert default_reference({"hybrid": nothing, "muq_frozen": nothing}) == "hybrid"


def test_among_equal_plans_findings_are_as_rare_as_they_should_be() -> None:
    """150 families of 4 equal plans, 12 singers: at 5 %, more than 15 false positives have a probability of 0.4 %."""
    singer, findings = np.repeat(np.arange(12), 4), 0
    for number in range(150):
        rng = np.random.default_rng(number)
        scores = 75 + 8 * rng.normal(0, 1, 12)[singer] + rng.normal(0, 4, 48)
        counts = cluster_counts(singer, 200, number)
        plans = [scores + rng.normal(0, 4, 12)[singer] + rng.normal(0, 6, 48) for _ in range(4)]
        reference, *others = [spearman(scores, predicted, counts) for predicted in plans]
        p_values = {str(index): two_sided_p(values - reference) for index, values in enumerate(others)}
        findings += min(holm(p_values).values()) < 0.05
    assert findings <= 15
