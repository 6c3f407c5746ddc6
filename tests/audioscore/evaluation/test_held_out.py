import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from audioscore.evaluation.held_out import NO_SOURCE, WILSON, HeldOut, hold_out
from audioscore.evaluation.metrics import mae
from audioscore.evaluation.predictions import Prediction
from audioscore.evaluation.significance import wilson


@pytest.fixture
def rows(make_predictions: Callable[..., list[Prediction]]) -> list[Prediction]:
    """48 test clips, 4 a singer."""
    return [row for row in make_predictions({"baseline": 6.0}, (0,)) if row.split == "test"]


@pytest.fixture
def test(rows: list[Prediction]) -> HeldOut:
    return hold_out(rows, 300, 0.9, 0)[0]


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


def test_clips_of_one_singer_or_none_have_no_interval_and_say_why(test: HeldOut) -> None:
    predicted = test.scores + 1
    of_one = test.estimate(mae, predicted, np.arange(4))
    assert of_one.as_dict() == {
        "value": pytest.approx(1), "lo": None, "hi": None, "no_interval": "all 4 clips are by one singer",
    }  # fmt: skip
    assert test.estimate(mae, predicted, np.arange(1)).no_interval == "it rests on one clip"
    none = test.estimate(mae, predicted, np.arange(0), "there is no clip")
    assert none.as_dict() == {"value": None, "lo": None, "hi": None, "no_interval": "there is no clip"}
    assert test.singer_count(np.arange(8)) == 2


def test_a_slice_of_few_singers_has_a_share_with_wilsons_interval_and_nothing_else(test: HeldOut) -> None:
    member, predicted = np.arange(16), test.scores + np.arange(48) % 3
    four = test.estimate(mae, predicted, member)
    assert math.isnan(four.lo)
    assert four.no_interval == "it rests on 4 singers, and an interval on 5 or more"
    assert test.estimate(mae, predicted, np.arange(20)).no_interval is None
    share = test.share(np.arange(48) % 4 > 0, member)
    assert (share.value, share.lo, share.hi) == (0.75, *wilson(0.75, 4, 0.9))
    assert share.as_dict()["method"] == WILSON


def test_all_clips_of_few_singers_have_an_interval(rows: list[Prediction]) -> None:
    test, warnings = hold_out(rows[:12], 100, 0.9, 0)
    assert "Only 3 test singers" in warnings[0]
    assert test.estimate(mae, test.scores + np.arange(12) % 5).no_interval is None


def test_a_figure_that_most_resamples_lack_has_no_interval(rows: list[Prediction]) -> None:
    test, _ = hold_out(rows, 400, 0.95, 0)
    lone = replace(test, counts=np.where(np.arange(400)[:, None] % 3 == 0, test.counts, 0))
    found = lone.estimate(mae, test.scores + 1)
    assert found.value == pytest.approx(1)
    assert found.undefined == 266
    assert found.no_interval == "the figure is undefined in 266 of 400 resamples"


def test_what_a_reader_must_know_is_said(rows: list[Prediction]) -> None:
    test, warnings = hold_out([replace(row, source=None, singer_id=None) for row in rows], 20, 0.95, 0)
    assert warnings == ["48 of 48 test clips have no singer; each counts as a singer of its own."]
    assert set(test.sources) == {NO_SOURCE}
    alone, warnings = hold_out([replace(row, singer_id="a") for row in rows], 20, 0.95, 0)
    assert warnings == ["All test clips are by one singer: there are no intervals."]
    assert alone.counts.shape == (0, 48)
    _, warnings = hold_out(rows[:12], 20, 0.95, 0)
    assert warnings == ["Only 3 test singers: the intervals are rough, and likely too narrow."]
