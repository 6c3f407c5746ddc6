import re
from typing import Any

from audioscore.evaluation.report.robustness import probes_section
from audioscore.evaluation.robustness.run import OFF

PLANS = {"baseline": {}, "hybrid": {}}


def test_the_domain_is_shown_where_probes_are_off(probes_document: dict[str, Any]) -> None:
    plans = {name: {**one, "degradations": {}} for name, one in probes_document["plans"].items()}
    section = probes_section({**probes_document, "plans": plans, "reason": OFF, "left_out": []}, PLANS)
    assert OFF in section
    assert "balanced accuracy" in section


def test_a_plan_without_probes_is_left_out(probes_document: dict[str, Any]) -> None:
    section = probes_section(probes_document, {"hybrid": {}, "timbre": {}})
    assert "B hybrid" in section
    assert "A baseline" not in section
    assert "timbre" not in section


def test_reasons_are_counted_and_nothing_refuses(probes_document: dict[str, Any]) -> None:
    left_out = [{"probe": "noise_10db", "audio_file": f"{name}.wav", "reason": f"{name}.wav: silent."} for name in "ab"]
    section = probes_section({**probes_document, "refuse": [], "left_out": left_out}, PLANS)
    assert "flagged" in section
    assert "flagged, refuses" not in section
    assert re.search(r"\b2 degraded .*\b2: silent\.", section)
