from typing import Any

import pandas as pd
import pytest

from audioscore.data.table_suite import BAND, BAND_NAMES, SINGER_CLIPS, Expectation, bands_of, build_suite
from audioscore.data.validation_settings import ValidationSettings
from audioscore.units import SCORE_BANDS, band_of

FRAME = pd.DataFrame(
    {
        "audio_file": ["a.wav", "b.wav"],
        "score": [60.0, 90.0],
        "source": ["ktv", "acapella"],
        "singer_id": ["s1", "s2"],
        BAND: ["60-70", "90-95"],
        SINGER_CLIPS: [1.0, 1.0],
    }
)


def suite(frame: pd.DataFrame = FRAME, **asked: Any) -> list[Expectation]:
    return build_suite(frame, ValidationSettings(**asked), {}, 0)


def severities(lines: list[Expectation], meaning: str) -> list[str]:
    return [line.severity for line in lines if meaning in line.meaning]


@pytest.mark.parametrize(
    ("rule", "asked", "meaning", "by_itself"),
    [
        ("few_clips", {"min_clips": 9}, "usable clips", "error"),
        ("few_per_source", {"min_per_source": 9}, "of ktv", "error"),
        ("few_per_band", {"min_per_band": 9}, "scored 60-70", "error"),
        ("few_singers", {"min_singers": 9}, "at least 9 singers", "error"),
        ("few_per_singer", {"min_per_singer": 9}, "of every singer", "error"),
        ("unusual_score", {}, "usual 50-99", "warning"),
        ("no_singer", {}, "names its singer", "warning"),
        ("no_source", {}, "names its recording domain", "warning"),
    ],
)
def test_a_rule_weighs_what_it_is_set_to(rule: str, asked: dict[str, Any], meaning: str, by_itself: str) -> None:
    assert severities(suite(**asked), meaning) == [by_itself]
    other = "warning" if by_itself == "error" else "error"
    assert severities(suite(**asked, severity={rule: other}), meaning) == [other]
    assert severities(suite(**asked, severity={rule: "off"}), meaning) == []


def test_lines_that_keep_a_table_from_being_read_wrongly_have_no_rule() -> None:
    always = {line.meaning for line in suite() if not line.rule}
    assert {"every row names a recording", "scores are on the 0-100 scale", "no recording is named twice"} <= always


def test_allowed_sources_are_asked_of_every_row_whatever_the_rule_says() -> None:
    lines = suite(sources=("ktv",), severity={"no_source": "off"})
    assert severities(lines, "names its recording domain") == ["error"]


def test_columns_that_are_not_there_are_missed_once() -> None:
    lines = suite(FRAME[["audio_file", "score"]])
    assert [line.severity for line in lines if line.column in ("source", "singer_id")] == ["warning", "warning"]
    assert suite(FRAME[["audio_file", "score"]], severity={"no_source": "off", "no_singer": "off"})[-1].column is None


def test_bands_are_those_of_the_units() -> None:
    scores = [edge for band in SCORE_BANDS for edge in (band[0], band[0] + 0.1, band[1] - 0.1, band[1])]
    assert bands_of(scores) == [band_of(score) for score in scores]
    assert bands_of([-0.1, 100.1, float("nan"), float("inf")]) == [None] * 4
    assert len(BAND_NAMES) == 7
