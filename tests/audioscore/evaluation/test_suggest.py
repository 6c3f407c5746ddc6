from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audioscore.errors import DataError
from audioscore.evaluation.suggest import KERNEL_POINTS, rank_suggestions

NAMES = ["a.wav", "b.wav", "c.wav", "d.wav"]
UNKNOWN = [None] * 4


def rank(predicted: Any, **others: Any) -> list[str]:
    same = {"singers": UNKNOWN, "widths": np.ones(4), "novelty": np.zeros(4), "labelled": [70.0]}
    return [one.audio_file for one in rank_suggestions(NAMES, predicted=predicted, **{**same, **others})]


def test_each_criterion_alone_decides() -> None:
    same = np.full((2, 4), 60.0)
    apart = same + np.array([[0, 3, 1, 2], [0, -3, -1, -2]])
    assert rank(apart) == ["b.wav", "d.wav", "c.wav", "a.wav"]
    assert rank(same, widths=[1.0, 2.0, 4.0, 3.0]) == ["c.wav", "d.wav", "b.wav", "a.wav"]
    assert rank(same, novelty=[0.3, 0.1, 0.0, 0.9]) == ["d.wav", "a.wav", "b.wav", "c.wav"]
    assert rank(np.array([[70.0, 72.0, 90.0, 75.0]])) == ["c.wav", "d.wav", "b.wav", "a.wav"]


def test_ties_are_ordered_by_name() -> None:
    assert rank(np.full((3, 4), 60.0)) == NAMES


def test_the_figures_of_one_recording() -> None:
    first = rank_suggestions(
        ["x.wav"], ["s"], np.array([[60.0], [64.0]]), [12.0], [0.25], [62.0, 62.0 + KERNEL_POINTS, 90.0]
    )[0]
    assert (first.predicted, first.disagreement, first.width, first.novelty) == (62.0, 2.0, 12.0, 0.25)
    assert (first.sparsity, first.gain) == (pytest.approx(1 / (1 + 1 + np.exp(-0.5))), 0.5)


def test_more_recordings_of_one_singer_count_less() -> None:
    predicted = np.array([[60.0, 60.0, 60.0, 60.0], [68.0, 67.0, 66.0, 61.0]])
    ranked = rank_suggestions(NAMES, ["s", "s", "s", "t"], predicted, np.ones(4), np.zeros(4), [20.0])
    alone = rank_suggestions(NAMES, UNKNOWN, predicted, np.ones(4), np.zeros(4), [20.0])
    assert [one.audio_file for one in alone] == NAMES
    assert [one.audio_file for one in ranked] == ["a.wav", "d.wav", "b.wav", "c.wav"]
    share = {one.audio_file: one.gain for one in alone}
    assert {one.audio_file: one.gain for one in ranked} == pytest.approx(
        {"a.wav": share["a.wav"], "b.wav": share["b.wav"] / 2, "c.wav": share["c.wav"] / 3, "d.wav": share["d.wav"]}
    )


@given(st.permutations(range(6)), st.integers(0, 1000))
def test_the_order_of_the_files_does_not_matter(order: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    names, singers = [f"{index}.wav" for index in range(6)], ["s", "t", "s", "s", "t", "u"]
    predicted, widths, novelty = rng.uniform(50, 99, (3, 6)), rng.uniform(1, 9, 6), rng.uniform(0, 1, 6)
    wanted = rank_suggestions(names, singers, predicted, widths, novelty, [60.0, 80.0])
    found = rank_suggestions(
        [names[index] for index in order], [singers[index] for index in order], predicted[:, order], widths[order],
        novelty[order], [60.0, 80.0]
    )  # fmt: skip
    assert [one.audio_file for one in found] == [one.audio_file for one in wanted]
    assert [one.gain for one in found] == pytest.approx([one.gain for one in wanted])
    assert all(0 <= one.gain <= 1 for one in found)


def test_wrong_shapes_and_nan_are_errors() -> None:
    with pytest.raises(DataError, match=r"\b4 recordings .*\[2, 3\], 4, 4 and 4"):
        rank(np.ones((2, 3)))
    with pytest.raises(DataError, match="finite"):
        rank(np.full((1, 4), np.nan))
