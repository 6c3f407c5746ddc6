import json
from typing import Any

import pandas as pd
import pytest

from audioscore.data.expectations import ExpectationResult, TableCheck, check_table


def frame(**changes: Any) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "row": [1, 2, 3, 4],
        "audio_file": ["a.wav", "b.wav", "c.wav", "d.wav"],
        "score": [60.0, 70.0, 80.0, 90.0],
        "source": ["ktv", "ktv", "ktv", "acapella"],
        "singer_id": ["s1", "s1", "s2", "s3"],
        **changes,
    }
    return pd.DataFrame({name: values for name, values in columns.items() if values is not None})


def failures(check: TableCheck) -> list[tuple[str | None, str, str, int]]:
    return [
        (one["column"], one["expectation"], one["severity"], one["unexpected_count"])
        for one in check.results
        if not one["success"]
    ]


def line(check: TableCheck, meaning: str) -> ExpectationResult:
    [found] = [one for one in check.results if meaning in one["meaning"]]
    return found


def test_a_good_table_meets_everything_and_is_json() -> None:
    check = check_table(frame(), sources=("ktv", "acapella"), min_clips=4, min_per_source=1, min_singers=3)
    assert failures(check) == []
    assert check.row_faults == {}
    assert json.loads(json.dumps(check.results, allow_nan=False)) == check.results
    assert line(check, "at least 4 usable clips")["observed"] == 4
    assert line(check, "at least 3 singers")["observed"] == 3


def test_bad_cells_reject_their_rows_and_not_the_table() -> None:
    bad = frame(audio_file=["a.wav", "a.wav", None, "d.wav"], score=[104.0, "eighty", 80.0, 90.0])
    check = check_table(bad, min_clips=1)
    null, unique, between = (f"expect_column_values_to_{kind}" for kind in ("not_be_null", "be_unique", "be_between"))
    assert failures(check) == [
        ("audio_file", null, "error", 1),
        ("audio_file", unique, "error", 2),
        ("score", null, "error", 1),
        ("score", between, "error", 1),
        ("score", between, "warning", 1),
    ]
    assert check.row_faults == {
        0: ["a.wav is named by other rows too", "score 104 is outside 0-100"],
        1: ["a.wav is named by other rows too", "no score"],
        2: ["no file name"],
    }
    assert check.table_faults == []
    assert line(check, "0-100 scale")["examples"] == ["row 1 (a.wav): 104"]


def test_unusual_scores_are_a_warning_with_at_most_five_examples() -> None:
    many = pd.DataFrame({"audio_file": [f"{n}.wav" for n in range(20)], "score": [float(n) for n in range(20)]})
    check = check_table(many)
    unusual = line(check, "usual 50-99")
    assert (unusual["severity"], unusual["unexpected_count"], len(unusual["examples"])) == ("warning", 20, 5)
    assert unusual["examples"][1] == "row 2 (1.wav): 1"
    assert check.row_faults == {}
    assert line(check_table(many, usual_scores=(0, 19)), "usual 0-19")["success"]


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
    assert check.row_faults == {
        1: ["source radio is not one of ktv, {acapella}"],
        2: ["no source; it must be one of ktv, {acapella}"],
        3: ["source {odd} is not one of ktv, {acapella}"],
    }


def test_too_few_are_faults_of_the_table_with_the_number_found() -> None:
    check = check_table(frame(), min_clips=5, min_per_source=2, min_singers=9)
    assert [(one["meaning"], one["observed"]) for one in check.table_faults] == [
        ("at least 5 usable clips", 4),
        ("at least 2 usable clips of acapella", 1),
        ("at least 9 singers", 3),
    ]


def test_an_allowed_source_without_a_clip_is_missed() -> None:
    check = check_table(frame(), sources=("ktv", "acapella", "live"), min_per_source=1)
    assert [one["meaning"] for one in check.table_faults] == ["at least 1 usable clips of live"]


def test_sources_may_have_any_name() -> None:
    names = ["O'Brien", 'a "b"', "唱吧", "x == y"]
    check = check_table(frame(source=names), min_per_source=2)
    assert [line(check, f"of {name}")["observed"] for name in names] == [1, 1, 1, 1]


def test_rows_already_set_aside_are_counted_once_and_looked_at_no_further() -> None:
    aside = frame(
        audio_file=["a.wav", "a.wav", None, "d.wav"], fault=[None, "duplicate of row 1", "no file name", None]
    )
    check = check_table(aside, min_clips=2)
    assert failures(check) == [("fault", "expect_column_values_to_be_null", "error", 2)]
    assert line(check, "every row can be used")["examples"][0] == "row 2 (a.wav): duplicate of row 1"
    assert check.row_faults == {}
    assert check.table_faults == []
    assert line(check_table(aside, min_clips=3), "usable clips")["observed"] == 2


def test_an_empty_table_has_too_few_clips_and_no_other_fault() -> None:
    check = check_table(pd.DataFrame({"audio_file": [], "score": [], "source": [], "singer_id": []}, dtype=object))
    assert [one["observed"] for one in check.table_faults] == [0]
    assert len(failures(check)) == 1


def test_the_frame_is_left_as_it_was() -> None:
    given = frame()
    check_table(given)
    pd.testing.assert_frame_equal(given, frame())
