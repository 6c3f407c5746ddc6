import json
import re
from typing import Any

import pandas as pd
import pytest

from audioscore.data.gate import expectations
from audioscore.data.gate.expectations import ExpectationResult, TableCheck
from audioscore.data.gate.rejections import ValidationSettings
from audioscore.data.gate.validation import describe

KTV = [50.0 + 35 * n / 200 for n in range(200)]
ROWS, SHIFT = "expect_table_row_count_to_be_between", "expect_column_kl_divergence_to_be_less_than"
NULL, UNIQUE, BETWEEN = (f"expect_column_values_to_{kind}" for kind in ("not_be_null", "be_unique", "be_between"))


def frame(**changes: Any) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "row": [1, 2, 3, 4],
        "audio_file": ["a.wav", "b.wav", "c.wav", "d.wav"],
        "score": [60.0, 70.0, 80.0, 90.0],
        "source": ["ktv", "ktv", "ktv", "acapella"],
        "singer_id": ["s1", "s1", "s2", "s3"],
    }
    return pd.DataFrame({name: values for name, values in (columns | changes).items() if values is not None})


def many(**scores: list[float]) -> pd.DataFrame:
    """A table with these scores by source."""
    rows = [(source, score) for source, values in scores.items() for score in values]
    table = pd.DataFrame(rows, columns=["source", "score"])
    return table.assign(audio_file=[f"{n}.wav" for n in range(len(rows))], singer_id=[f"s{n % 7}" for n in table.index])


def check_table(table: pd.DataFrame, *, last: Any = None, unscored: int = 0, **asked: Any) -> TableCheck:
    settings = ValidationSettings(**{"min_clips": 1, **asked})
    return expectations.check_table(table, settings, last_scores=last, unscored=unscored)


def failures(check: TableCheck) -> list[tuple[str | None, str, str, int]]:
    return [
        (one["column"], one["expectation"], one["severity"], one["unexpected_count"])
        for one in check.results
        if not one["success"]
    ]


def lines(check: TableCheck, expectation: str, column: str | None, word: str = "") -> list[ExpectationResult]:
    return [
        one
        for one in check.results
        if (one["expectation"], one["column"]) == (expectation, column) and word in one["meaning"]
    ]


def check_faults(check: TableCheck, words: dict[int, list[str]]) -> None:
    """The rejected rows are these, with a reason for each of the words."""
    assert sorted(check.row_faults) == sorted(words)
    for row, expected in words.items():
        assert len(check.row_faults[row]) == len(expected)
        assert [one for one, reason in zip(expected, check.row_faults[row], strict=True) if one not in reason] == []


def test_a_good_table_meets_everything_is_json_and_stays_as_it_was() -> None:
    given = frame()
    check = check_table(given, sources=("ktv", "acapella"), min_clips=4, min_per_source=1, min_singers=3)
    pd.testing.assert_frame_equal(given, frame())
    assert (failures(check), check.row_faults) == ([], {})
    assert json.loads(json.dumps(check.results, allow_nan=False)) == check.results
    assert [one["observed"] for one in lines(check, ROWS, None)] == [4]
    singers = lines(check, "expect_column_unique_value_count_to_be_between", "singer_id")
    assert [one["observed"] for one in singers] == [3]


def test_bad_cells_reject_their_rows_and_not_the_table() -> None:
    check = check_table(frame(audio_file=["a.wav", "a.wav", None, "d.wav"], score=[104.0, "eighty", 80.0, 90.0]))
    assert failures(check) == [
        ("audio_file", NULL, "error", 1),
        ("audio_file", UNIQUE, "error", 2),
        ("score", NULL, "error", 1),
        ("score", BETWEEN, "error", 1),
        ("score", BETWEEN, "warning", 1),
    ]
    check_faults(check, {0: ["a.wav", "104"], 1: ["a.wav", "score"], 2: ["file name"]})
    assert "0-100" in check.row_faults[0][1]
    assert check.table_faults == []
    assert lines(check, BETWEEN, "score", "0-100")[0]["examples"] == ["row 1 (a.wav): 104"]
    check = check_table(frame(audio_file=["a.wav", 7, None, "d.wav"]))
    check_faults(check, {1: ["7"], 2: ["file name"]})
    assert lines(check, "expect_column_values_to_be_of_type", "score")[0]["observed"] == "float64"


