import re
from typing import Any

from audioscore.evaluation.report.robustness import robustness_section
from audioscore.evaluation.robustness.run import OFF

PLANS = {"baseline": {}, "hybrid": {}}


def test_the_domain_is_shown_where_robustness_tests_are_off(robustness_document: dict[str, Any]) -> None:
    plans = {name: {**one, "degradations": {}} for name, one in robustness_document["plans"].items()}
    section = robustness_section({**robustness_document, "plans": plans, "reason": OFF, "left_out": []}, PLANS)
    assert OFF in section
    assert "balanced accuracy" in section


def test_a_plan_without_robustness_tests_is_left_out(robustness_document: dict[str, Any]) -> None:
    section = robustness_section(robustness_document, {"hybrid": {}, "timbre": {}})
    assert "B hybrid" in section
    assert "A baseline" not in section
    assert "timbre" not in section


def test_reasons_are_counted_and_nothing_refuses(robustness_document: dict[str, Any]) -> None:
    left_out = [{"probe": "noise_10db", "audio_file": f"{name}.wav", "reason": f"{name}.wav: silent."} for name in "ab"]
    section = robustness_section({**robustness_document, "refuse": [], "left_out": left_out}, PLANS)
    assert "flagged" in section
    assert "flagged, refuses" not in section
    assert re.search(r"\b2 degraded .*\b2: silent\.", section)
