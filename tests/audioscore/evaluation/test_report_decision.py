from typing import Any

import pytest

from audioscore.evaluation.report_decision import beside_the_champion, decision_parts, lead_text

EVALUATION: dict[str, Any] = {"warnings": ["Only 6 test singers."]}
FIRST = {"promoted": True, "reason": "first model", "delta": None, "lo": None, "hi": None, "winner": "hybrid"}


@pytest.mark.parametrize(
    ("decision", "said", "good"),
    [
        (None, "Not decided yet: the gate has not been asked whether the winner may be promoted.", None),
        (FIRST, "Promoted: first model.", True),
        ({**FIRST, "promoted": False}, "Not promoted: first model.", False),
    ],
)
def test_the_lead_says_yes_or_no_and_why(decision: dict[str, Any] | None, said: str, good: bool | None) -> None:
    assert lead_text(decision) == (said, good)


def test_a_first_model_has_no_difference_and_an_undecided_run_only_warnings() -> None:
    parts = decision_parts(
        {**FIRST, "clips": 40, "singers": 9, "dropped": 3, "slices": [], "probes": []}, EVALUATION, None
    )
    assert "Judged on 40 clips, 9 singers, 3 more clips left out, because a model had trained on them." in parts
    assert "There is no difference to a champion" in parts
    assert "No probe was asked about the winner." in parts
    assert decision_parts(None, EVALUATION, None) == '<p class="bad">Only 6 test singers.</p>'


def test_slices_that_fell_and_probes_that_refuse_are_named(probes_document: dict[str, Any]) -> None:
    fell = {
        "kind": "source", "name": "ktv", "clips": 40, "singers": 9, "verdict": "fell", "challenger": 0.25,
        "champion": 0.5, "delta": -0.25, "lo": -0.375, "hi": -0.125,
    }  # fmt: skip
    small = {**dict.fromkeys(fell), "kind": "band", "name": "0-60", "clips": 3, "singers": 2, "verdict": "too small"}
    decision = {**FIRST, "promoted": False, "delta": 0.1, "lo": None, "hi": None, "slices": [fell, small]}
    parts = decision_parts({**decision, "probes": ["noise_10db"]}, EVALUATION, probes_document)
    assert "Of 2 slices the winner fell on 1; 1 were too small to judge." in parts
    assert "\N{MINUS SIGN}0.250 <span" in parts
    assert "Refused by the probes noise_10db: the model rewards these faults." in parts
    assert "the gate computed none: most resamples are undefined" in parts
    assert "so few clips or singers are not judged" in parts


def test_a_winner_that_no_probe_flags_is_said_to_be_so(probes_document: dict[str, Any]) -> None:
    degradations = {
        name: {**one, "flagged": False} for name, one in probes_document["plans"]["hybrid"]["degradations"].items()
    }
    calm = {**probes_document, "plans": {"hybrid": {"degradations": degradations}}}
    assert "No probe flags the winner." in decision_parts(FIRST, EVALUATION, calm)


def test_without_a_champion_nothing_stands_beside_the_plans() -> None:
    assert "There was no champion" in beside_the_champion(None, {})
