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
from audioscore.evaluation import report
from audioscore.evaluation.beside_champion import beside_champion
from audioscore.evaluation.evaluate import evaluate
from audioscore.evaluation.gate import decide
from audioscore.evaluation.predictions import Prediction
from audioscore.evaluation.report import render_report

Make = Callable[..., list[Prediction]]
Read = Callable[[str], dict[str, Any]]
HOSTILE = "<script>alert('x')</script>&\"$\\frac.m4a"
RUN = [{"epoch": 1, "train_loss": 0.7, "val_spearman": 0.1}, {"epoch": 2, "train_loss": 0.4, "val_spearman": 0.5}]
CURVES = {"baseline": {"0": RUN, "1": RUN}, "hybrid": {"0": RUN, "1": RUN}}
BOTH = {"baseline": 0, "hybrid": 1}
FACTS = ("Data", "Provenance", "The data gate")  # counted and recorded, not estimated
FIGURE = re.compile(r"[+\u2212]?\d+(?:\.\d+|%)|^-(?=\^)")
VALIDATION = {
    "valid": True, "clips": 98, "accepted": 96, "warnings": [],
    "rejected": [
        {"audio_file": f"{name}.wav", "row": 1, "reason": f"{name}.wav: 0.{name} s long; 2.0 s are needed.",
         "severity": "error"}
        for name in (5, 7)
    ],
    "expectations": [{"meaning": "a column with scores", "success": True, "severity": "error", "unexpected_count": 0}],
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


@pytest.fixture(scope="module")
def whole(make_predictions: Make, probes_document: dict[str, Any]) -> str:
    """A page with every part it can have, of figures with intervals, without them, and undefined ones."""
    rows = [replace(row, source="ktv" if row.singer_id == "singer0" else row.source) for row in make_predictions()]
    test = sorted((row for row in rows if row.split == "test"), key=lambda row: row.clip)
    new = [row for row in test if (row.plan, row.seed) == ("hybrid", 1)]
    old = [replace(row, plan="v3", predicted=row.predicted + place % 7 * 4) for place, row in enumerate(new)]
    answer = decide(
        [row.predicted for row in new], [row.predicted for row in old], scores=[row.human for row in new],
        singers=[row.singer_id for row in new], sources=[row.source for row in new], resamples=100,
    )  # fmt: skip
    decision = {"promoted": answer.promoted, "reason": answer.reason, "winner": "hybrid", **answer.parts()}
    decision |= {"delta": answer.delta, "lo": answer.lo, "hi": answer.hi}
    ratings = {row.clip: (row.human - 1, row.human + 2, None) for row in new}
    figures = evaluate(rows, {"level": {}}, BOTH, ratings=ratings, reference="hybrid", resamples=50)
    figures["plans"]["hybrid"]["speaker_probe"] = {"before": 0.75, "after": 0.5, "singers": 4, "chance": 0.25}
    champion = beside_champion(rows, BOTH, old[:-4], EvaluationSection(resamples=100))
    return render_report(
        figures, rows, CURVES, {"run": "r1"}, {"clips": 96}, decision, probes=probes_document, validation=VALIDATION,
        champion=champion,
    )  # fmt: skip


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
    assert set(re.findall(r'href="#(s\d+)"', page)) == set(re.findall(r'<section id="(s\d+)"', page))


def bare_numbers(sections: dict[str, Any]) -> tuple[list[str], int]:
    """Texts with more figures than intervals and marks that are spelled out below, and how many figures there are."""
    bare, checked = [], 0
    for heading, section in sections.items():
        told = dict(
            mark.partition(" ")[::2]
            for css, text in section.paragraphs
            if css == "notes"
            for mark in text.split("^")[1:]
        )
        texts = [cell for rows in section.tables for row in rows[1:] for cell in row[1:]]
        texts += [text for css, text in section.paragraphs if css != "notes"]
        for text in texts if heading not in FACTS else ():
            marks = [mark for mark in re.findall(r"\^([a-z]+)", text) if told.get(mark)]
            beside = re.sub(r"\S+ \[[^\]]*\]|off by \S+", "", text)  # without figures that have an interval
            checked += len(FIGURE.findall(text))
            if len(FIGURE.findall(beside)) > len(marks):
                bare.append(f"{heading}: {text}")
    return bare, checked


@pytest.mark.parametrize("which", ["page", "whole"])
def test_every_number_has_an_interval_or_says_why_it_has_none(
    which: str, request: pytest.FixtureRequest, read_page: Read
) -> None:
    bare, checked = bare_numbers(read_page(request.getfixturevalue(which)))
    assert bare == []
    assert checked > 150


@pytest.mark.parametrize(
    "spoil",
    [
        lambda page: re.sub(r'<span class="interval">[^<]*</span>', "", page, count=1),
        lambda page: re.sub(r"(>0\.\d{3})<sup>\w</sup>", r"\1", page, count=1),
        lambda page: re.sub(r'<p class="notes"><span><sup>a</sup> [^<]*</span>', '<p class="notes">', page),
    ],
)
def test_a_number_without_either_would_be_found(spoil: Callable[[str], str], whole: str, read_page: Read) -> None:
    assert spoil(whole) != whole
    assert bare_numbers(read_page(spoil(whole)))[0]


def test_the_decision_is_shown_in_parts(whole: str, read_page: Read) -> None:
    section = read_page(whole)["The decision"]
    difference, slices = section.tables
    assert difference[1][0] == "Spearman, winner minus champion"
    assert re.fullmatch(r"\+0\.\d{3} \[\+0\.\d{3}, \+0\.\d{3}\]", difference[1][1])
    assert slices[0] == ["slice", "verdict", "difference", "winner", "champion", "clips", "singers"]
    assert {row[1] for row in slices[1:]} == {"kept", "too small"}
    said = [text for _, text in section.paragraphs]
    assert "Probes flag the winner, without refusing it: noise, SNR 10 dB." in said
    assert any(text.startswith("The winner on validation, over all its seeds, is B hybrid.") for text in said)
    assert "Judged on 48 clips, 12 singers." in said


def test_the_champion_stands_beside_the_plans(whole: str, read_page: Read) -> None:
    section = read_page(whole)["Beside the champion"]
    names = [row[0] for row in section.tables[0]]
    plans = ["A baseline", "B hybrid"]
    assert names == ["", "champion", *plans, *(f"{plan} minus champion" for plan in plans)]
    assert "44 test clips of 11 singers" in section.paragraphs[0][1]
    assert section.paragraphs[0][1].endswith("4 more left out.")


def test_probes_say_what_was_expected_and_what_was_found(whole: str, read_page: Read) -> None:
    section = read_page(whole)["Faults and the recording domain"]
    changes, domain = section.tables
    noise = next(row for row in changes if row[0] == "noise, SNR 10 dB · B hybrid")
    figures = ["+2.12 [+1.38, +2.88]", "25% [12%, 50%]"]
    assert noise[1:] == ["flagged, refuses", *figures, "not higher", "24"]
    assert [row[1] for row in changes[1:]] == ["flagged, refuses"] * 2 + ["passed"] * 2 + ["not judged"] * 2
    assert domain[1] == ["A baseline", "0.625 [0.500, 0.750]", "0.500^a", "40", "80-85"]
    assert domain[2] == ["B hybrid", "-^b", "-^b", "0", "none"]
    said = " ".join(text for _, text in section.paragraphs)
    for part in ("^b no band holds two sources", "tolerance of 0.5 points", "These refuse a promotion: noise_10db."):
        assert part in said
    assert "1 degraded versions were left out. Most often: 1: nobody sings in it." in said
    assert "Only 6 singers in the probed clips." in said


def test_the_gate_of_the_data_is_summarised_by_reason(whole: str, read_page: Read) -> None:
    section = read_page(whole)["The data gate"]
    assert section.paragraphs[0][1].startswith("The gate was open: 96 of 98 rows were accepted, 2 rejected")
    rejected = ["… s long; … s are needed.", "2", "5.wav: 0.5 s long; 2.0 s are needed."]
    assert section.tables == [[["rejected", "rows", "for example"], rejected]]


def test_the_worst_clips_are_listed_worst_first(page: str) -> None:
    worst = re.findall(r"audio/\d+\.m4a", page[page.index("<h2>The clips furthest off") :])
    assert worst[:2] == ["audio/003.m4a", "audio/005.m4a"]
    assert len(worst) == 20


def test_the_worst_clips_are_those_of_the_winner(make_predictions: Make) -> None:
    rows = [
        replace(r, predicted=0.0) if r.plan == "baseline" and int(r.sha256, 16) == 7 else r for r in make_predictions()
    ]
    page = render(rows, {"promoted": False, "reason": "no", "winner": "hybrid"})
    shown = page[page.index("<h2>The clips furthest off") :]
    assert "largest errors of B hybrid" in shown
    assert re.findall(r"audio/\d+\.m4a", shown)[0] != "audio/007.m4a"


def test_the_worst_clips_can_be_heard_and_seen(make_predictions: Make, tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    wave = 0.3 * np.sin(2 * np.pi * 300 * np.arange(24_000) / 24_000)
    encode(wave.astype(np.float32), 24_000, tmp_path / "audio" / "003.m4a")
    rows = [replace(r, predicted=0.0) if int(r.sha256, 16) in (3, 5) else r for r in make_predictions()]
    page = render(rows, recordings=tmp_path)
    assert page.count("<audio ") == page.count("<img ") == 1
    assert page.count("No player: the recording is missing, or cannot be decoded.") == 19
    assert page.index("<audio ") < page.index("audio/003.m4a")


def test_players_give_way_where_the_page_is_full(
    make_predictions: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "audio").mkdir()
    wave = np.random.default_rng(0).uniform(-0.3, 0.3, 24_000).astype(np.float32)
    for number in range(48):
        encode(wave, 24_000, tmp_path / "audio" / f"{number:03d}.m4a")
    full = render(make_predictions(), recordings=tmp_path)
    assert full.count("<audio ") == 20
    monkeypatch.setattr(report, "PAGE_CHARACTERS", len(full) - 100_000)
    small = render(make_predictions(), recordings=tmp_path)
    assert 0 < small.count("<audio ") < 20
    assert small.count("No player: left out to keep the page small.") == 20 - small.count("<audio ")
    assert len(small) < len(full) - 90_000


def test_hostile_names_are_escaped(make_predictions: Make, probes_document: dict[str, Any], tmp_path: Path) -> None:
    rows = [
        replace(r, audio_file=HOSTILE, source=HOSTILE, song_id=HOSTILE, predicted=0.0)
        if int(r.sha256, 16) in (3, 4)
        else r
        for r in make_predictions()
    ]
    fault = {"audio_file": HOSTILE, "row": 1, "reason": HOSTILE, "severity": "error"}
    unmet = {"meaning": HOSTILE, "success": False, "severity": HOSTILE, "unexpected_count": 1}
    page = render(
        rows,
        {"promoted": False, "reason": HOSTILE, "winner": HOSTILE, "probes": [HOSTILE]},
        provenance={HOSTILE: {HOSTILE: HOSTILE}},
        data_summary={HOSTILE: [HOSTILE]},
        validation={**VALIDATION, "rejected": [fault], "warnings": [fault], "expectations": [unmet]},
        probes={**probes_document, "warnings": [HOSTILE], "left_out": [{**fault, "reason": HOSTILE}]},
        recordings=tmp_path,
    )
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert '<p class="lead bad">Not promoted: ' in page


def test_undefined_figures_and_missing_parts_do_not_break_the_page(make_predictions: Make, read_page: Read) -> None:
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
    assert "Not decided yet" in page
    assert "The difference between the plans is undefined" in page
    assert "No training curves were given" in page
    assert page.count("Nothing was recorded.") == 2
    assert not re.search(r"\b(nan|NaN|None)\b", page)
    sections = read_page(page)
    assert "the model predicts no intervals" in str(sections["Order of pairs, and calibration"].paragraphs)
    assert "all 48 clips are by one singer" in str(sections["All metrics"].paragraphs)
    assert "No probe was run." in str(sections["Faults and the recording domain"].paragraphs)


def test_a_trained_control_is_called_a_control(make_predictions: Make) -> None:
    rows = make_predictions({"hybrid": 2.0, "timbre": 8.0})
    figures = evaluate(rows, {}, {"hybrid": 0, "timbre": 0}, resamples=20)
    page = render_report(figures, rows, {}, {}, {}, None)
    assert "control: timbre" in page
    assert "Only one of the two plans was evaluated" in page
