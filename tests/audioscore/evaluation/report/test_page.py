import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audioscore.config import EvaluationSection
from audioscore.data.audio import encode
from audioscore.evaluation.evaluate import evaluate
from audioscore.evaluation.gate.decision import compare_with_champion, decide
from audioscore.evaluation.predictions import Prediction
from audioscore.evaluation.report import page as report
from audioscore.evaluation.report.page import render_report

Make = Callable[..., list[Prediction]]
Read = Callable[[str], Any]
HOSTILE = "<script>alert('x')</script>&\"$\\frac.m4a"
RUN = [{"epoch": 1, "train_loss": 0.7, "val_spearman": 0.1}, {"epoch": 2, "train_loss": 0.4, "val_spearman": 0.5}]
CURVES = {"baseline": {"0": RUN, "1": RUN}, "hybrid": {"0": RUN, "1": RUN}}
BOTH = {"baseline": 0, "hybrid": 1}
FIGURE = re.compile(r"[+\u2212]?\d+(?:\.\d+|%)|^-(?=\^)")
VALIDATION = {
    "valid": True, "clips": 98, "accepted": 96, "warnings": [],
    "rejected": [{"audio_file": f"{name}.wav", "row": 1, "reason": f"{name}.wav: 0.{name} s of 2.0 s",
    "severity": "error"} for name in (5, 7)],
    "expectations": [{"meaning": "scores", "success": True, "severity": "error", "unexpected_count": 0}]
}  # fmt: skip


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
    figures = evaluate(rows, {"level": {row.sha256: row.human for row in rows}}, BOTH, resamples=50)
    facts = {"curves": CURVES, "provenance": {"code": "abc", "seeds": [0, 1]}, "data_summary": {"clips": 96}}
    return render_report(figures, rows, decision=decision, **{**facts, **changes})


def clips_of(page: str) -> list[str]:
    """The cards of the clips with the largest errors."""
    return page.split('<article class="clip">')[1:]


@pytest.fixture(scope="module")
def page(make_predictions: Make) -> str:
    """A promoted model, with two clips of large errors of the baseline."""
    errors = {3: -40.0, 5: 30.0}
    rows = [
        replace(r, predicted=r.human + errors[int(r.sha256, 16)]) if (r.plan, r.seed) == ("baseline", 0)
        and int(r.sha256, 16) in errors else r for r in make_predictions()
    ]  # fmt: skip
    return render(rows, {"promoted": True, "reason": "0.9 against 0.8", "delta": 0.1, "lo": 0.02, "hi": 0.2})


@pytest.fixture(scope="module")
def whole(make_predictions: Make, robustness_document: dict[str, Any]) -> str:
    """A page with all optional parts, and values with intervals, without intervals, and undefined."""
    rows = [replace(row, source="ktv" if row.singer_id == "singer0" else row.source) for row in make_predictions()]
    test = sorted((row for row in rows if row.split == "test"), key=lambda row: row.clip)
    new = [row for row in test if (row.plan, row.seed) == ("hybrid", 1)]
    old = [replace(row, plan="v3", predicted=row.predicted + index % 7 * 4) for index, row in enumerate(new)]
    answer = decide(
        [row.predicted for row in new], [row.predicted for row in old], scores=[row.human for row in new],
        singers=[row.singer_id for row in new], sources=[row.source for row in new], resamples=100
    )  # fmt: skip
    decision = {"promoted": answer.promoted, "reason": answer.reason, "winner": "hybrid", **answer.parts()}
    decision |= {"delta": answer.delta, "lo": answer.lo, "hi": answer.hi}
    ratings = {row.clip: (row.human - 1, row.human + 2, None) for row in new}
    figures = evaluate(rows, {"level": {}}, BOTH, ratings=ratings, reference="hybrid", resamples=50)
    figures["plans"]["hybrid"]["speaker_probe"] = {"before": 0.75, "after": 0.5, "singers": 4, "chance": 0.25}
    champion = compare_with_champion(rows, BOTH, old[:-4], EvaluationSection(resamples=100))
    return render_report(
        figures, rows, CURVES, {"run": "r1"}, {"clips": 96}, decision, robustness=robustness_document,
        validation=VALIDATION, champion=champion
    )  # fmt: skip


def test_the_decision_comes_first_and_everything_is_shown(page: str, read_page: Read) -> None:
    lead = re.search(r'<p class="lead good">Promoted: 0\.9 against 0\.8\.</p>', page)
    assert lead[0] in page.partition("<table")[0]
    for text in ("A baseline", "B hybrid", "level", "source", "constant"):
        assert text in page
    assert re.search(r"\b48 test clips, 12 singers", page)
    (comparison,) = (text for _, text in read_page(page).section("Spearman overall").paragraphs if " [" in text)
    assert re.search(r"\b[AB]\b", comparison)[0] == "B", "the better plan is named first"
    assert page.count("<svg") == page.count("<figcaption>") == 8


