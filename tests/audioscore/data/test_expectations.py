import json
from typing import Any

import pandas as pd
import pytest

from audioscore.data import expectations
from audioscore.data.expectations import ExpectationResult, TableCheck
from audioscore.data.validation_result import describe
from audioscore.data.validation_settings import ValidationSettings


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


def check_table(table: pd.DataFrame, *, last: Any = None, unscored: int = 0, **asked: Any) -> TableCheck:
    settings = ValidationSettings(**{"min_clips": 1, **asked})
    return expectations.check_table(table, settings, last_scores=last, unscored=unscored)


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


def many(**scores: list[float]) -> pd.DataFrame:
    """A table with these scores by source."""
    rows = [(source, score) for source, values in scores.items() for score in values]
    return pd.DataFrame(
        {
            "audio_file": [f"{number}.wav" for number in range(len(rows))],
            "score": [score for _, score in rows],
            "source": [source for source, _ in rows],
            "singer_id": [f"s{number % 7}" for number in range(len(rows))],
        }
    )


def test_names_that_are_not_text_reject_their_rows() -> None:
    check = check_table(frame(audio_file=["a.wav", 7, None, "d.wav"]))
    assert check.row_faults == {1: ["file name 7 is not text"], 2: ["no file name"]}
    assert line(check, "scores are numbers")["observed"] == "float64"


def test_each_band_that_has_or_had_clips_needs_its_number() -> None:
    table = frame(score=[50.0, 84.0, 84.9, 90.0])
    check = check_table(table, min_per_band=2, last={"ktv": [62.0, 85.0]})
    found = {one["meaning"].split()[-1]: one["observed"] for one in check.results if one["column"] == "band"}
    assert found == {"0-60": 1, "60-70": 0, "80-85": 2, "85-90": 0, "90-95": 1}
    assert check.table_faults[0]["meaning"] == "at least 2 usable clips scored 0-60"
    assert len(check.table_faults) == 4


def test_a_source_that_once_had_clips_needs_its_number_still() -> None:
    check = check_table(frame(source=["ktv"] * 4), min_per_source=1, last={"acapella": [90.0]})
    assert [one["meaning"] for one in check.table_faults] == ["at least 1 usable clips of acapella"]


def test_singers_with_too_few_clips_are_named_with_their_numbers() -> None:
    check = check_table(frame(), min_per_singer=2)
    [fault] = check.table_faults
    assert (fault["meaning"], fault["observed"]) == ("at least 2 usable clips of every singer", 1)
    assert fault["examples"] == ["s2: 1", "s3: 1"]
    assert describe(fault) == "Expected: at least 2 usable clips of every singer; found 1 (s2: 1; s3: 1)."
    aside = frame(singer_id=["s1", "s1", "s1", "s1"], fault=[None, None, None, "no such file"])
    assert line(check_table(aside, min_per_singer=3), "of every singer")["observed"] == 3
    assert check_table(frame(singer_id=[None] * 4), min_per_singer=2).table_faults == []


def test_clips_outside_the_table_count_towards_the_number_needed() -> None:
    check = check_table(frame(), min_clips=10, unscored=6)
    few = line(check, "at least 10 usable clips, with the 6 that have an order and no score")
    assert (few["success"], few["observed"]) == (True, 10)
    assert not line(check_table(frame(), min_clips=11, unscored=6), "at least 11")["success"]


def test_a_rule_about_cells_rejects_rows_where_it_is_an_error() -> None:
    values: dict[str, Any] = {"score": [42.0, 60.0, 70.0, 80.0], "singer_id": [None, "s", "s", "s"]}
    table = frame(**values, source=[None, "ktv", "ktv", "ktv"])
    assert check_table(table).row_faults == {}
    strict = dict.fromkeys(["unusual_score", "no_singer", "no_source"], "error")
    assert check_table(table, severity=strict).row_faults == {
        0: ["score 42 is outside the usual 50-99", "no singer", "no source"]
    }


def test_scores_distributed_as_before_are_no_shift_and_moved_ones_are() -> None:
    before = {"ktv": [50.0 + 35 * n / 200 for n in range(200)]}
    same = line(check_table(many(ktv=before["ktv"][::2]), last=before), "scores of ktv are distributed as in the last")
    assert same["success"]
    assert same["observed"] == pytest.approx(0, abs=0.02)
    moved = check_table(many(ktv=[min(99.0, score + 15) for score in before["ktv"]]), last=before)
    shift = line(moved, "scores of ktv are distributed")
    assert (shift["success"], shift["severity"]) == (False, "warning")
    assert describe(shift).startswith(
        "Expected: scores of ktv are distributed as in the last accepted version, within 0.2 nats "
        "(validation.max_shift); found "
    )
    assert line(check_table(many(ktv=[90.0] * 40), last=before, max_shift=50.0), "scores of ktv")["success"]


def test_the_shift_is_the_divergence_that_scipy_computes() -> None:
    from scipy.stats import entropy

    before, now = [52.0] * 60 + [57.0] * 40, [52.0] * 20 + [57.0] * 80
    found = line(check_table(many(ktv=now), last={"ktv": before}), "scores of ktv")["observed"]
    assert found == pytest.approx(entropy([0.2, 0.8], [0.6, 0.4]), abs=0.005)


def test_a_new_source_shifts_none_of_the_others() -> None:
    ktv = [50.0 + 35 * n / 200 for n in range(200)]
    check = check_table(many(ktv=ktv, acapella=[85.0 + n / 10 for n in range(140)]), last={"ktv": ktv})
    assert [one["success"] for one in check.results if "distributed" in one["meaning"]] == [True]
    assert failures(check) == []


def test_a_source_that_is_gone_is_told_and_few_clips_are_not_compared() -> None:
    check = check_table(many(ktv=[60.0] * 40), last={"acapella": [90.0] * 50, "ktv": [80.0] * 29})
    gone = line(check, "clips of acapella, which the last accepted version had (50)")
    assert (gone["success"], gone["severity"], gone["observed"]) == (False, "warning", 0)
    assert not [one for one in check.results if "distributed" in one["meaning"]]


def test_clips_without_a_source_are_compared_among_themselves() -> None:
    before = {"": [60.0 + n % 10 for n in range(50)]}
    mixed = many(ktv=[95.0] * 40, none=before[""])
    mixed["source"] = mixed["source"].replace("none", None)
    assert line(check_table(mixed, last=before), "scores of clips without a source")["success"]
    assert line(check_table(mixed.drop(columns="source"), last=before), "scores of clips")["success"] is False
