from typing import Any

import pandas as pd
import pytest

from audioscore.data.audio_checks import RULES
from audioscore.data.gate.rejections import ValidationSettings
from audioscore.data.gate.table_suite import BAND, BAND_NAMES, SINGER_CLIPS, Expectation, bands_of, build_suite
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


def suite(frame: pd.DataFrame = FRAME, **options: Any) -> list[Expectation]:
    return build_suite(frame, ValidationSettings(**options), {}, 0)


def severities(lines: list[Expectation], rule: str) -> list[str]:
    return [line.severity for line in lines if line.rule == rule and line.kind != "ExpectColumnToExist"]


@pytest.mark.parametrize(
    ("rule", "options", "lines", "default"),
    [
        ("few_clips", {"min_clips": 9}, 1, "error"),
        ("few_per_source", {"min_per_source": 9}, 2, "error"),
        ("few_per_band", {"min_per_band": 9}, 2, "error"),
        ("few_singers", {"min_singers": 9}, 1, "error"),
        ("few_per_singer", {"min_per_singer": 9}, 1, "error"),
        ("unusual_score", {}, 1, "warning"),
        ("no_singer", {}, 1, "warning"),
        ("no_source", {}, 1, "warning"),
    ],
)
def test_a_rule_has_its_configured_severity(rule: str, options: dict[str, Any], lines: int, default: str) -> None:
    assert severities(suite(**options), rule) == [default] * lines
    other = "warning" if default == "error" else "error"
    assert severities(suite(**options, severity={rule: other}), rule) == [other] * lines
    assert severities(suite(**options, severity={rule: "off"}), rule) == []


def test_lines_without_a_rule_are_always_present() -> None:
    always = {(line.kind, line.column) for line in suite(severity=dict.fromkeys(RULES, "off")) if not line.rule}
    cells = "ExpectColumnValuesTo"
    assert {(f"{cells}NotBeNull", "audio_file"), (f"{cells}BeBetween", "score")} <= always
    assert (f"{cells}BeUnique", "audio_file") in always


def test_allowed_sources_are_required_independent_of_the_rule() -> None:
    lines = suite(sources=("ktv",), severity={"no_source": "off"})
    assert [line.severity for line in lines if line.column == "source" and line.row_error] == ["error", "error"]


def test_missing_columns_have_one_line_each() -> None:
    lines = suite(FRAME[["audio_file", "score"]])
    assert [line.severity for line in lines if line.column in ("source", "singer_id")] == ["warning", "warning"]
    assert suite(FRAME[["audio_file", "score"]], severity={"no_source": "off", "no_singer": "off"})[-1].column is None


def test_bands_match_band_of() -> None:
    scores = [edge for band in SCORE_BANDS for edge in (band[0], band[0] + 0.1, band[1] - 0.1, band[1])]
    assert bands_of(scores) == [band_of(score) for score in scores]
    assert bands_of([-0.1, 100.1, float("nan"), float("inf")]) == [None] * 4
    assert len(BAND_NAMES) == 7
