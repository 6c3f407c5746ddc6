import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from audioscore.evaluation.predictions import Prediction
from audioscore.evaluation.report.page import MAX_REASONS, data_facts, data_gate, sources_of


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
    assert "shared songs" in data_facts(rows, {"shared songs": 3})
