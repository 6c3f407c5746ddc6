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
        "row": ["row 1", "row 2", "row 3", "row 4"],
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


def check_table(table: pd.DataFrame, *, last: Any = None, unscored: int = 0, **options: Any) -> TableCheck:
    settings = ValidationSettings(**{"min_clips": 1, **options})
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


def check_row_errors(check: TableCheck, words: dict[int, list[str]]) -> None:
    """The rejected rows are these, with one reason per word."""
    assert sorted(check.row_errors) == sorted(words)
    for row, expected in words.items():
        assert len(check.row_errors[row]) == len(expected)
        assert [one for one, reason in zip(expected, check.row_errors[row], strict=True) if one not in reason] == []


def test_a_valid_table_passes_gives_json_and_does_not_change() -> None:
    given = frame()
    check = check_table(given, sources=("ktv", "acapella"), min_clips=4, min_per_source=1, min_singers=3)
    pd.testing.assert_frame_equal(given, frame())
    assert (failures(check), check.row_errors) == ([], {})
    assert json.loads(json.dumps(check.results, allow_nan=False)) == check.results
    assert [one["observed"] for one in lines(check, ROWS, None)] == [4]
    singers = lines(check, "expect_column_unique_value_count_to_be_between", "singer_id")
    assert [one["observed"] for one in singers] == [3]


def test_invalid_cells_reject_their_rows_but_not_the_table() -> None:
    check = check_table(frame(audio_file=["a.wav", "a.wav", None, "d.wav"], score=[104.0, "eighty", 80.0, 90.0]))
    assert failures(check) == [
        ("audio_file", NULL, "error", 1),
        ("audio_file", UNIQUE, "error", 2),
        ("score", NULL, "error", 1),
        ("score", BETWEEN, "error", 1),
        ("score", BETWEEN, "warning", 1),
    ]
    check_row_errors(check, {0: ["a.wav", "104"], 1: ["a.wav", "score"], 2: ["file name"]})
    assert "0-100" in check.row_errors[0][1]
    assert check.table_errors == []
    assert lines(check, BETWEEN, "score", "0-100")[0]["examples"] == ["row 1 (a.wav): 104"]
    check = check_table(frame(audio_file=["a.wav", 7, None, "d.wav"]))
    check_row_errors(check, {1: ["7"], 2: ["file name"]})
    assert lines(check, "expect_column_values_to_be_of_type", "score")[0]["observed"] == "float64"


def test_unusual_scores_are_a_warning_with_at_most_five_examples() -> None:
    table = pd.DataFrame({"audio_file": [f"{n}.wav" for n in range(20)], "score": [float(n) for n in range(20)]})
    check = check_table(table)
    [unusual] = lines(check, BETWEEN, "score", "50-99")
    assert (unusual["severity"], unusual["unexpected_count"], len(unusual["examples"])) == ("warning", 20, 5)
    assert unusual["examples"][1] == "row 2 (1.wav): 1"
    assert check.row_errors == {}
    assert lines(check_table(table, usual_scores=(0, 19)), BETWEEN, "score", "0-19")[0]["success"]


@pytest.mark.parametrize("missing", ["audio_file", "score"])
def test_a_missing_column_is_an_error_of_the_table(missing: str) -> None:
    check = check_table(frame(**{missing: None}))
    assert failures(check) == [(missing, "expect_column_to_exist", "error", 0)]
    assert [one["column"] for one in check.table_errors] == [missing]


def test_missing_sources_and_singers_are_warnings_unless_required() -> None:
    bare = frame(source=None, singer_id=None)
    assert [one[2] for one in failures(check_table(bare))] == ["warning", "warning"]
    required = check_table(bare, sources=("ktv",), min_singers=2)
    assert [(one[0], one[2]) for one in failures(required)] == [("source", "error"), ("singer_id", "error")]


def test_sources_outside_the_set_and_missing_ones_reject_their_rows() -> None:
    check = check_table(frame(source=["ktv", "radio", None, "{odd}"]), sources=("ktv", "{acapella}"))
    check_row_errors(check, {1: ["radio"], 2: ["source"], 3: ["{odd}"]})
    assert all("ktv, {acapella}" in reason for [reason] in check.row_errors.values())


def test_too_few_clips_are_errors_of_the_table_with_their_number() -> None:
    check = check_table(frame(), min_clips=5, min_per_source=2, min_singers=9)
    found = [(one["column"], one["observed"]) for one in check.table_errors]
    assert found == [(None, 4), ("source", 1), ("singer_id", 3)]
    needed = zip("529", check.table_errors, strict=True)
    assert all(re.search(rf"\b{number}\b", error["meaning"]) for number, error in needed)
    assert "acapella" in check.table_errors[1]["meaning"]
    empty = check_table(pd.DataFrame({"audio_file": [], "score": [], "source": [], "singer_id": []}, dtype=object))
    assert [one["observed"] for one in empty.table_errors] == [0]
    assert len(failures(empty)) == 1