def test_unusual_scores_are_a_warning_with_at_most_five_examples() -> None:
    table = pd.DataFrame({"audio_file": [f"{n}.wav" for n in range(20)], "score": [float(n) for n in range(20)]})
    check = check_table(table)
    [unusual] = lines(check, BETWEEN, "score", "50-99")
    assert (unusual["severity"], unusual["unexpected_count"], len(unusual["examples"])) == ("warning", 20, 5)
    assert unusual["examples"][1] == "row 2 (1.wav): 1"
    assert check.row_faults == {}
    assert lines(check_table(table, usual_scores=(0, 19)), BETWEEN, "score", "0-19")[0]["success"]


@pytest.mark.parametrize("missing", ["audio_file", "score"])
def test_a_missing_column_is_a_fault_of_the_table(missing: str) -> None:
    check = check_table(frame(**{missing: None}))
    assert failures(check) == [(missing, "expect_column_to_exist", "error", 0)]
    assert [one["column"] for one in check.table_faults] == [missing]


def test_missing_sources_and_singers_are_warnings_until_they_are_asked_for() -> None:
    bare = frame(source=None, singer_id=None)
    assert [one[2] for one in failures(check_table(bare))] == ["warning", "warning"]
    asked = check_table(bare, sources=("ktv",), min_singers=2)
    assert [(one[0], one[2]) for one in failures(asked)] == [("source", "error"), ("singer_id", "error")]


def test_sources_outside_the_set_and_missing_ones_reject_their_rows() -> None:
    check = check_table(frame(source=["ktv", "radio", None, "{odd}"]), sources=("ktv", "{acapella}"))
    check_faults(check, {1: ["radio"], 2: ["source"], 3: ["{odd}"]})
    assert all("ktv, {acapella}" in reason for [reason] in check.row_faults.values())


def test_too_few_are_faults_of_the_table_with_the_number_found() -> None:
    check = check_table(frame(), min_clips=5, min_per_source=2, min_singers=9)
    found = [(one["column"], one["observed"]) for one in check.table_faults]
    assert found == [(None, 4), ("source", 1), ("singer_id", 3)]
    asked = zip("529", check.table_faults, strict=True)
    assert all(re.search(rf"\b{number}\b", fault["meaning"]) for number, fault in asked)
    assert "acapella" in check.table_faults[1]["meaning"]
    empty = check_table(pd.DataFrame({"audio_file": [], "score": [], "source": [], "singer_id": []}, dtype=object))
    assert [one["observed"] for one in empty.table_faults] == [0]
    assert len(failures(empty)) == 1


def test_each_source_that_is_allowed_or_once_had_clips_needs_its_number() -> None:
    allowed = check_table(frame(), sources=("ktv", "acapella", "live"), min_per_source=1)
    [fault] = allowed.table_faults
    assert "live" in fault["meaning"]
    [fault] = check_table(frame(source=["ktv"] * 4), min_per_source=1, last={"acapella": [90.0]}).table_faults
    assert "acapella" in fault["meaning"]
    names = ["O'Brien", 'a "b"', "唱吧", "x == y"]
    found = lines(check_table(frame(source=names), min_per_source=2), ROWS, "source")
    assert [one["observed"] for one in found] == [1, 1, 1, 1]
    assert [sum(name in one["meaning"] for one in found) for name in names] == [1, 1, 1, 1]


def test_rows_already_set_aside_are_counted_once_and_checked_no_further() -> None:
    faults = [None, "duplicate of row 1", "no file name", None]
    aside = frame(audio_file=["a.wav", "a.wav", None, "d.wav"], fault=faults)
    check = check_table(aside, min_clips=2)
    assert failures(check) == [("fault", "expect_column_values_to_be_null", "error", 2)]
    [usable] = lines(check, "expect_column_values_to_be_null", "fault")
    assert usable["examples"][0] == "row 2 (a.wav): duplicate of row 1"
    assert (check.row_faults, check.table_faults) == ({}, [])
    assert lines(check_table(aside, min_clips=3), ROWS, None)[0]["observed"] == 2


