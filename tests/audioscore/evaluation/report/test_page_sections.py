import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from audioscore.evaluation.predictions import Prediction
from audioscore.evaluation.report.page import (
    MAX_REASONS,
    NO_RESAMPLES,
    TOO_SMALL,
    champion_section,
    data_gate,
    decision_section,
    facts,
    lead_text,
    sources_of,
)

EVALUATION: dict[str, Any] = {"warnings": ["6 singers."]}
FIRST = {"promoted": True, "reason": "first model", "delta": None, "lo": None, "hi": None, "winner": "hybrid"}


@pytest.mark.parametrize(("decision", "text", "good"), [
    (None, "", None), (FIRST, "Promoted: first model.", True),
    ({**FIRST, "promoted": False}, "Not promoted: first model.", False),
])  # fmt: skip
def test_the_lead_is_the_decision_and_its_reason(decision: dict[str, Any] | None, text: str, good: bool | None) -> None:
    assert lead_text(decision) == (text or lead_text(None)[0], good)
    assert lead_text(None)[0]


def test_a_first_model_has_no_difference_and_an_undecided_run_only_warnings() -> None:
    parts = decision_section(
        {**FIRST, "clips": 40, "singers": 9, "dropped": 3, "slices": [], "probes": []}, EVALUATION, None
    )
    assert "40 clips, 9 singers, 3 more" in parts
    assert "<table" not in parts
    assert decision_section(None, EVALUATION, None) == '<p class="bad">6 singers.</p>'


def test_slices_that_fell_and_tests_that_refuse_are_named(robustness_document: dict[str, Any]) -> None:
    fell = {
        "kind": "source", "name": "ktv", "clips": 40, "singers": 9, "verdict": "fell", "challenger": 0.25,
        "champion": 0.5, "delta": -0.25, "lo": -0.375, "hi": -0.125
    }  # fmt: skip
    small = {**dict.fromkeys(fell), "kind": "band", "name": "0-60", "clips": 3, "singers": 2, "verdict": "too small"}
    decision = {**FIRST, "promoted": False, "delta": 0.1, "lo": None, "hi": None, "slices": [fell, small]}
    parts = decision_section({**decision, "probes": ["noise_10db"]}, EVALUATION, robustness_document)
    assert re.search(r"\b2 slices.* fell .*\b1; 1 .*too small", parts)
    assert "\N{MINUS SIGN}0.250 <span" in parts
    for part in ("noise_10db", NO_RESAMPLES, TOO_SMALL):
        assert part in parts


def test_a_winner_without_flags(robustness_document: dict[str, Any]) -> None:
    degradations = {
        name: {**one, "flagged": False} for name, one in robustness_document["plans"]["hybrid"]["degradations"].items()
    }
    calm = {**robustness_document, "plans": {"hybrid": {"degradations": degradations}}}
    parts = decision_section(FIRST, EVALUATION, calm)
    assert "SNR" not in parts
    assert (
        len(
            {parts, decision_section(FIRST, EVALUATION, None), decision_section(FIRST, EVALUATION, robustness_document)}
        )
        == 3
    )


def test_without_a_champion_there_is_no_table() -> None:
    assert "<table" not in champion_section(None, {})
    assert "some fault" in champion_section({"reason": "some fault"}, {})


def row(name: str, reason: str) -> dict[str, Any]:
    return {"audio_file": name, "row": 1, "reason": reason, "severity": "error"}


def document(**changes: Any) -> dict[str, Any]:
    return {"valid": True, "clips": 10, "accepted": 8, "rejected": [], "warnings": [], "expectations": [], **changes}


def test_reasons_that_differ_only_in_figures_are_one_and_the_most_frequent_comes_first() -> None:
    rejected = [row("a.wav", "unscored"), *(row(f"b{n}.wav", f"{n}.5 s of 2 s") for n in range(3))]
    page = data_gate(document(rejected=rejected))
    assert page.index("… s of … s") < page.index("<td>unscored</td>")
    assert '<td class="number">3</td><td>b0.wav: 0.5 s of 2 s</td>' in page


def test_many_reasons_are_cut_and_counted() -> None:
    letters = [chr(ord("a") + number) for number in range(MAX_REASONS + 3)]
    page = data_gate(document(warnings=[row("x.wav", f"fault {letter}") for letter in letters]))
    assert page.count("<tr><td>") == MAX_REASONS
    assert re.search(r"\b3 more", page)


def test_a_closed_gate_and_expectations_that_do_not_hold_are_shown() -> None:
    unmet = {"meaning": "100 clips", "success": False, "severity": "error", "unexpected_count": 0}
    page = data_gate(document(valid=False, expectations=[unmet, {**unmet, "success": True}]))
    for part in ("closed", "8 of 10", "0 rejected"):
        assert part in page
    assert page.count("<td>100 clips</td><td>error</td>") == 1
    assert "<table" not in data_gate(None)


def test_sources_count_each_clip_once(make_predictions: Callable[..., list[Prediction]]) -> None:
    rows = [replace(one, source=None if one.source == "ktv" else one.source) for one in make_predictions()]
    scores: dict[str | None, list[float]] = {one.source: [] for one in rows}
    for one in rows:
        scores[one.source].append(one.human)
    acapella, unknown = sources_of(rows)
    assert acapella[:5] == ["acapella", "12", "12", "24", "12"]
    assert unknown[:5] == ["unknown", "12", "12", "24", "12"]
    assert unknown[5] == f"{min(scores[None]):.1f} to {max(scores[None]):.1f}"
    assert "shared songs" in facts({"shared songs": 3})
