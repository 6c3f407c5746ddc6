import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from audioscore.errors import DataError
from audioscore.scoring.calibration import Calibration, fit_calibration, isotonic


def simulate(rng: np.random.Generator, singers: int = 20, clips: int = 3) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Raw outputs whose scores are a given monotone map of them, plus noise per singer and per clip."""
    clusters = np.repeat(np.arange(singers), clips)
    raw = rng.normal(0, 1, singers * clips)
    own = rng.normal(0, 1.5, singers)[clusters]
    scores = 75 + 8 * np.tanh(raw) + own + rng.normal(0, 2, len(raw))
    return raw, scores, [f"singer{cluster}" for cluster in clusters]


def test_a_linear_relation_is_found_to_a_hundredth_of_its_range() -> None:
    raw = np.linspace(-2, 2, 200)
    fitted = fit_calibration(raw, 70 + 10 * raw, [str(index % 20) for index in range(200)])
    np.testing.assert_allclose(fitted.apply(raw), 70 + 10 * raw, atol=0.01 * 40 + 0.1)
    assert fitted.half_width < 0.5
    np.testing.assert_allclose(fitted.apply([2.5, -2.5]), [95, 45], atol=1.0)


def test_the_order_never_changes_and_there_are_no_ties() -> None:
    rng = np.random.default_rng(0)
    for scores in (rng.uniform(50, 99, 60), np.sort(rng.uniform(50, 99, 60))[::-1], np.repeat([60.0, 90.0], 30)):
        raw = np.sort(rng.normal(0, 1, 60))
        fitted = fit_calibration(raw, scores, [str(index % 10) for index in range(60)])
        assert (np.diff(fitted.raw) > 0).all()
        assert (np.diff(fitted.score) > 0).all()
        found = fitted.apply(np.linspace(raw[0] - 1, raw[-1] + 1, 300))
        assert (np.diff(found) >= 0).all()
        assert (np.diff(found[(found > 0) & (found < 100)]) > 0).all()


def test_scores_stay_within_0_and_100() -> None:
    fitted = Calibration((0.0, 1.0), (60.0, 90.0), 15.0)
    assert fitted.apply([-1e6, 1e6]).tolist() == [0.0, 100.0]
    low, high = fitted.interval([3.0, 50.0, 99.0])
    assert low.tolist() == [0.0, 35.0, 84.0]
    assert high.tolist() == [18.0, 65.0, 100.0]


def test_beyond_the_knots_the_map_continues_with_the_mean_slope() -> None:
    fitted = Calibration((0.0, 1.0, 2.0), (60.0, 80.0, 84.0), 1.0)
    np.testing.assert_allclose(fitted.apply([-1.0, 0.0, 0.5, 1.5, 3.0]), [48.0, 60.0, 70.0, 82.0, 96.0])


def test_a_constant_model_scores_everything_at_the_mean() -> None:
    scores = np.linspace(60, 90, 20)
    fitted = fit_calibration(np.full(20, 0.3), scores, [str(index % 5) for index in range(20)])
    np.testing.assert_allclose(fitted.apply([0.3, 0.4]), 75.0, atol=1e-3)
    assert fitted.half_width == pytest.approx(14.2, abs=3.0)


@pytest.mark.parametrize(("scores", "match"), [
    (np.linspace(60, 90, 7), r"\b8 .*\b7 clips, 7\b"),
    (np.full(30, 80.0), r"\b8 .*\b30 clips, 1\b"), (np.zeros(0), r"\b8 .*\b0 clips, 0\b"),
])  # fmt: skip
def test_too_few_clips_or_scores_are_an_error(scores: np.ndarray, match: str) -> None:
    with pytest.raises(DataError, match=match):
        fit_calibration(np.arange(len(scores)), scores, ["a"] * len(scores))


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_intervals_cover_their_share_of_new_singers(coverage: float) -> None:
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(60):
        fitted = fit_calibration(*simulate(rng), coverage=coverage)
        raw, scores, _ = simulate(rng)
        low, high = fitted.interval(fitted.apply(raw))
        covered.append(np.mean((low <= scores) & (scores <= high)))
    assert coverage - 0.02 <= np.mean(covered) < coverage + 0.02


def test_intervals_cover_each_source_and_are_wide_where_errors_are_large() -> None:
    rng = np.random.default_rng(4)
    covered: dict[str, list[float]] = {"ktv": [], "acapella": []}

    def draw() -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray]:
        raw, _, clusters = simulate(rng, singers=80, clips=4)
        sources = np.where(np.repeat(np.arange(80), 4) % 2, "ktv", "acapella")
        spread = np.where(sources == "ktv", 4.0, 1.0)
        return raw, 75 + 6 * raw + spread * rng.normal(0, 1, len(raw)), clusters, sources

    for _ in range(40):
        raw, scores, clusters, sources = draw()
        fitted = fit_calibration(raw, scores, clusters, sources.tolist())
        raw, scores, _, sources = draw()
        predicted = fitted.apply(raw)
        low, high = fitted.interval(predicted, sources.tolist())
        for name, found in covered.items():
            own = sources == name
            found.append(float(np.mean((low <= scores)[own] & (scores <= high)[own])))
    assert {name: 0.88 <= np.mean(found) <= 0.92 for name, found in covered.items()} == dict.fromkeys(covered, True)
    width = {name: fitted.interval([75.0], [name])[1][0] - 75.0 for name in ("ktv", "acapella", "unknown")}
    assert width["acapella"] < width["unknown"] < width["ktv"]
    assert width["unknown"] == fitted.interval([75.0])[1][0] - 75.0


def test_intervals_end_at_the_ends_of_the_scale() -> None:
    raw = np.linspace(0, 1, 60)
    fitted = fit_calibration(raw, 50 + 49 * raw, [str(n % 9) for n in range(60)])
    assert fitted.scale == (50.0, 99.0)
    low, high = fitted.interval([30.0, 50.1, 98.95, 99.9])
    assert (low[0], low[1], high[2], high[3]) == (30.0, 50.0, 99.0, 99.9)
    assert fit_calibration(raw, 10 + 49 * raw, [str(n % 9) for n in range(60)]).scale == (0.0, 100.0)


def test_descriptions_of_earlier_versions_have_one_width() -> None:
    earlier = {"raw": [0.0, 1.0], "score": [60.0, 90.0], "half_width": 5.0, "coverage": 0.9}
    low, high = Calibration.from_json(earlier).interval([70.0, 98.0], ["ktv", None])
    assert (low.tolist(), high.tolist()) == ([65.0, 93.0], [75.0, 100.0])


def test_the_interval_is_the_quantile_of_residuals_of_singers_left_out() -> None:
    # Two singers with constant scores: a map fitted on one of them is exactly 10 points off for the other.
    raw = np.tile(np.linspace(0, 1, 20), 2)
    scores = np.concatenate([np.full(20, 60.0), np.full(20, 70.0)]) + 1e-9 * raw
    fitted = fit_calibration(raw, scores, ["a"] * 20 + ["b"] * 20)
    assert fitted.half_width == pytest.approx(10.0, abs=0.05)


def test_json_roundtrip() -> None:
    fitted = fit_calibration(*simulate(np.random.default_rng(2)))
    again = Calibration.from_json(json.loads(json.dumps(fitted.to_json())))
    assert again == fitted


@given(st.lists(st.tuples(st.floats(-100, 100), st.integers(1, 20)), min_size=1, max_size=20))
def test_isotonic_equals_scipy(points: list[tuple[float, int]]) -> None:
    values, weights = map(np.array, zip(*points, strict=True))
    fitted = isotonic(values, weights)
    np.testing.assert_allclose(fitted, isotonic_regression(values, weights=weights.astype(float)).x)
    assert (np.diff(fitted) >= 0).all()
    assert np.average(fitted, weights=weights) == pytest.approx(np.average(values, weights=weights), abs=1e-9)
