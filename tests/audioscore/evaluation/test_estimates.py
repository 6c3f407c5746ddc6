import math
import re
from dataclasses import replace

import numpy as np
import pytest

from audioscore.evaluation.bootstrap import wilson
from audioscore.evaluation.estimates import NO_SOURCE, WILSON, HeldOut, hold_out
from audioscore.evaluation.metrics import mae
from audioscore.evaluation.predictions import Prediction


def test_a_mean_is_that_of_each_expanded_resample(test: HeldOut) -> None:
    values, member = np.random.default_rng(1).normal(0, 1, 48), np.arange(0, 48, 3)
    found = test.mean(values, member)
    means = [np.repeat(values[member], drawn).mean() for drawn in test.counts[:, member]]
    assert found.value == pytest.approx(values[member].mean())
    assert (found.lo, found.hi) == pytest.approx(tuple(np.quantile(means, [0.05, 0.95])))


def test_a_share_that_never_changes_has_wilsons_interval_over_singers(test: HeldOut) -> None:
    every = test.share(np.ones(48, dtype=bool))
    assert (every.value, every.lo, every.hi) == (1.0, *wilson(1.0, 12, 0.9))
    assert every.as_dict()["method"] == WILSON
    some = test.share(np.arange(48) % 7 > 0)
    assert 0 < some.lo < some.value < some.hi < 1
    assert "method" not in some.as_dict()


def test_clips_of_one_singer_or_none_have_no_interval(test: HeldOut) -> None:
    predicted = test.scores + 1
    of_one = test.estimate(mae, predicted, np.arange(4))
    assert "4 clips" in of_one.no_interval
    assert of_one.as_dict() == {"value": pytest.approx(1), "lo": None, "hi": None, "no_interval": of_one.no_interval}
    assert test.estimate(mae, predicted, np.arange(1)).no_interval not in (None, of_one.no_interval)
    none = test.estimate(mae, predicted, np.arange(0), "reason")
    assert none.as_dict() == {"value": None, "lo": None, "hi": None, "no_interval": "reason"}
    assert test.singer_count(np.arange(8)) == 2


def test_few_singers_have_wilsons_interval_of_a_share_alone(test: HeldOut) -> None:
    member, predicted = np.arange(16), test.scores + np.arange(48) % 3
    four = test.estimate(mae, predicted, member)
    assert math.isnan(four.lo)
    assert re.search(r"\b4 singers.*\b5\b", four.no_interval)
    assert test.estimate(mae, predicted, np.arange(20)).no_interval is None
    share = test.share(np.arange(48) % 4 > 0, member)
    assert (share.value, share.lo, share.hi) == (0.75, *wilson(0.75, 4, 0.9))
    assert share.as_dict()["method"] == WILSON


def test_all_clips_of_few_singers_have_an_interval(rows: list[Prediction]) -> None:
    test, warnings = hold_out(rows[:12], 100, 0.9, 0)
    assert len(warnings) == 1
    assert "3 test singers" in warnings[0]
    assert test.estimate(mae, test.scores + np.arange(12) % 5).no_interval is None


def test_a_figure_that_most_resamples_lack_has_no_interval(rows: list[Prediction]) -> None:
    test, _ = hold_out(rows, 400, 0.95, 0)
    lone = replace(test, counts=np.where(np.arange(400)[:, None] % 3 == 0, test.counts, 0))
    found = lone.estimate(mae, test.scores + 1)
    assert (found.value, found.undefined) == (pytest.approx(1), 266)
    assert "266 of 400 resamples" in found.no_interval


def test_missing_and_single_singers_give_warnings(rows: list[Prediction]) -> None:
    test, warnings = hold_out([replace(row, source=None, singer_id=None) for row in rows], 20, 0.95, 0)
    assert [("48 of 48" in text) for text in warnings] == [True]
    assert set(test.sources) == {NO_SOURCE}
    alone, warnings = hold_out([replace(row, singer_id="a") for row in rows], 20, 0.95, 0)
    assert len(warnings) == 1
    assert alone.counts.shape == (0, 48)
