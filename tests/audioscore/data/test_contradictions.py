import re

import pytest

from audioscore.data.clips import Clip
from audioscore.data.contradictions import score_notes, split_notes


def scored(*scores: float, source: str | None = None, raters: tuple[float | None, ...] = ()) -> list[Clip]:
    return [Clip(f"{source}{n}", score, source=source, raters=raters) for n, score in enumerate(scores)]


def test_equal_scores_are_noted_once_for_the_widest_group() -> None:
    [everything] = score_notes(scored(80, 80, 80, source="ktv") + scored(80, source="acapella", raters=(80,)))
    assert re.findall(r"\d+", everything) == ["4", "80"]
    [part] = score_notes(scored(80, 80, 80, source="ktv") + scored(90, 91, 92, source="acapella"))
    assert re.search(r"ktv: 3 .*\b80\b", part)
    assert "acapella" not in part
    [rater] = score_notes(scored(80, 81, 82, raters=(70, None, 90)) + scored(75, raters=(71, None, 90)))
    assert re.search(r"rater_3: 4 .*\b90\b", rater)
    assert "rater_1" not in rater


def test_scores_outside_the_range_of_their_raters_are_noted_in_one_sentence() -> None:
    clips = scored(90, 65.5, 20, raters=(60, None, 65)) + scored(90, raters=(None,)) + scored(20)
    note = score_notes(clips)[0]  # another one is about the equal scores of each rater
    assert re.findall(r"[\d.]+", note.partition("None0")[0]) == ["2", "3"]
    assert re.search(r"None0: 90.* 60 .* 65\b", note)
    assert len(score_notes(scored(*[90.0] * 2, *[80.0] * 10_000, raters=(60, 65)))[0]) < 300


def test_few_or_different_scores_are_not_noted() -> None:
    assert score_notes([]) == score_notes(scored(80, 80)) == score_notes(scored(80, 81, 80)) == []
    assert score_notes([Clip("a"), Clip("b"), Clip("c")]) == []


@pytest.mark.parametrize("word", ["test", "Testing", "TEST", "测试", "测试集"])
def test_a_stated_split_is_compared_with_the_assigned_one(word: str) -> None:
    of = {"a": "train", "b": "test", "c": "val"}
    [note] = split_notes({"a": word, "b": word, "c": "dev", "x": word, "d": "3"}, of)
    assert re.search(r"\b1 of 3\b.*\(a: test, .*train\)", note)
    assert split_notes({"a": "Train", "b": word, "c": "验证"}, of) == []


def test_long_notes_are_short() -> None:
    names = [f"audio/{number}.m4a" for number in range(10_000)]
    [note] = split_notes(dict.fromkeys(names, "test"), dict.fromkeys(names, "train"))
    assert len(note) < 300
    [equal] = score_notes([Clip(name, 80.0, source=f"s{number // 5}") for number, name in enumerate(names)] + scored(1))
    assert len(equal) < 300
