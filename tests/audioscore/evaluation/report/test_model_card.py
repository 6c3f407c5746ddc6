import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from audioscore.encoders.features import EncoderReference
from audioscore.evaluation.evaluate import evaluate
from audioscore.evaluation.predictions import Prediction
from audioscore.evaluation.report.model_card import render_model_card
from audioscore.evaluation.report.page import render_report
from audioscore.scoring.calibration import Calibration
from audioscore.scoring.scorer import Description, Tuning

Make = Callable[..., list[Prediction]]
FACTS = {"registered model": "house", "run id": "r1", "licence of the weights": "Apache-2.0 + CC BY-NC 4.0"}
DECISION = {"promoted": False, "reason": "the interval holds 0", "winner": "hybrid"}
FAULT = {"audio_file": "a.wav", "row": 1, "reason": "silent", "severity": "error"}
VALIDATION = {"valid": True, "clips": 98, "accepted": 96, "rejected": [FAULT] * 2, "warnings": [], "expectations": []}
DESCRIPTION = Description(
    plan="hybrid", seed=1, encoders={"muq": EncoderReference("muq", "OpenMuQ/MuQ-large-msd-iter", "abc", "ab" * 32, 6),
    "campplus": EncoderReference("campplus", "iic/speech_campplus_sv_zh-cn_16k-common", "v2", "cd" * 32)}, head={},
    calibration=Calibration((-1.0, 0.0, 1.0), (60.0, 70.0, 90.0), 4.0), seen_clips=("00", "01", "02"),
    data_digest="d1.dir", code_revision="c1", tuning=Tuning("lora", 3, 8, 8)
)  # fmt: skip


@pytest.fixture(scope="module")
def rows(make_predictions: Make) -> list[Prediction]:
    return make_predictions()


@pytest.fixture(scope="module")
def figures(rows: list[Prediction]) -> dict[str, Any]:
    ratings = {row.clip: (row.human - 1, row.human + 2) for row in rows if row.split == "test"}
    return evaluate(
        rows, {"level": {row.sha256: row.human for row in rows}}, {"baseline": 0, "hybrid": 1}, ratings=ratings,
        resamples=50
    )  # fmt: skip


@pytest.fixture(scope="module")
def card(figures: dict[str, Any], rows: list[Prediction], robustness_document: dict[str, Any]) -> str:
    reason = "some [reason] <i>here</i>"
    return render_model_card(
        figures,
        rows,
        DESCRIPTION,
        FACTS,
        {**DECISION, "reason": reason},
        robustness=robustness_document,
        validation=VALIDATION,
    )


def test_a_card_has_the_usual_headings_in_order(card: str) -> None:
    assert card.startswith("# house: B hybrid\n")
    headings = re.findall(r"^## (.*)$", card, flags=re.MULTILINE)
    assert len(headings) == 9
    named = [
        name for name in headings if name in ("Training data", "Evaluation", "Calibration", "Licence", "Provenance")
    ]
    assert named == ["Training data", "Evaluation", "Calibration", "Licence", "Provenance"]


def test_a_card_contains_licences_data_robustness_and_calibration(card: str) -> None:
    for part in (
        "low-rank adapters",
        "commercial",
        "Apache-2.0 + CC BY-NC 4.0",
        "muq: OpenMuQ/MuQ-large-msd-iter, CC BY-NC 4.0, sha256 `" + "ab" * 32,
        "campplus: iic/speech_campplus_sv_zh-cn_16k-common, Apache-2.0",
        "`d1.dir`",
        "3 recordings",
        "96 of 98 rows",
        "rejected 2",
        "| ktv | 12 | 12 | 24 |",
        "Not promoted: some \\[reason\\] &lt;i&gt;here&lt;/i&gt;.",
        ": noise, SNR 10 dB.",
        "| 6 dB louder | same | \N{MINUS SIGN}1.50 (",
        ": no sources.",
        "3 knots",
        'load_model("models:/house@champion")',
    ):
        assert part in card, part


def test_every_figure_of_the_card_is_in_the_report(
    card: str, figures: dict[str, Any], rows: list[Prediction], robustness_document: dict[str, Any]
) -> None:
    page = render_report(
        figures,
        rows,
        {},
        FACTS,
        {},
        {**DECISION, "reason": "none"},
        robustness=robustness_document,
        validation=VALIDATION,
    )
    page = re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)
    text = " ".join(re.sub(r"<[^>]*>", "", page).split())
    brackets = set(re.findall(r"[+\u2212]?[\d.]+%? \[[^\]\\]*\]", card))
    assert len(brackets) > 30
    assert [figure for figure in brackets if figure not in text] == []
    decimals = set(re.findall(r"\d+\.\d+", card)) - {"4.0"}
    assert [number for number in decimals if number not in text] == []


def test_every_table_of_the_card_is_whole(card: str) -> None:
    tables = re.findall(r"(?:^\|.*\|$\n?)+", card, flags=re.MULTILINE)
    assert len(tables) == 5
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.strip().splitlines()}) == 1


def test_a_card_without_robustness_tests_and_decision(figures: dict[str, Any], rows: list[Prediction]) -> None:
    unknown = replace(DESCRIPTION, encoders={"muq": EncoderReference("muq", None, None, "ab" * 32, 2)}, tuning=None)
    card = render_model_card(figures, rows, unknown, {}, None)
    assert card.startswith("# audioscore: B hybrid\n")
    assert re.search(r"MuQ.* frozen", card)
    assert re.search(r"^.*muq: .*unknown", card, flags=re.MULTILINE)
    for absent in ("commercial", "low-rank", "noise", "promoted:"):
        assert absent not in card


def test_hostile_names_are_escaped(figures: dict[str, Any], rows: list[Prediction]) -> None:
    hostile = "a|b <script>`x`\n# h"
    named = [replace(row, source=hostile if row.source == "ktv" else row.source) for row in rows]
    again = evaluate(named, {}, {"hybrid": 1, "baseline": 0}, resamples=20)
    card = render_model_card(again, named, DESCRIPTION, {hostile: hostile}, DECISION)
    assert "<script>" not in card
    assert "\n# h" not in card
    assert "source a\\|b &lt;script&gt;\\`x\\` # h" in card
