from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import stats

from audioscore.evaluation.bootstrap import ResampledClips, resample_test_split
from audioscore.evaluation.predictions import Prediction
from audioscore.evaluation.slices import WORST_SONGS, at_the_top, by_singer, by_song, per_band, per_source

Array = NDArray[np.float64]


@pytest.fixture
def predicted(rows: list[Prediction]) -> Array:
    return np.array([row.predicted for row in rows])


def frames(rows: list[Prediction], test: ResampledClips) -> list[pd.DataFrame]:
    """The test clips, then the rows of every resample."""
    table = pd.DataFrame([{**vars(row), "error": row.predicted - row.human} for row in rows])
    return [table, *(table.loc[np.repeat(np.arange(len(table)), drawn)] for drawn in test.counts)]


def check(found: dict[str, Any], reference: Callable[[pd.DataFrame], float], tables: list[pd.DataFrame]) -> None:
    """Value and interval equal those of a slow computation on each expanded resample."""
    value, *resampled = [reference(table) for table in tables]
    assert found["value"] == pytest.approx(value)
    assert [found["lo"], found["hi"]] == pytest.approx(list(np.nanquantile(resampled, [0.05, 0.95])))


def rank(table: pd.DataFrame, x: str = "score", y: str = "predicted") -> float:
    if table[x].nunique() < 2 or table[y].nunique() < 2:
        return float("nan")
    return float(stats.spearmanr(table[x], table[y]).statistic)


def test_a_source_holds_its_own_clips(rows: list[Prediction], test: ResampledClips, predicted: Array) -> None:
    found = per_source(predicted, test)
    assert list(found) == ["acapella", "ktv"]
    tables = frames(rows, test)
    for name, slice_ in found.items():
        own = [table[table["source"] == name] for table in tables]
        assert (slice_["clips"], slice_["singers"]) == (24, 6)
        check(slice_["spearman"], rank, own)
        check(slice_["mae"], lambda table: float(table["error"].abs().mean()), own)
        check(slice_["bias"], lambda table: float(table["error"].mean()), own)


def test_bands_come_lowest_first_with_intervals(rows: list[Prediction], test: ResampledClips, predicted: Array) -> None:
    found = per_band(predicted, test)
    assert list(found) == ["0-60", "60-70", "70-80", "80-85", "85-90", "90-95", "95-100"]
    assert sum(band["clips"] for band in found.values()) == 48
    few = {"0-60": 3, "80-85": 3, "85-90": 3, "95-100": 4}
    assert {name: band["singers"] for name, band in found.items() if "no_interval" in band["mae"]} == few
    tables = [table[(table["score"] >= 90) & (table["score"] < 95)] for table in frames(rows, test)]
    check(found["90-95"]["mae"], lambda table: float(table["error"].abs().mean()), tables)
    check(found["90-95"]["spearman"], rank, tables)


@pytest.mark.parametrize("top", [85, 90])
def test_precision_and_recall(top: int, rows: list[Prediction], test: ResampledClips, predicted: Array) -> None:
    figures = at_the_top(predicted, test)[str(top)]
    tables = frames(rows, test)
    check(figures["precision"], lambda t: float((t["score"] >= top)[t["predicted"] >= top].mean()), tables)
    check(figures["recall"], lambda t: float((t["predicted"] >= top)[t["score"] >= top].mean()), tables)
    assert figures["clips"] == (tables[0]["score"] >= top).sum()
    assert figures["predicted"] == (tables[0]["predicted"] >= top).sum()


def test_nothing_at_the_top_is_undefined(test: ResampledClips) -> None:
    found = at_the_top(np.full(48, 70.0), test)["90"]
    assert found["predicted"] == 0
    assert "90" in found["precision"].pop("no_interval")
    assert (found["precision"], found["recall"]["value"]) == ({"value": None, "lo": None, "hi": None}, 0.0)
    low = at_the_top(np.full(48, 95.0), replace(test, scores=np.linspace(50, 80, 48)))["85"]
    assert low["recall"]["value"] is None
    assert "85" in low["recall"]["no_interval"]
    assert low["precision"]["value"] == 0.0
    assert "Wilson" in low["precision"]["method"]


def test_singers_count_by_their_means(rows: list[Prediction], test: ResampledClips, predicted: Array) -> None:
    found = by_singer(predicted, test)
    assert (found["singers"], found["clips"], found["min_clips"]) == (12, 48, 2)

    def means(table: pd.DataFrame) -> pd.DataFrame:
        means = table.groupby("singer_id", sort=False)[["score", "predicted"]].mean()
        times = table.groupby("singer_id", sort=False).size() // 4  # how often the singer was drawn
        return means.loc[means.index.repeat(times)]

    tables = [means(table) for table in frames(rows, test)]
    check(found["spearman"], rank, tables)
    check(found["mae"], lambda t: float((t["predicted"] - t["score"]).abs().mean()), tables)


def test_singers_of_one_clip_or_without_a_name_have_no_mean(rows: list[Prediction], predicted: Array) -> None:
    alone = [replace(row, singer_id=f"s{number}") for number, row in enumerate(rows)]
    found = by_singer(predicted, resample_test_split(alone, 20, 0.9, 0)[0])
    assert found["singers"] == found["clips"] == 0
    assert found["spearman"]["no_interval"] == found["mae"]["no_interval"]
    assert "2 clips" in found["mae"]["no_interval"]
    some = [replace(row, singer_id=None) if number < 40 else row for number, row in enumerate(rows)]
    found = by_singer(predicted, resample_test_split(some, 20, 0.9, 0)[0])
    assert (found["singers"], found["clips"]) == (2, 8)


def test_songs_are_ordered_inside_and_the_worst_named(
    rows: list[Prediction], test: ResampledClips, predicted: Array
) -> None:
    found = by_song(predicted, test)
    assert (found["songs"], found["clips"], found["min_clips"]) == (5, 48, 5)

    def inside(table: pd.DataFrame) -> float:
        parts = [(len(song), rank(song)) for _, song in table.groupby("song_id")]
        return sum(n * r for n, r in parts if r == r) / sum(n for n, r in parts if r == r)

    tables = frames(rows, test)
    check(found["spearman"], inside, tables)
    errors = tables[0].groupby("song_id")["error"].agg(lambda e: e.abs().mean()).sort_values(ascending=False)
    assert [song["song"] for song in found["worst"]] == list(errors.index)
    worst = [table[table["song_id"] == errors.index[0]] for table in tables]
    check(found["worst"][0]["mae"], lambda table: float(table["error"].abs().mean()), worst)
    assert found["worst"][0]["clips"] == len(worst[0])


def test_songs_unknown_or_sung_once_are_left_out(rows: list[Prediction], predicted: Array) -> None:
    unknown = by_song(predicted, resample_test_split([replace(row, song_id=None) for row in rows], 20, 0.9, 0)[0])
    assert (unknown["songs"], unknown["worst"]) == (0, [])
    assert "5 clips" in unknown["spearman"]["no_interval"]
    twice = [replace(row, song_id=f"song{number // 2:02d}") for number, row in enumerate(rows)]
    found = by_song(predicted, resample_test_split(twice, 20, 0.9, 0)[0])
    assert (found["songs"], len(found["worst"])) == (0, WORST_SONGS)
    assert all("2 clips" in song["mae"]["no_interval"] for song in found["worst"])
