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
from audioscore.evaluation.report.page import render_report
from audioscore.evaluation.report.tables import METRIC_TITLES, of_plan, plan_title

Array = np.ndarray[Any, Any]
CHOSEN = {plan_title("baseline"): ("baseline", "0"), plan_title("hybrid"): ("hybrid", "1")}
BANDS = {"0-60": (0, 60), "60-70": (60, 70), "70-80": (70, 80), "80-85": (80, 85), "85-90": (85, 90), "90-95": (90, 95),
         "95-100": (95, 100.1)}  # fmt: skip
GAPS = {"0-2 points": (0, 2), "2-5 points": (2, 5), "5-10 points": (5, 10), "over 10 points": (10, np.inf)}
POINTS = {"mae", "rmse", "bias"}


@pytest.fixture(scope="module")
def folder(make_predictions: Callable[..., list[Prediction]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("evaluation") / "predictions.csv"
    write_predictions(path, make_predictions())
    return path


@pytest.fixture(scope="module")
def page(folder: Path, read_page: Callable[[str], Any]) -> Any:
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
        columns = {key: np.array([float(row[key]) for row in own]) for key in ("score", "predicted", "lo", "hi")}
        found[title] = columns | {
            key: np.array([row[key] for row in own]) for key in ("source", "singer_id", "song_id")
        }
    return found


def value(cell: str) -> float:
    """The value in a cell; percentages as fractions."""
    found = re.match(r"[+\u2212]?[\d.]+", cell)
    assert found is not None, cell
    number = float(found[0].replace("\u2212", "-"))
    return number / 100 if cell[found.end() : found.end() + 1] == "%" else number


def column(table: list[list[str]], heading: str) -> dict[str, float]:
    """The column whose name matches `heading`, by the names of the rows."""
    header, *rows = table
    (index,) = (index for index, name in enumerate(header) if re.search(heading, name))
    return {row[0]: value(row[index]) for row in rows}


def near(number: float, decimals: int = 3) -> Any:
    return pytest.approx(number, abs=0.5001 * 10**-decimals)


def accuracy(human: Array, predicted: Array, low: float = 0, high: float = np.inf) -> float:
    """Share of ordered pairs with a score difference above `low` and up to `high`; predicted ties count half."""
    marks = []
    for one, other in itertools.combinations(range(len(human)), 2):
        gap = round(human[one] - human[other], 6)  # scores have decimals, which 64.4 - 62.4 in binary has not
        if gap != 0 and low < abs(gap) <= high:
            marks.append((np.sign((predicted[one] - predicted[other]) * gap) + 1) / 2)
    return float(np.mean(marks))


def metrics(human: Array, predicted: Array) -> dict[str, float]:
    error = predicted - human
    return {
        "spearman": stats.spearmanr(human, predicted).statistic, "pairwise_accuracy": accuracy(human, predicted),
        "kendall": stats.kendalltau(human, predicted).statistic, "pearson": stats.pearsonr(human, predicted).statistic,
        "mae": np.abs(error).mean(), "rmse": np.sqrt((error**2).mean()), "bias": error.mean()
    }  # fmt: skip


def inside(human: Array, predicted: Array, groups: Array) -> dict[str, float]:
    """Every metric within each group, averaged by clips."""
    totals: dict[str, float] = defaultdict(float)
    for name in np.unique(groups):
        own = groups == name
        for metric, found in metrics(human[own], predicted[own]).items():
            totals[metric] += found * own.sum() / len(human)
    return totals


@pytest.mark.parametrize("title", CHOSEN)
def test_all_metrics(title: str, page: Any, tables: dict[str, dict[str, Array]]) -> None:
    own = tables[title]
    overall, within = (column(one, title) for one in page.tables if METRIC_TITLES["kendall"] in {row[0] for row in one})
    inside_sources = inside(own["score"], own["predicted"], own["source"])
    for shown, figures in ((overall, metrics(own["score"], own["predicted"])), (within, inside_sources)):
        expected = {METRIC_TITLES[name]: near(found, 2 if name in POINTS else 3) for name, found in figures.items()}
        if shown is overall:
            expected[METRIC_TITLES["spearman_within_source"]] = near(inside_sources["spearman"])
        else:
            expected["Spearman"] = expected.pop(METRIC_TITLES["spearman"])
        assert shown == expected


@pytest.mark.parametrize("title", CHOSEN)
def test_slices(title: str, page: Any, tables: dict[str, dict[str, Array]]) -> None:
    own, plan = tables[title], CHOSEN[title][0]
    members = {of_plan(name, plan): own["source"] == name for name in ("ktv", "acapella")}
    bands = {of_plan(name, plan): (own["score"] >= low) & (own["score"] < high) for name, (low, high) in BANDS.items()}
    for groups in (members, bands):
        for heading, metric in (("Spearman", "spearman"), ("MAE", "mae"), ("bias", "bias")):
            shown = column(page.table(*groups), heading)
            for name, member in groups.items():
                expected = metrics(own["score"][member], own["predicted"][member])[metric]
                assert shown[name] == near(expected, 2 if metric in POINTS else 3)
            assert {name for name in shown if title in name} == set(groups)


@pytest.mark.parametrize("title", CHOSEN)
def test_pairs_top_coverage_and_groups(title: str, page: Any, tables: dict[str, dict[str, Array]]) -> None:
    own = tables[title]
    human, predicted = own["score"], own["predicted"]
    pairs = {name: near(accuracy(human, predicted, *gap)) for name, gap in GAPS.items()}
    assert column(page.table(*GAPS), title) == pairs
    covered = np.mean((own["lo"] <= human) & (human <= own["hi"]))
    coverage = next(one for one in page.tables if any("width" in name for name in one[0]))
    assert (column(coverage, "coverage")[title], column(coverage, "width")[title]) == (near(covered, 2), near(10, 2))
    for top in (85, 90):
        good, chosen = human >= top, predicted >= top
        for name, expected in (("precision", good[chosen].mean()), ("recall", chosen[good].mean())):
            shown = column(page.table("precision", "recall"), name)
            assert [one for row, one in shown.items() if row.startswith(f"{top} ") and title in row] == [
                near(expected, 2)
            ]
    means = np.array(
        [[values[own["singer_id"] == name].mean() for values in (human, predicted)] for name in set(own["singer_id"])]
    )
    groups = page.table("singers", "songs", title)
    assert column(groups, "Spearman .*means")[title] == near(stats.spearmanr(*means.T).statistic)
    assert column(groups, "MAE")[title] == near(np.abs(means[:, 0] - means[:, 1]).mean(), 2)
    assert column(groups, "Spearman .*songs")[title] == near(inside(human, predicted, own["song_id"])["spearman"])


@pytest.mark.parametrize("title", CHOSEN)
def test_calibration(title: str, page: Any, tables: dict[str, dict[str, Array]]) -> None:
    own = tables[title]
    order = np.argsort(own["predicted"], kind="stable")
    shown = [row for row in page.table("plan", "clips", title)[1:] if row[0] == title]
    bins = np.array_split(order, 9)  # 48 clips, 5 at least in each
    assert [int(row[1]) for row in shown] == [len(part) for part in bins]
    for row, part in zip(shown, bins, strict=True):
        assert value(row[2]) == near(own["predicted"][part].mean(), 2)
        assert value(row[3]) == near(own["score"][part].mean(), 2)


def test_differences_and_seeds(folder: Path, page: Any, tables: dict[str, dict[str, Array]]) -> None:
    a, b = (tables[title] for title in CHOSEN)
    overall = [stats.spearmanr(own["score"], own["predicted"]).statistic for own in (a, b)]
    within = [inside(own["score"], own["predicted"], own["source"])["spearman"] for own in (a, b)]
    expected = [near(overall[1] - overall[0]), near(within[1] - within[0])]
    (text,) = (text for _, text in page.section(METRIC_TITLES["spearman"]).paragraphs if re.search(r"\d \[", text))
    assert [value(figure) for figure in re.findall(r"([+\u2212][\d.]+) \[", text)] == expected
    assert [value(row[2]) for row in page.table("difference", "p")[1:]] == expected
    with folder.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    for title, seed, validation, test in next(one for one in page.tables if one[0][1] == "seed")[1:]:
        for split, cell in (("val", validation), ("test", test)):
            run = (CHOSEN[title][0], seed.split()[0], split)
            clips = [row for row in rows if (row["plan"], row["seed"], row["split"]) == run]
            pair = [[float(row[key]) for row in clips] for key in ("score", "predicted")]
            assert value(cell) == near(stats.spearmanr(*pair).statistic)


def test_the_worst_clips_show_their_predictions(page: Any, tables: dict[str, dict[str, Array]]) -> None:
    texts = [text for one in page.sections for _, text in one.paragraphs if text.startswith(("ktv, ", "acapella, "))]
    errors = np.max([np.abs(own["predicted"] - own["score"]) for own in tables.values()], axis=0)
    for text, index in zip(texts, np.argsort(-errors)[:20], strict=True):
        human = next(iter(tables.values()))["score"][index]
        assert f" {human:.1f}^a" in text
        for title, own in tables.items():
            ends = ", ".join(f"{own[key][index]:.1f}" for key in ("lo", "hi"))
            off = f"{own['predicted'][index] - human:+.1f}".replace("-", "\u2212")
            shown = text.partition(title)[2]
            assert shown.startswith(f" {own['predicted'][index]:.1f} [{ends}]")
            assert shown.index(off) < 50
