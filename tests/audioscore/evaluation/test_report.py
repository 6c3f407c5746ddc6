import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from audioscore.evaluation.evaluate import evaluate
from audioscore.evaluation.predictions import Prediction
from audioscore.evaluation.report import render_report

Make = Callable[..., list[Prediction]]
HOSTILE = "<script>alert('x')</script>&\"$\\frac.m4a"
RUN = [{"epoch": 1, "train_loss": 0.7, "val_spearman": 0.1}, {"epoch": 2, "train_loss": 0.4, "val_spearman": 0.5}]
CURVES = {"baseline": {"0": RUN, "1": RUN}, "hybrid": {"0": RUN, "1": RUN}}


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href"}]


def render(rows: list[Prediction], decision: dict[str, Any] | None = None, **changes: Any) -> str:
    figures = evaluate(
        rows, {"level": {row.sha256: row.human for row in rows}}, {"baseline": 0, "hybrid": 1}, resamples=50
    )
    arguments = {
        "curves": CURVES,
        "provenance": {"code": "abc", "seeds": [0, 1]},
        "data_summary": {"clips": 96},
        **changes,
    }
    return render_report(figures, rows, decision=decision, **arguments)


@pytest.fixture(scope="module")
def page(make_predictions: Make) -> str:
    """A promoted model, with two clips that its baseline misses by far."""
    errors = {3: -40.0, 5: 30.0}
    rows = [
        replace(r, predicted=r.human + errors[int(r.sha256, 16)])
        if (r.plan, r.seed) == ("baseline", 0) and int(r.sha256, 16) in errors
        else r
        for r in make_predictions()
    ]
    return render(rows, {"promoted": True, "reason": "Spearman 0.9 against 0.8", "delta": 0.1, "lo": 0.02, "hi": 0.2})


def test_the_page_says_the_decision_first_and_shows_everything(page: str) -> None:
    assert '<p class="lead good">Promoted: Spearman 0.9 against 0.8.</p>' in page
    assert page.index("Promoted: ") < page.index("<table")
    for text in ("A baseline", "B hybrid", "control: level only", "control: source only", "48 test clips, 12 singers"):
        assert text in page
    assert "B ranks the test clips better than A" in page
    assert page.count("<svg") == page.count("<figcaption>") == 8


def test_the_page_stands_alone(page: str) -> None:
    tags = Tags(page)
    assert not {"script", "link", "iframe"} & set(tags.found)
    assert all(link.startswith(("#", "data:")) for link in tags.links)


def test_the_worst_clips_are_listed_worst_first(page: str) -> None:
    worst = re.findall(r"audio/\d+\.m4a", page[page.index("The clips furthest off") :])
    assert worst[:2] == ["audio/003.m4a", "audio/005.m4a"]
    assert len(worst) == 10


def test_hostile_names_are_escaped(make_predictions: Make) -> None:
    rows = [
        replace(r, audio_file=HOSTILE, source=HOSTILE, predicted=0.0) if int(r.sha256, 16) == 3 else r
        for r in make_predictions()
    ]
    page = render(
        rows,
        {"promoted": False, "reason": HOSTILE},
        provenance={HOSTILE: {HOSTILE: HOSTILE}},
        data_summary={HOSTILE: [HOSTILE]},
    )
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert '<p class="lead bad">Not promoted: ' in page


def test_undefined_figures_and_missing_parts_do_not_break_the_page(make_predictions: Make) -> None:
    rows = [
        replace(
            r,
            source="录音棚" if r.source == "ktv" else None,
            singer_id="only",
            predicted=75.0 if r.plan == "hybrid" else r.predicted,
            lo=None,
            hi=None,
        )
        for r in make_predictions()
        if r.split == "test"
    ]
    page = render(rows, curves={}, data_summary={}, provenance={})
    assert "录音棚" in page
    assert "unknown" in page
    assert "Not decided yet" in page
    assert "The difference between the plans is undefined" in page
    assert "No training curves were given" in page
    assert "no intervals were given" in page
    assert page.count("Nothing was recorded.") == 2
    assert not re.search(r"\bnan\b", page, flags=re.IGNORECASE)


def test_a_trained_control_is_called_a_control(make_predictions: Make) -> None:
    rows = make_predictions({"hybrid": 2.0, "timbre": 8.0})
    figures = evaluate(rows, {}, {"hybrid": 0, "timbre": 0}, resamples=20)
    page = render_report(figures, rows, {}, {}, {}, None)
    assert "control: timbre" in page
    assert "Only one of the two plans was evaluated" in page
