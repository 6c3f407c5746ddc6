import re
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from audioscore.evaluation.bootstrap import ResampledClips, resample_test_split
from audioscore.evaluation.predictions import Prediction

MakePredictions = Callable[..., list[Prediction]]


@pytest.fixture(scope="session")
def make_predictions() -> MakePredictions:
    """Predictions of `plans` {name: noise} for two seeds: 12 test singers with 4 clips, half KTV, half a cappella."""

    def make(plans: dict[str, float] | None = None, seeds: tuple[int, ...] = (0, 1)) -> list[Prediction]:
        noise = plans or {"baseline": 6.0, "hybrid": 2.0}
        rng = np.random.default_rng(0)
        scores = {
            index: round(float(rng.uniform(50, 85) if index % 8 < 4 else rng.uniform(85, 99)), 1) for index in range(96)
        }
        rows = []
        for plan, spread in noise.items():
            for seed in seeds:
                errors = np.random.default_rng([seed, len(plan)]).normal(0, spread, 96)
                for index, score in scores.items():
                    split = "test" if index < 48 else "val" if index < 72 else "train"
                    predicted = float(score + errors[index])
                    rows.append(
                        Prediction(sha256=f"{index:064x}", audio_file=f"audio/{index:03d}.m4a", split=split,
                        singer_id=f"singer{index // 4}", song_id=f"song{index % 5}", source="ktv" if index % 8 < 4
                        else "acapella", score=score, plan=plan, seed=seed, raw=predicted / 20, predicted=predicted,
                        lo=predicted - 5, hi=predicted + 5)
                    )  # fmt: skip
        return rows

    return make


@pytest.fixture
def rows(make_predictions: MakePredictions) -> list[Prediction]:
    """The 48 test clips of one plan and seed, 4 of each singer."""
    return [row for row in make_predictions({"baseline": 6.0}, (0,)) if row.split == "test"]


@pytest.fixture
def test(rows: list[Prediction]) -> ResampledClips:
    return resample_test_split(rows, 100, 0.9, 0)[0]


class Section(HTMLParser):
    """One section of a page: tables as rows of text, and paragraphs with their class; a superscript becomes `^a`."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.paragraphs: list[tuple[str, str]] = []
        self._open: list[str] | None = None
        self._css, self._hidden = "", 0
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("svg", "style", "figcaption"):
            self._hidden += 1
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th", "p"):
            self._open, self._css = [], dict(attrs).get("class") or ""
        elif tag == "sup":
            self.handle_data("^")
        elif tag in ("br", "span"):
            self.handle_data(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("svg", "style", "figcaption"):
            self._hidden -= 1
        elif tag in ("td", "th", "p") and self._open is not None:
            text = " ".join("".join(self._open).split())
            if tag == "p":
                self.paragraphs.append((self._css, text))
            else:
                self.tables[-1][-1].append(text)
            self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is not None and not self._hidden:
            self._open.append(data)


@dataclass(frozen=True)
class Page:
    sections: list[Section]

    @property
    def tables(self) -> list[list[list[str]]]:
        return [table for section in self.sections for table in section.tables]

    def section(self, *columns: str) -> Section:
        """The first section with a table that has these columns."""
        return next(one for one in self.sections if any({*columns} <= {*table[0]} for table in one.tables))

    def table(self, *names: str) -> list[list[str]]:
        """The first table that has columns or rows of these names."""
        return next(one for one in self.tables if {*names} <= {*one[0], *(row[0] for row in one)})


@pytest.fixture(scope="session")
def read_page() -> Callable[[str], Page]:
    """Parse the sections of an HTML page."""
    pattern = re.compile(r"<section[^>]*><h2>.*?</h2>(.*?)</section>", flags=re.DOTALL)
    return lambda page: Page([Section(body) for body in pattern.findall(page)])


@pytest.fixture(scope="session")
def robustness_document() -> dict[str, Any]:
    """The document of `run_robustness_tests` for two plans: one test flagged, one without interval."""

    def one(title: str, expected: str, effect: float, flagged: bool) -> dict[str, Any]:
        figure = {"value": effect, "lo": effect - 0.75, "hi": effect + 0.75}
        share = {"value": 0.25, "lo": 0.125, "hi": 0.5}
        return {
            "title": title, "expected": expected, "clips": 24, "effect": figure, "wrong_way": figure,
            "in_order": share, "violations": share, "flagged": flagged
        }  # fmt: skip

    silent = {"value": -1.5, "lo": None, "hi": None, "no_interval": "one singer"}
    degradations = {
        "noise_10db": one("noise, SNR 10 dB", "not higher", 2.125, True),
        "clipping": one("hard clipping", "not higher", -3.25, False),
        "gain_up": {**one("6 dB louder", "same", 1.5, False), "effect": silent, "wrong_way": silent}
    }  # fmt: skip
    known = {
        "balanced_accuracy": {"value": 0.625, "lo": 0.5, "hi": 0.75}, "chance": 0.5, "clips": 40,
        "bands": {"80-85": {"acapella": 20, "ktv": 20}}, "reason": None
    }  # fmt: skip
    unknown = {"balanced_accuracy": None, "chance": None, "clips": 0, "bands": {}, "reason": "no sources"}
    return {
        "confidence": 0.95, "resamples": 200, "seed": 0, "clips": 24, "tolerance_points": 0.5, "refuse": ["noise_10db"],
        "reason": None, "warnings": ["6 singers."], "probed": [{}] * 24,
        "left_out": [{"audio_file": "a.wav", "probe": "clipping", "reason": "a.wav: unvoiced."}],
        "plans": {"baseline": {"seed": 0, "degradations": degradations, "domain": known, "scores": {}},
        "hybrid": {"seed": 0, "degradations": degradations, "domain": unknown, "scores": {}}}
    }  # fmt: skip
