from collections.abc import Callable
from dataclasses import replace

import pytest

from audioscore.data.clips import Clip
from audioscore.errors import UsageError
from audioscore.evaluation.bootstrap import ResampledClips, resample_test_split
from audioscore.evaluation.controls import constant_mean, evaluate_controls, measured_controls, source_means
from audioscore.evaluation.predictions import Prediction

Make = Callable[..., list[Prediction]]


def test_measured_controls_hold_what_was_measured() -> None:
    measured = Clip("a.wav", sha256="aa", seconds=3.0, level_db=-20.0, snr_db=35.0, bytes=100)
    assert measured_controls([measured, Clip("b.wav", sha256="bb"), Clip("c")]) == {
        "duration": {"aa": 3.0}, "level": {"aa": -20.0}, "SNR": {"aa": 35.0}, "file size": {"aa": 100.0}
    }  # fmt: skip


def test_source_means_come_from_outside_the_test_split(make_predictions: Make) -> None:
    rows = make_predictions()
    outside = [r for r in rows if r.split != "test" and r.plan == "baseline" and r.seed == 0]
    ktv = [r.human for r in outside if r.source == "ktv"]
    means = source_means(rows)
    assert (len(means), means[f"{0:064x}"]) == (48, pytest.approx(sum(ktv) / len(ktv)))
    assert len(set(means.values())) == 2


def test_a_source_only_in_the_test_split_gets_the_overall_mean(make_predictions: Make) -> None:
    rows = [replace(r, source="live") if r.split == "test" else r for r in make_predictions()]
    outside = {r.sha256: r.human for r in rows if r.split != "test"}
    means = set(source_means(rows).values())
    assert (len(means), means.pop()) == (1, pytest.approx(sum(outside.values()) / 48))
    assert source_means([r for r in rows if r.split == "test"]) == {}


def test_the_constant_is_the_mean_of_train(make_predictions: Make) -> None:
    rows = make_predictions()
    train = {r.sha256: r.human for r in rows if r.split == "train"}
    constant = constant_mean(rows)
    assert (len(constant), list(constant.values())) == (48, pytest.approx([sum(train.values()) / 24] * 48))
    without = [r for r in rows if r.split != "train"]
    val = {r.sha256: r.human for r in without if r.split == "val"}
    assert list(constant_mean(without).values()) == pytest.approx([sum(val.values()) / 24] * 48)
    assert constant_mean([r for r in rows if r.split == "test"]) == {}


def held_out(rows: list[Prediction]) -> ResampledClips:
    test = {r.clip: r for r in rows if r.split == "test"}
    return resample_test_split([row for _, row in sorted(test.items())], 50, 0.95, 0)[0]


def test_a_constant_has_errors_and_no_rank(make_predictions: Make) -> None:
    rows = make_predictions()
    found, warnings = evaluate_controls({}, rows, held_out(rows))
    assert list(found) == ["source", "constant"]
    assert warnings == []
    constant = found["constant"]
    for name in ("spearman", "spearman_within_source"):
        assert constant[name]["value"] is None
        assert constant[name]["no_interval"]
    test = {r.sha256: r.human for r in rows if r.split == "test"}
    mean = next(iter(constant_mean(rows).values()))
    assert constant["mae"]["value"] == pytest.approx(sum(abs(score - mean) for score in test.values()) / 48)
    assert constant["mae"]["lo"] < constant["mae"]["value"] < constant["mae"]["hi"]
    assert found["source"]["mae"]["value"] < constant["mae"]["value"]
    within = found["source"]["spearman_within_source"]
    assert within["value"] is None
    assert "source" in within["no_interval"]


def test_a_measured_control_has_a_rank_and_no_error(make_predictions: Make) -> None:
    rows = make_predictions()
    found, _ = evaluate_controls({"SNR": {r.sha256: r.human for r in rows}, "empty": {}}, rows, held_out(rows))
    assert (found["SNR"]["spearman"]["value"], found["SNR"]["mae"]["value"]) == (1.0, None)
    assert found["SNR"]["mae"]["no_interval"]
    assert found["empty"]["spearman"]["value"] is None
    assert found["empty"]["spearman"]["no_interval"]


@pytest.mark.parametrize("name", ["source", "constant"])
def test_reserved_names_are_an_error(name: str, make_predictions: Make) -> None:
    rows = make_predictions()
    with pytest.raises(UsageError, match=rf"\b{name}\b"):
        evaluate_controls({name: {}}, rows, held_out(rows))
