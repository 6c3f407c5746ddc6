"""The figures on the page against scipy, from nothing but predictions.csv, read without this project's code."""

import csv
import itertools
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from audioscore.evaluation.evaluate import evaluate
from audioscore.evaluation.predictions import Prediction, read_predictions, write_predictions
from audioscore.evaluation.report import render_report

Array = np.ndarray[Any, Any]
CHOSEN = {"A baseline": ("baseline", "0"), "B hybrid": ("hybrid", "1")}
BANDS = {"0-60": (0, 60), "60-70": (60, 70), "70-80": (70, 80), "80-85": (80, 85), "85-90": (85, 90), "90-95": (90, 95),
         "95-100": (95, 100.1)}  # fmt: skip
GAPS = {"0-2 points": (0, 2), "2-5 points": (2, 5), "5-10 points": (5, 10), "over 10 points": (10, np.inf)}
WITHIN = {"Spearman": "Spearman within source"}


@pytest.fixture(scope="module")
def folder(make_predictions: Callable[..., list[Prediction]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("evaluation") / "predictions.csv"
    write_predictions(path, make_predictions())
    return path


@pytest.fixture(scope="module")
def sections(folder: Path, read_page: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    rows = read_predictions(folder)
    figures = evaluate(rows, {}, {"baseline": 0, "hybrid": 1}, resamples=100)
    return read_page(render_report(figures, rows, {}, {}, {}, None))


@pytest.fixture(scope="module")
def tables(folder: Path) -> dict[str, dict[str, Array]]:
    """Each plan's test clips as columns."""
    with folder.open(encoding="utf-8", newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["split"] == "test"]
    found = {}
    for title, (plan, seed) in CHOSEN.items():
        own = [row for row in rows if (row["plan"], row["seed"]) == (plan, seed)]
        numbers = {key: np.array([float(row[key]) for row in own]) for key in ("score", "predicted", "lo", "hi")}
        found[title] = numbers | {
            key: np.array([row[key] for row in own]) for key in ("source", "singer_id", "song_id")
        }
    return found


def value(cell: str) -> float:
    """The figure in a cell, a share as a share."""
    found = re.match(r"[+\u2212]?[\d.]+", cell)
    assert found is not None, cell
    number = float(found[0].replace("\u2212", "-"))
    return number / 100 if cell[found.end() : found.end() + 1] == "%" else number


def column(section: Any, number: int, heading: str) -> dict[str, float]:
    """A column of one of a section's tables, by the rows' names."""
    header, *rows = section.tables[number]
    return {row[0]: value(row[header.index(heading)]) for row in rows}


def near(number: float, decimals: int = 3) -> Any:
    return pytest.approx(number, abs=0.5001 * 10**-decimals)


def accuracy(human: Array, predicted: Array, low: float = 0, high: float = np.inf) -> float:
    """Share of pairs that differ in score by more than `low` and at most `high`, put in order; predicted ties half."""
    marks = []
    for one, other in itertools.combinations(range(len(human)), 2):
        gap = round(human[one] - human[other], 6)  # scores have decimals, which 64.4 - 62.4 in binary has not
        if gap != 0 and low < abs(gap) <= high:
            marks.append((np.sign((predicted[one] - predicted[other]) * gap) + 1) / 2)
    return float(np.mean(marks))


def metrics(human: Array, predicted: Array) -> dict[str, float]:
    error = predicted - human
    return {
        "Spearman": stats.spearmanr(human, predicted).statistic,
        "Pairwise accuracy": accuracy(human, predicted),
        "Kendall τ-b": stats.kendalltau(human, predicted).statistic,
        "Pearson": stats.pearsonr(human, predicted).statistic,
        "MAE, points": np.abs(error).mean(),
        "RMSE, points": np.sqrt((error**2).mean()),
        "Bias, points": error.mean(),
    }


def inside(human: Array, predicted: Array, groups: Array) -> dict[str, float]:
    """Every metric inside each group, averaged by clips."""
    totals: dict[str, float] = defaultdict(float)
    for name in np.unique(groups):
        own = groups == name
        for metric, found in metrics(human[own], predicted[own]).items():
            totals[metric] += found * own.sum() / len(human)
    return totals


@pytest.mark.parametrize("title", CHOSEN)
def test_all_metrics(title: str, sections: dict[str, Any], tables: dict[str, dict[str, Array]]) -> None:
    own, section = tables[title], sections["All metrics"]
    overall, within = column(section, 0, title), column(section, 1, title)
    expected = metrics(own["score"], own["predicted"])
    expected_within = inside(own["score"], own["predicted"], own["source"])
    assert within == {name: near(found, 2 if "points" in name else 3) for name, found in expected_within.items()}
    shown = {name.removesuffix(" overall"): found for name, found in overall.items()}
    assert shown.pop("Spearman within source") == near(expected_within["Spearman"])
    assert shown == {name: near(found, 2 if "points" in name else 3) for name, found in expected.items()}


@pytest.mark.parametrize("title", CHOSEN)
def test_slices(title: str, sections: dict[str, Any], tables: dict[str, dict[str, Array]]) -> None:
    own = tables[title]
    members = {f"{name} · {title}": own["source"] == name for name in ("ktv", "acapella")}
    bands = {f"{name} · {title}": (own["score"] >= low) & (own["score"] < high) for name, (low, high) in BANDS.items()}
    for section, groups in (("Inside each recording domain", members), ("Errors by band of human score", bands)):
        for heading, metric, decimals in (
            ("Spearman", "Spearman", 3), ("MAE", "MAE, points", 2), ("bias", "Bias, points", 2),
        ):  # fmt: skip
            shown = column(sections[section], 0, heading)
            for name, member in groups.items():
                assert shown[name] == near(metrics(own["score"][member], own["predicted"][member])[metric], decimals)
            assert {name for name in shown if title in name} == set(groups)


@pytest.mark.parametrize("title", CHOSEN)
def test_pairs_top_coverage_singers_and_songs(
    title: str, sections: dict[str, Any], tables: dict[str, dict[str, Array]]
) -> None:
    own = tables[title]
    human, predicted = own["score"], own["predicted"]
    pairs = sections["Order of pairs, and calibration"]
    assert column(pairs, 0, title) == {name: near(accuracy(human, predicted, *gap)) for name, gap in GAPS.items()}
    covered = np.mean((own["lo"] <= human) & (human <= own["hi"]))
    assert column(pairs, 1, "human scores inside")[title] == near(covered, 2)
    assert column(pairs, 1, "mean width, points")[title] == near(10, 2)
    for top in (85, 90):
        good, chosen = human >= top, predicted >= top
        shown = [column(sections["The top of the scale"], 0, name) for name in ("precision", "recall")]
        row = f"{top} or above · {title}"
        assert [one[row] for one in shown] == [near(good[chosen].mean(), 2), near(chosen[good].mean(), 2)]
    means = np.array(
        [[values[own["singer_id"] == name].mean() for values in (human, predicted)] for name in set(own["singer_id"])]
    )
    singers = sections["Singers and songs"]
    assert column(singers, 0, "Spearman of their means")[title] == near(stats.spearmanr(*means.T).statistic)
    assert column(singers, 0, "MAE of their means")[title] == near(np.abs(means[:, 0] - means[:, 1]).mean(), 2)
    inside_songs = inside(human, predicted, own["song_id"])["Spearman"]
    assert column(singers, 0, "Spearman inside songs")[title] == near(inside_songs)


@pytest.mark.parametrize("title", CHOSEN)
def test_calibration(title: str, sections: dict[str, Any], tables: dict[str, dict[str, Array]]) -> None:
    own = tables[title]
    order = np.argsort(own["predicted"], kind="stable")
    shown = [row for row in sections["Order of pairs, and calibration"].tables[2][1:] if row[0] == title]
    bins = np.array_split(order, 9)  # 48 clips, 5 at least in each
    assert [int(row[1]) for row in shown] == [len(part) for part in bins]
    for row, part in zip(shown, bins, strict=True):
        assert value(row[2]) == near(own["predicted"][part].mean(), 2)
        assert value(row[3]) == near(own["score"][part].mean(), 2)


def test_differences_and_seeds(folder: Path, sections: dict[str, Any], tables: dict[str, dict[str, Array]]) -> None:
    a, b = (tables[title] for title in CHOSEN)
    overall = [stats.spearmanr(own["score"], own["predicted"]).statistic for own in (a, b)]
    within = [inside(own["score"], own["predicted"], own["source"])["Spearman"] for own in (a, b)]
    said = sections["The plans side by side"].paragraphs[0][1]
    figures = re.findall(r"([+\u2212][\d.]+) \[", said)
    assert [value(figure) for figure in figures] == [near(overall[1] - overall[0]), near(within[1] - within[0])]
    differences = sections["What more than chance separates"].tables[0][1:]
    assert [value(row[2]) for row in differences] == [near(overall[1] - overall[0]), near(within[1] - within[0])]
    with folder.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    for title, seed, validation, test in sections["Training"].tables[0][1:]:
        for split, cell in (("val", validation), ("test", test)):
            run = (CHOSEN[title][0], seed.split()[0], split)
            clips = [row for row in rows if (row["plan"], row["seed"], row["split"]) == run]
            pair = [[float(row[key]) for row in clips] for key in ("score", "predicted")]
            assert value(cell) == near(stats.spearmanr(*pair).statistic)


def test_the_worst_clips_say_what_the_table_says(
    folder: Path, sections: dict[str, Any], tables: dict[str, dict[str, Array]]
) -> None:
    lines = [
        text for _, text in sections["The clips furthest off"].paragraphs if text.startswith(("ktv, ", "acapella, "))
    ]
    errors = np.max([np.abs(own["predicted"] - own["score"]) for own in tables.values()], axis=0)
    for text, place in zip(lines, np.argsort(-errors)[:20], strict=True):
        human = tables["A baseline"]["score"][place]
        parts = [f"human {human:.1f}^a"]
        for title, own in tables.items():
            ends = ", ".join(f"{own[key][place]:.1f}" for key in ("lo", "hi"))
            off = f"{own['predicted'][place] - human:+.1f}".replace("-", "\u2212")
            parts.append(f"{title} {own['predicted'][place]:.1f} [{ends}], off by {off}")
        assert all(part in text for part in parts), (text, parts)
