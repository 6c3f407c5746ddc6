from typing import Any

from audioscore.evaluation.probes import OFF
from audioscore.evaluation.report_probes import probes_section

PLANS = {"baseline": {}, "hybrid": {}}


def test_probes_that_are_turned_off_say_so_and_the_domain_is_shown_still(probes_document: dict[str, Any]) -> None:
    plans = {name: {**one, "degradations": {}} for name, one in probes_document["plans"].items()}
    section = probes_section({**probes_document, "plans": plans, "reason": OFF, "left_out": []}, PLANS)
    assert f"No clip was degraded: {OFF}." in section
    assert "balanced accuracy" in section


def test_a_plan_that_was_not_asked_is_left_out(probes_document: dict[str, Any]) -> None:
    section = probes_section(probes_document, {"hybrid": {}, "timbre": {}})
    assert "B hybrid" in section
    assert "A baseline" not in section
    assert "timbre" not in section


def test_what_refuses_nothing_says_so_and_reasons_are_counted(probes_document: dict[str, Any]) -> None:
    left_out = [
        {"probe": "noise_10db", "audio_file": f"{name}.wav", "reason": f"{name}.wav: nobody sings."} for name in "ab"
    ]
    section = probes_section({**probes_document, "refuse": [], "left_out": left_out}, PLANS)
    assert "None of them refuses a promotion." in section
    assert "flagged, refuses" not in section
    assert "2 degraded versions were left out. Most often: 2: nobody sings." in section
