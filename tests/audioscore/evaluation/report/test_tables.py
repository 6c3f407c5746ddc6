import re
from typing import Any

import pytest

from audioscore.evaluation.report.tables import EXCLUDED, NOT_COMPUTED, Notes, bare_html, estimate_html, figure_text


def text(html: str) -> str:
    return re.sub(r"<[^>]*>", "", html)


def test_equal_reasons_share_a_mark_and_all_are_spelled_out_and_escaped() -> None:
    notes = Notes()
    assert [notes.mark(reason) for reason in ("one <singer>", "no clip", "one <singer>")] == [
        "<sup>a</sup>", "<sup>b</sup>", "<sup>a</sup>"
    ]  # fmt: skip
    assert text(notes.html()) == "a one &lt;singer&gt; b no clip"
    assert Notes().html() == ""


@pytest.mark.parametrize(("found", "shown", "notes"), [
    ({"value": 0.5, "lo": 0.25, "hi": 0.75}, "0.500 [0.250, 0.750]", []),
    ({"value": 1.0, "lo": 0.25, "hi": 1.0, "method": "Wilson"}, "1.000 [0.250, 1.000]a", ["Wilson"]),
    ({"value": 0.5, "lo": 0.0, "hi": 1.0, "undefined_resamples": 3}, "0.500 [0.000, 1.000]a", [EXCLUDED]),
    ({"value": 0.5, "lo": None, "hi": None, "no_interval": "one singer"}, "0.500a", ["one singer"]),
    ({"value": 0.5, "lo": None, "hi": None}, "0.500a", [NOT_COMPUTED]),
    ({"value": None, "lo": None, "hi": None, "no_interval": "no clip"}, "-a", ["no clip"]),
    ({"value": None, "lo": None, "hi": None}, "-a", ["undefined"]),
])  # fmt: skip
def test_a_figure_has_its_interval_or_the_mark_of_a_reason(found: dict[str, Any], shown: str, notes: list[str]) -> None:
    marks = Notes()
    assert (text(estimate_html(found, marks)), list(marks.marks)) == (shown, notes)


def test_units_and_signs() -> None:
    found = {"delta": -0.0004, "lo": -1.5, "hi": 0.256}
    assert figure_text(found, "points", "delta", "+") == "0.00 [\N{MINUS SIGN}1.50, +0.26]"
    assert figure_text({"share": 0.825, "lo": 0.5, "hi": 1.0}, "share", "share") == "82% [50%, 100%]"
    notes = Notes()
    assert text(bare_html(12.34, notes, "a label", "score")) == "12.3a"
    assert text(bare_html(None, notes, "a label")) == "-a"
