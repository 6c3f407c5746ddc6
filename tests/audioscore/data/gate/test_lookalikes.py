import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from audioscore.data.audio import Recording
from audioscore.data.clips import Clip
from audioscore.data.fingerprint import fingerprint
from audioscore.data.gate import rejections as lookalikes
from audioscore.data.gate.rejections import NearDuplicates, find_near_duplicates, linked_pairs
from audioscore.data.rules import Severity

Find = Callable[[list[Clip], list[tuple[int, int]], Severity], NearDuplicates]


@pytest.fixture
def find(monkeypatch: pytest.MonkeyPatch) -> Find:
    """The result for clips of which these pairs have the same fingerprint."""

    def find(clips: list[Clip], pairs: list[tuple[int, int]], severity: Severity) -> NearDuplicates:
        monkeypatch.setattr(lookalikes, "near_duplicates", lambda _: pairs)
        return find_near_duplicates(clips, [None] * len(clips), severity)

    return find


def clips(*scores: float | None) -> list[Clip]:
    """Clips a.wav, b.wav ...; those without a score have no row."""
    return [
        Clip(f"{name}.wav", score, row=None if score is None else number, sha256=name * 64)
        for number, (name, score) in enumerate(zip("abcdefg", scores, strict=False), 1)
    ]


def test_the_same_take_at_another_level_is_a_pair_and_another_take_is_not() -> None:
    rng = np.random.default_rng(3)
    takes = [0.1 * rng.standard_normal(5 * 16_000).astype(np.float32) for _ in range(2)]
    prints = [fingerprint(Recording(wave, 16_000)) for wave in (takes[0], takes[1], takes[0] * np.float32(0.3))]
    found = find_near_duplicates(clips(70.0, 71.0, 72.0), prints, "warning")
    assert found.pairs == [("a.wav", "c.wav")]
    [one] = found.warned
    assert (one["audio_file"], one["row"], one["severity"]) == ("c.wav", 3, "warning")
    assert "row 1 (a.wav)" in one["reason"]
    assert found.rejected == {}


def test_scores_more_than_ten_points_apart_are_listed_at_any_severity(find: Find) -> None:
    apart, near = clips(60.0, 85.0), clips(60.0, 70.0)
    severities: list[Severity] = ["warning", "off"]
    for severity in severities:
        [one] = find(apart, [(0, 1)], severity).warned
        assert re.findall(r"\d+", one["reason"]) == ["1", "85", "60", "25"]
    [one] = find(near, [(0, 1)], "warning").warned
    assert re.findall(r"\d+", one["reason"]) == ["1"]
    off = find(near, [(0, 1)], "off")
    assert (off.warned, off.pairs) == ([], [("a.wav", "b.wav")])
    rejected = find(apart, [(0, 1)], "error").rejected
    assert list(rejected) == [1]
    assert "25" in rejected[1]["reason"]


def test_as_an_error_all_but_the_first_of_the_copies_are_rejected(find: Find) -> None:
    found = find(clips(70.0, 71.0, 72.0, 73.0), [(0, 1), (1, 2)], "error")
    assert sorted(found.rejected) == [1, 2]
    assert all("row 1 (a.wav)" in one["reason"] for one in found.rejected.values())
    assert {one["severity"] for one in found.rejected.values()} == {"error"}
    assert found.warned == []


def test_a_recording_without_a_score_is_never_rejected_for_its_likeness(find: Find) -> None:
    found = find(clips(70.0, None, None), [(0, 1), (1, 2)], "error")
    assert found.rejected == {}
    assert [re.findall(r"row \d|\w\.wav", one["reason"]) for one in found.warned] == [["row 1", "a.wav"], ["b.wav"]]


def test_the_same_file_in_the_table_and_in_an_order_is_no_likeness(find: Find) -> None:
    scored, named, copied = Clip("a.wav", 70.0, row=1, sha256="a"), Clip("a.wav", sha256="a"), Clip("b.wav", sha256="a")
    assert find([scored, named], [(0, 1)], "warning") == NearDuplicates([], [], {})
    assert find([scored, copied], [(0, 1)], "warning") == NearDuplicates([("a.wav", "b.wav")], [], {})


def test_links_by_way_of_a_clip_that_is_not_used_hold() -> None:
    pairs = [("a", "b"), ("c", "d"), ("b", "c"), ("e", "f")]
    assert linked_pairs(pairs, set("abcdef")) == [("a", "b"), ("a", "c"), ("a", "d"), ("e", "f")]
    assert linked_pairs(pairs, set("adef")) == [("a", "d"), ("e", "f")]
    assert linked_pairs(pairs, set("e")) == []
    assert linked_pairs([], set("ab")) == []


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda pair: pair[0] < pair[1])))
def test_linked_pairs_have_the_components_that_scipy_finds(pairs: list[tuple[int, int]]) -> None:
    def components(edges: list[tuple[int, int]]) -> list[int]:
        rows, columns = zip(*edges, strict=True) if edges else ((), ())
        graph = coo_array((np.ones(len(edges)), (rows, columns)), shape=(10, 10))
        return list(connected_components(graph, directed=False)[1])

    linked = linked_pairs([(str(i), str(j)) for i, j in pairs], set("0123456789"))
    assert components([(int(i), int(j)) for i, j in linked]) == components(pairs)