def test_each_band_that_has_or_had_clips_needs_its_number() -> None:
    check = check_table(frame(score=[50.0, 84.0, 84.9, 90.0]), min_per_band=2, last={"ktv": [62.0, 85.0]})
    found = {re.findall(r"\d+-\d+", one["meaning"])[0]: one["observed"] for one in lines(check, ROWS, "band")}
    assert found == {"0-60": 1, "60-70": 0, "80-85": 2, "85-90": 0, "90-95": 1}
    assert len(check.table_faults) == 4


def test_singers_with_too_few_clips_are_named_with_their_numbers() -> None:
    [fault] = check_table(frame(), min_per_singer=2).table_faults
    assert (fault["observed"], fault["examples"]) == (1, ["s2: 1", "s3: 1"])
    assert re.search(r"\b2\b.*\b1\b.*s2: 1; s3: 1", describe(fault))
    aside = frame(singer_id=["s1", "s1", "s1", "s1"], fault=[None, None, None, "no such file"])
    fewest = lines(check_table(aside, min_per_singer=3), "expect_column_min_to_be_between", "clips_of_singer")
    assert [one["observed"] for one in fewest] == [3]
    assert check_table(frame(singer_id=[None] * 4), min_per_singer=2).table_faults == []


def test_clips_outside_the_table_count_towards_the_number_needed() -> None:
    [few] = lines(check_table(frame(), min_clips=10, unscored=6), ROWS, None)
    assert (few["success"], few["observed"]) == (True, 10)
    assert re.findall(r"\d+", few["meaning"]) == ["10", "6"]
    assert not lines(check_table(frame(), min_clips=11, unscored=6), ROWS, None)[0]["success"]


def test_a_rule_about_cells_rejects_rows_where_it_is_an_error() -> None:
    values: dict[str, Any] = {"score": [42.0, 60.0, 70.0, 80.0], "singer_id": [None, "s", "s", "s"]}
    table = frame(**values, source=[None, "ktv", "ktv", "ktv"])
    assert check_table(table).row_faults == {}
    strict = dict.fromkeys(["unusual_score", "no_singer", "no_source"], "error")
    check_faults(check_table(table, severity=strict), {0: ["50-99", "singer", "source"]})


def test_scores_distributed_as_before_are_no_shift_and_others_are() -> None:
    [same] = lines(check_table(many(ktv=KTV[::2]), last={"ktv": KTV}), SHIFT, "score")
    assert same["success"]
    assert same["observed"] == pytest.approx(0, abs=0.02)
    [shift] = lines(check_table(many(ktv=[min(99.0, score + 15) for score in KTV]), last={"ktv": KTV}), SHIFT, "score")
    assert (shift["success"], shift["severity"]) == (False, "warning")
    assert re.search(r"\bktv\b.*\b0\.2\b.*validation\.max_shift", describe(shift))
    assert lines(check_table(many(ktv=[90.0] * 40), last={"ktv": KTV}, max_shift=50.0), SHIFT, "score")[0]["success"]


def test_the_shift_is_the_divergence_that_scipy_computes() -> None:
    from scipy.stats import entropy

    before, now = [52.0] * 60 + [57.0] * 40, [52.0] * 20 + [57.0] * 80
    [found] = lines(check_table(many(ktv=now), last={"ktv": before}), SHIFT, "score")
    assert found["observed"] == pytest.approx(entropy([0.2, 0.8], [0.6, 0.4]), abs=0.005)


def test_each_source_is_compared_with_itself_and_few_clips_are_not() -> None:
    check = check_table(many(ktv=KTV, acapella=[85.0 + n / 10 for n in range(140)]), last={"ktv": KTV})
    assert [one["success"] for one in lines(check, SHIFT, "score")] == [True]
    assert failures(check) == []
    check = check_table(many(ktv=[60.0] * 40), last={"acapella": [90.0] * 50, "ktv": [80.0] * 29})
    [gone] = lines(check, ROWS, "source")
    assert re.search(r"acapella.*\b50\b", gone["meaning"])
    assert (gone["success"], gone["severity"], gone["observed"]) == (False, "warning", 0)
    assert lines(check, SHIFT, "score") == []
    before = {"": [60.0 + n % 10 for n in range(50)]}
    mixed = many(ktv=[95.0] * 40, none=before[""])
    mixed["source"] = mixed["source"].replace("none", None)
    assert lines(check_table(mixed, last=before), SHIFT, "score")[0]["success"]
    assert not lines(check_table(mixed.drop(columns="source"), last=before), SHIFT, "score")[0]["success"]