def test_each_allowed_or_previous_source_needs_enough_clips() -> None:
    allowed = check_table(frame(), sources=("ktv", "acapella", "live"), min_per_source=1)
    [error] = allowed.table_errors
    assert "live" in error["meaning"]
    [error] = check_table(frame(source=["ktv"] * 4), min_per_source=1, last={"acapella": [90.0]}).table_errors
    assert "acapella" in error["meaning"]
    names = ["O'Brien", 'a "b"', "唱吧", "x == y"]
    found = lines(check_table(frame(source=names), min_per_source=2), ROWS, "source")
    assert [one["observed"] for one in found] == [1, 1, 1, 1]
    assert [sum(name in one["meaning"] for one in found) for name in names] == [1, 1, 1, 1]


def test_rows_already_rejected_are_counted_once_and_not_checked() -> None:
    rejected = [None, "duplicate of row 1", "no file name", None]
    excluded = frame(audio_file=["a.wav", "a.wav", None, "d.wav"], fault=rejected)
    check = check_table(excluded, min_clips=2)
    assert failures(check) == [("fault", "expect_column_values_to_be_null", "error", 2)]
    [usable] = lines(check, "expect_column_values_to_be_null", "fault")
    assert usable["examples"][0] == "row 2 (a.wav): duplicate of row 1"
    assert (check.row_errors, check.table_errors) == ({}, [])
    assert lines(check_table(excluded, min_clips=3), ROWS, None)[0]["observed"] == 2


def test_each_current_or_previous_band_needs_enough_clips() -> None:
    check = check_table(frame(score=[50.0, 84.0, 84.9, 90.0]), min_per_band=2, last={"ktv": [62.0, 85.0]})
    found = {re.findall(r"\d+-\d+", one["meaning"])[0]: one["observed"] for one in lines(check, ROWS, "band")}
    assert found == {"0-60": 1, "60-70": 0, "80-85": 2, "85-90": 0, "90-95": 1}
    assert len(check.table_errors) == 4


def test_singers_with_too_few_clips_are_listed_with_their_counts() -> None:
    [error] = check_table(frame(), min_per_singer=2).table_errors
    assert (error["observed"], error["examples"]) == (1, ["s2: 1", "s3: 1"])
    assert re.search(r"\b2\b.*\b1\b.*s2: 1; s3: 1", describe(error))
    excluded = frame(singer_id=["s1", "s1", "s1", "s1"], fault=[None, None, None, "no such file"])
    fewest = lines(check_table(excluded, min_per_singer=3), "expect_column_min_to_be_between", "clips_of_singer")
    assert [one["observed"] for one in fewest] == [3]
    assert check_table(frame(singer_id=[None] * 4), min_per_singer=2).table_errors == []


def test_clips_outside_the_table_count_towards_min_clips() -> None:
    [few] = lines(check_table(frame(), min_clips=10, unscored=6), ROWS, None)
    assert (few["success"], few["observed"]) == (True, 10)
    assert re.findall(r"\d+", few["meaning"]) == ["10", "6"]
    assert not lines(check_table(frame(), min_clips=11, unscored=6), ROWS, None)[0]["success"]


def test_a_rule_about_cells_rejects_rows_with_severity_error() -> None:
    values: dict[str, Any] = {"score": [42.0, 60.0, 70.0, 80.0], "singer_id": [None, "s", "s", "s"]}
    table = frame(**values, source=[None, "ktv", "ktv", "ktv"])
    assert check_table(table).row_errors == {}
    strict = dict.fromkeys(["unusual_score", "no_singer", "no_source"], "error")
    check_row_errors(check_table(table, severity=strict), {0: ["50-99", "singer", "source"]})


def test_only_changed_score_distributions_are_a_shift() -> None:
    [same] = lines(check_table(many(ktv=KTV[::2]), last={"ktv": KTV}), SHIFT, "score")
    assert same["success"]
    assert same["observed"] == pytest.approx(0, abs=0.02)
    [shift] = lines(check_table(many(ktv=[min(99.0, score + 15) for score in KTV]), last={"ktv": KTV}), SHIFT, "score")
    assert (shift["success"], shift["severity"]) == (False, "warning")
    assert re.search(r"\bktv\b.*\b0\.2\b.*validation\.max_shift", describe(shift))
    assert lines(check_table(many(ktv=[90.0] * 40), last={"ktv": KTV}, max_shift=50.0), SHIFT, "score")[0]["success"]


def test_the_shift_matches_the_divergence_of_scipy() -> None:
    from scipy.stats import entropy

    before, now = [52.0] * 60 + [57.0] * 40, [52.0] * 20 + [57.0] * 80
    [found] = lines(check_table(many(ktv=now), last={"ktv": before}), SHIFT, "score")
    assert found["observed"] == pytest.approx(entropy([0.2, 0.8], [0.6, 0.4]), abs=0.005)


def test_each_source_is_compared_with_itself_if_it_has_enough_clips() -> None:
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
