import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from audioscore.data.agreement import rater_agreement
from audioscore.evaluation.bootstrap import ResampledClips, resample_test_split
from audioscore.evaluation.noise_ceiling import ceilings, noise_ceiling
from audioscore.evaluation.predictions import Prediction

Array = NDArray[np.float64]
Row = tuple[float | None, ...]


def raters(test: ResampledClips, noise: float, missing: float = 0.3, number: int = 4) -> dict[tuple[str, str], Row]:
    rng = np.random.default_rng(8)
    table = np.clip(test.scores[:, None] + rng.normal(0, noise, (48, number)), 0, 100)
    return {
        key: tuple(None if rng.uniform() < missing else float(score) for score in row)
        for key, row in zip(test.keys, table, strict=True)
    }


def slow(rows: list[Row]) -> float:
    """The ceiling of a sample by `rater_agreement`, which has its own tests; 0 where raters do not agree."""
    found = rater_agreement(rows)
    if found is None or found.pairwise_r is None:
        return math.nan
    return found.ceiling or 0.0


@pytest.mark.parametrize("noise", [3.0, 15.0, 200.0])
def test_each_resample_equals_the_agreement_of_the_expanded_sample(test: ResampledClips, noise: float) -> None:
    ratings = raters(test, noise)
    found = noise_ceiling(ratings, test)
    rated = [index for index, key in enumerate(test.keys) if sum(s is not None for s in ratings[key]) >= 2]
    values = [
        slow([ratings[test.keys[index]] for index in rated for _ in range(drawn[index])]) for drawn in test.counts
    ]
    assert found["clips"] == len(rated) < 48
    assert found["raters"] == 4
    assert found["overall"]["value"] == pytest.approx(slow([ratings[test.keys[index]] for index in rated]))
    assert found["overall"]["lo"] == pytest.approx(np.quantile(values, 0.05))
    assert found["overall"]["hi"] == pytest.approx(np.quantile(values, 0.95))


def test_within_source_is_the_mean_over_sources_by_rated_clips(test: ResampledClips) -> None:
    ratings = raters(test, 6.0)
    found = noise_ceiling(ratings, test)
    sources = np.array(test.sources)
    parts = {}
    for name in ("acapella", "ktv"):
        own = [ratings[key] for key, source in zip(test.keys, sources, strict=True) if source == name]
        own = [row for row in own if sum(score is not None for score in row) >= 2]
        parts[name] = (len(own), slow(own))
        assert found["per_source"][name]["value"] == pytest.approx(parts[name][1])
        assert found["per_source"][name]["clips"] == len(own)
    total = sum(n for n, _ in parts.values())
    assert found["within_source"]["value"] == pytest.approx(sum(n * c for n, c in parts.values()) / total)
    assert found["within_source"]["lo"] < found["within_source"]["value"] < found["within_source"]["hi"]
    assert found["within_source"]["value"] < found["overall"]["value"]  # scores differ less inside a source


def test_the_ceiling_is_the_correlation_of_the_truth() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(75, 10, 20_000)
    table = truth[:, None] + rng.normal(0, 15, (20_000, 3))
    reached = np.corrcoef(truth, table.mean(axis=1))[0, 1]
    assert ceilings(table, np.ones((1, 20_000), dtype=np.int32)) == pytest.approx(reached, abs=0.01)


def test_raters_who_do_not_agree_leave_nothing_to_learn(test: ResampledClips) -> None:
    opposite = {key: (score, 150 - score) for key, score in zip(test.keys, test.scores, strict=True)}
    found = noise_ceiling(opposite, test)["overall"]
    assert (found["value"], found["hi"]) == (0.0, 0.0)
    assert found["note"]


def test_no_raters_few_clips_and_one_singer(rows: list[Prediction], test: ResampledClips) -> None:
    none = noise_ceiling({}, test)
    assert (none["clips"], none["raters"], none["pairwise_r"], none["per_source"]) == (0, 0, None, {})
    for name in ("overall", "within_source"):
        assert (none[name]["value"], bool(none[name]["no_interval"])) == (None, True)
    few = noise_ceiling({key: (70.0, 71.0 + index) for index, key in enumerate(test.keys[:2])}, test)
    assert few["overall"]["value"] is None
    assert "3 clips" in few["overall"]["no_interval"]
    alone, _ = resample_test_split([replace(row, singer_id="a") for row in rows], 20, 0.9, 0)
    found = noise_ceiling(raters(alone, 3.0), alone)["overall"]
    assert found["value"] > 0.9
    assert "one singer" in found["no_interval"]