def test_the_page_stands_alone(page: str) -> None:
    tags = Tags(page)
    assert not {"script", "link", "iframe"} & set(tags.found)
    assert all(link.startswith(("#", "data:")) for link in tags.links)
    assert set(re.findall(r'href="#(s\d+)"', page)) == set(re.findall(r'<section id="(s\d+)"', page))


def values_without_interval(page: Any) -> tuple[list[str], int, int]:
    """Return texts with values without interval or note, the number of values, and of sections without any interval."""
    bare, checked, skipped = [], 0, 0
    for section in page.sections:
        notes = [mark for css, text in section.paragraphs if css == "notes" for mark in text.split("^")[1:]]
        reasons = dict(mark.partition(" ")[::2] for mark in notes)
        texts = [cell for rows in section.tables for row in rows[1:] for cell in row[1:]]
        texts += [text for css, text in section.paragraphs if css != "notes"]
        if not reasons and not any(" [" in text for text in texts):
            skipped += 1
            continue
        for text in texts:
            marks = [mark for mark in re.findall(r"\^([a-z]+)", text) if reasons.get(mark)]
            beside = re.sub(r"\S+ \[[^\]]*\]|error \S+", "", text)  # without values that have an interval
            checked += len(FIGURE.findall(text))
            if len(FIGURE.findall(beside)) > len(marks):
                bare.append(text)
    return bare, checked, skipped


@pytest.mark.parametrize(("which", "without_figures"), [("page", 7), ("whole", 4)])
def test_every_value_has_an_interval_or_a_reason(
    which: str, without_figures: int, request: Any, read_page: Read
) -> None:
    bare, checked, skipped = values_without_interval(read_page(request.getfixturevalue(which)))
    assert (bare, skipped) == ([], without_figures)
    assert checked > 150


def test_the_decision_is_shown_in_parts(whole: str, read_page: Read) -> None:
    section = read_page(whole).section("slice", "verdict")
    difference, slices = section.tables
    assert re.fullmatch(r"\+0\.\d{3} \[\+0\.\d{3}, \+0\.\d{3}\]", difference[1][1])
    assert slices[0] == ["slice", "verdict", "difference", "winner", "champion", "clips", "singers"]
    assert {row[1] for row in slices[1:]} == {"kept", "too small"}
    text = " ".join(text for _, text in section.paragraphs)
    for part in ("noise, SNR 10 dB.", "B hybrid", "48 clips, 12 singers"):
        assert part in text


def test_the_champion_is_compared_with_the_plans(whole: str, read_page: Read) -> None:
    page = read_page(whole)
    section = next(one for one in page.sections if one.tables and "champion" in [row[0] for row in one.tables[0]])
    names, plans = [row[0] for row in section.tables[0]], ["A baseline", "B hybrid"]
    assert names == ["", "champion", *plans, *(f"{plan} minus champion" for plan in plans)]
    assert re.search(r"\b44 test clips .*11 singers.* 4 more", section.paragraphs[0][1])


def test_robustness_tests_show_expectation_and_effect(whole: str, read_page: Read) -> None:
    section = read_page(whole).section("degradation", "verdict")
    changes, domain = section.tables
    noise = next(row for row in changes if row[0] == "noise, SNR 10 dB · B hybrid")
    figures = ["+2.12 [+1.38, +2.88]", "25% [12%, 50%]", "25% [12%, 50%]"]
    assert noise[1:] == ["flagged, refuses", *figures, "not higher", "24"]
    assert [row[1] for row in changes[1:]] == ["flagged, refuses"] * 2 + ["passed"] * 2 + ["no interval"] * 2
    assert domain[1] == ["A baseline", "0.625 [0.500, 0.750]", "0.500^a", "40", "80-85"]
    assert domain[2][:4] == ["B hybrid", "-^b", "-^b", "0"]
    text = " ".join(text for _, text in section.paragraphs)
    for part in ("^b no sources", "0.5 points", "noise_10db", "1: unvoiced.", "6 singers."):
        assert part in text


def test_rejected_rows_are_counted_by_reason(whole: str, read_page: Read) -> None:
    (section,) = (one for one in read_page(whole).sections if one.tables and one.tables[0][0][0] == "rejected")
    assert re.search(r"open.*\b96 of 98 .*\b2 rejected", section.paragraphs[0][1])
    assert section.tables == [[section.tables[0][0], ["… s of … s", "2", "5.wav: 0.5 s of 2.0 s"]]]


