import math
import re

import numpy as np
import pytest

from audioscore.data.agreement import describe_agreement, rater_agreement

# Shrout and Fleiss 1979, table 2: four raters, six targets; ICC(2,1) = .29 and ICC(2,4) = .62.
SHROUT_FLEISS = [(9, 2, 5, 8), (6, 1, 3, 2), (8, 4, 6, 8), (7, 1, 2, 6), (10, 5, 6, 9), (6, 2, 4, 7)]


def test_icc_matches_the_published_value_and_reliability_spearman_brown() -> None:
    found = rater_agreement(SHROUT_FLEISS)
    assert found is not None
    assert (found.clips, found.raters, found.complete) == (6, 4, 6)
    assert found.icc_single == pytest.approx(0.29, abs=0.005)
    assert found.icc_mean == pytest.approx(0.62, abs=0.005)
    matrix = np.corrcoef(np.array(SHROUT_FLEISS, float).T)
    mean = matrix[np.triu_indices(4, 1)].mean()
    assert found.pairwise_r == pytest.approx(mean)
    assert found.reliability == pytest.approx(4 * mean / (1 + 3 * mean))
    assert found.ceiling == pytest.approx(math.sqrt(4 * mean / (1 + 3 * mean)))


def test_the_ceiling_is_the_correlation_of_the_true_score() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(75, 5, 4000)
    ratings = truth[:, None] + rng.normal(0, 11, (4000, 5))
    found = rater_agreement(ratings.tolist())
    assert found is not None
    assert found.ceiling == pytest.approx(np.corrcoef(truth, ratings.mean(axis=1))[0, 1], abs=0.02)


def test_missing_scores_are_ignored() -> None:
    rows = [(80.0, None, 82.0), (70.0, 71.0), (90.0, None, 95.0), (60.0, None, 58.0), (None, 50.0), ()]
    found = rater_agreement(rows)
    assert found is not None
    assert (found.clips, found.raters, found.per_clip, found.complete) == (4, 3, 2.0, 0)
    assert found.pairwise_r == pytest.approx(np.corrcoef([80, 90, 60], [82, 95, 58])[0, 1])
    assert (found.icc_single, found.icc_mean) == (None, None)


def test_undefined_agreement_and_raters_without_scores() -> None:
    assert rater_agreement([]) is None
    assert rater_agreement([(80.0,), (70.0,)]) is None
    few = rater_agreement([(80.0, 70.0), (60.0, 50.0)])
    assert few is not None
    assert few.pairwise_r is None
    assert re.findall(r"\d+", describe_agreement(few)) == ["2", "2"]
    same = rater_agreement([(80.0, 80.0)] * 5)
    assert same is not None
    assert (same.pairwise_r, same.icc_single) == (None, None)
    opposed = rater_agreement([(80.0, 60.0), (70.0, 70.0), (60.0, 80.0)])
    assert opposed is not None
    assert opposed.ceiling is None
    assert re.findall(r"\d+", describe_agreement(opposed))[:2] == ["2", "3"]
    idle = rater_agreement([(None, 80.0, 82.0), (None, 70.0, 71.0), (None, 60.0, 66.0)])
    assert idle is not None
    assert idle.raters == 2
