import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from audioscore.evaluation.bootstrap import holm, interval, two_sided_p, wilson


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0, -2.0, 3.0])
def test_p_of_normal_resamples_is_the_normal_ones(shift: float) -> None:
    quantiles = np.array([NormalDist(shift, 1).inv_cdf((k + 0.5) / 20_000) for k in range(20_000)])
    assert two_sided_p(quantiles) == pytest.approx(2 * NormalDist().cdf(-abs(shift)), abs=2e-4)


@given(st.lists(st.floats(-1, 1), min_size=40, max_size=200))
def test_p_lies_in_its_range_and_forgets_the_sign(values: list[float]) -> None:
    p = two_sided_p(values)
    assert 2 / (len(values) + 1) <= p <= 1
    assert p == two_sided_p([-value for value in values])


def test_p_is_small_where_the_interval_leaves_zero_out() -> None:
    rng = np.random.default_rng(0)
    for shift in np.linspace(1.5, 2.5, 21):
        values = rng.normal(shift, 1, 2000)
        lo, hi = interval(values)
        if abs(two_sided_p(values) - 0.05) > 2e-3:
            assert (two_sided_p(values) < 0.05) == (lo > 0 or hi < 0)


def test_undefined_resamples_are_left_out_of_p() -> None:
    assert two_sided_p([math.nan, *[0.1] * 19, math.nan]) == pytest.approx(0.1)
    assert math.isnan(two_sided_p([math.nan]))
    assert math.isnan(two_sided_p([]))
    assert two_sided_p([0.0] * 50) == 1.0


def by_closed_testing(p_values: dict[str, float]) -> dict[str, float]:
    """Holm's by its reason: reject one hypothesis if Bonferroni rejects every intersection that it is part of."""
    subsets = [
        subset for size in range(1, len(p_values) + 1) for subset in itertools.combinations(sorted(p_values), size)
    ]
    return {
        name: max(min(1.0, len(s) * min(p_values[one] for one in s)) for s in subsets if name in s) for name in p_values
    }


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_equals_closed_testing(values: list[float]) -> None:
    p_values = {f"plan {place}": value for place, value in enumerate(values)}
    assert holm(p_values) == pytest.approx(by_closed_testing(p_values))


def test_an_undefined_p_is_no_member_of_the_family() -> None:
    adjusted = holm({"a": 0.02, "b": math.nan, "c": 0.03})
    assert (adjusted["a"], adjusted["c"]) == (pytest.approx(0.04), pytest.approx(0.04))
    assert math.isnan(adjusted["b"])
    assert holm({}) == {}


@pytest.mark.parametrize(("hits", "draws"), [(0, 7), (3, 7), (7, 7), (1, 1), (180, 200)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_equals_scipy(hits: int, draws: int, confidence: float) -> None:
    judge = stats.binomtest(hits, draws).proportion_ci(confidence, method="wilson")
    assert wilson(hits / draws, draws, confidence) == pytest.approx((judge.low, judge.high), abs=1e-12)
