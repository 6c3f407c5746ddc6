import re
from typing import Any

import pytest

from audioscore.evaluation.report.decision import (
    NO_RESAMPLES,
    TOO_SMALL,
    beside_the_champion,
    decision_parts,
    lead_text,
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
    parts = decision_parts(
        {**FIRST, "clips": 40, "singers": 9, "dropped": 3, "slices": [], "probes": []}, EVALUATION, None
    )
    assert "40 clips, 9 singers, 3 more" in parts
    assert "<table" not in parts
    assert decision_parts(None, EVALUATION, None) == '<p class="bad">6 singers.</p>'


def test_slices_that_fell_and_probes_that_refuse_are_named(probes_document: dict[str, Any]) -> None:
    fell = {
        "kind": "source", "name": "ktv", "clips": 40, "singers": 9, "verdict": "fell", "challenger": 0.25,
        "champion": 0.5, "delta": -0.25, "lo": -0.375, "hi": -0.125
    }  # fmt: skip
    small = {**dict.fromkeys(fell), "kind": "band", "name": "0-60", "clips": 3, "singers": 2, "verdict": "too small"}
    decision = {**FIRST, "promoted": False, "delta": 0.1, "lo": None, "hi": None, "slices": [fell, small]}
    parts = decision_parts({**decision, "probes": ["noise_10db"]}, EVALUATION, probes_document)
    assert re.search(r"\b2 slices.* fell .*\b1; 1 .*too small", parts)
    assert "\N{MINUS SIGN}0.250 <span" in parts
    for part in ("noise_10db", NO_RESAMPLES, TOO_SMALL):
        assert part in parts


def test_a_winner_without_flags(probes_document: dict[str, Any]) -> None:
    degradations = {
        name: {**one, "flagged": False} for name, one in probes_document["plans"]["hybrid"]["degradations"].items()
    }
    calm = {**probes_document, "plans": {"hybrid": {"degradations": degradations}}}
    parts = decision_parts(FIRST, EVALUATION, calm)
    assert "SNR" not in parts
    assert (
        len({parts, decision_parts(FIRST, EVALUATION, None), decision_parts(FIRST, EVALUATION, probes_document)}) == 3
    )


def test_without_a_champion_there_is_no_table() -> None:
    assert "<table" not in beside_the_champion(None, {})
    assert "some fault" in beside_the_champion({"reason": "some fault"}, {})