def test_the_worst_clips_are_listed_worst_first(page: str) -> None:
    worst = [re.findall(r"audio/\d+\.m4a", clip) for clip in clips_of(page)]
    assert (worst[:2], len(worst)) == ([["audio/003.m4a"], ["audio/005.m4a"]], 20)


def test_the_worst_clips_are_those_of_the_winner(make_predictions: Make) -> None:
    rows = [
        replace(r, predicted=0.0) if r.plan == "baseline" and int(r.sha256, 16) == 7 else r for r in make_predictions()
    ]
    page = render(rows, {"promoted": False, "reason": "no", "winner": "hybrid"})
    assert "audio/007.m4a" not in clips_of(page)[0]
    assert "audio/007.m4a" in clips_of(render(rows))[0]


def test_the_worst_clips_have_a_player_and_a_picture(make_predictions: Make, tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    wave = 0.3 * np.sin(2 * np.pi * 300 * np.arange(24_000) / 24_000)
    encode(wave.astype(np.float32), 24_000, tmp_path / "audio" / "003.m4a")
    rows = [replace(r, predicted=0.0) if int(r.sha256, 16) in (3, 5) else r for r in make_predictions()]
    page = render(rows, recordings=tmp_path)
    assert page.count("<audio ") == page.count("<img ") == 1
    (clip,) = (clip for clip in clips_of(page) if "<audio " in clip)
    assert "audio/003.m4a" in clip


def test_players_are_left_out_where_the_page_is_full(make_predictions: Make, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "audio").mkdir()
    wave = np.random.default_rng(0).uniform(-0.3, 0.3, 24_000).astype(np.float32)
    for number in range(48):
        encode(wave, 24_000, tmp_path / "audio" / f"{number:03d}.m4a")
    full = render(make_predictions(), recordings=tmp_path)
    assert full.count("<audio ") == 20
    monkeypatch.setattr(report, "PAGE_CHARACTERS", len(full) - 100_000)
    small = render(make_predictions(), recordings=tmp_path)
    assert 0 < small.count("<audio ") < 20
    assert len(clips_of(small)) == 20
    assert len(small) < len(full) - 90_000


def test_hostile_names_are_escaped(make_predictions: Make, robustness_document: dict[str, Any], tmp_path: Path) -> None:
    rows = [
        replace(r, audio_file=HOSTILE, source=HOSTILE, song_id=HOSTILE, predicted=0.0) if int(r.sha256, 16) in (3, 4)
        else r for r in make_predictions()
    ]  # fmt: skip
    fault = {"audio_file": HOSTILE, "row": 1, "reason": HOSTILE, "severity": "error"}
    unmet = {"meaning": HOSTILE, "success": False, "severity": HOSTILE, "unexpected_count": 1}
    page = render(
        rows, {"promoted": False, "reason": HOSTILE, "winner": HOSTILE, "probes": [HOSTILE]},
        provenance={HOSTILE: {HOSTILE: HOSTILE}}, data_summary={HOSTILE: [HOSTILE]},
        validation={**VALIDATION, "rejected": [fault], "warnings": [fault], "expectations": [unmet]},
        robustness={**robustness_document, "warnings": [HOSTILE], "left_out": [{**fault, "reason": HOSTILE}]},
        recordings=tmp_path
    )  # fmt: skip
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert '<p class="lead bad">' in page


def test_a_page_of_undefined_figures_and_missing_parts(make_predictions: Make, read_page: Read) -> None:
    rows = [
        replace(r, source="录音棚" if r.source == "ktv" else None, singer_id="only", lo=None, hi=None, predicted=75.0
        if r.plan == "hybrid" else r.predicted) for r in make_predictions() if r.split == "test"
    ]  # fmt: skip
    page = render(rows, curves={}, data_summary={}, provenance={})
    assert "录音棚" in page
    assert not re.search(r"\b(nan|NaN|None)\b", page)
    assert "48 clips" in str(read_page(page).section("within source").paragraphs)
    assert values_without_interval(read_page(page))[0] == []


def test_a_trained_control_is_called_a_control(make_predictions: Make) -> None:
    rows = make_predictions({"hybrid": 2.0, "timbre": 8.0})
    figures = evaluate(rows, {}, {"hybrid": 0, "timbre": 0}, resamples=20)
    page = render_report(figures, rows, {}, {}, {}, None)
    assert "control: timbre" in page
    assert "B minus A" not in page
