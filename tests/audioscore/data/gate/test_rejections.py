import re
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from audioscore.data.audio import Recording
from audioscore.data.audio_checks import CLIP_RULES, RULES, TABLE_RULES, Finding, Severity
from audioscore.data.clips import Clip
from audioscore.data.file_checks import CheckedRecording
from audioscore.data.fingerprint import fingerprint
from audioscore.data.gate import rejections
from audioscore.data.gate.rejections import (
    NearDuplicates,
    ValidationSettings,
    by_row,
    evaluate_clip,
    find_near_duplicates,
    linked_pairs,
    reject,
    reject_row,
    without_repeats,
)
from audioscore.data.labels import RowError
from audioscore.errors import UsageError

CLIP = Clip("a.wav", 70.0, row=3)
CLIPPED, OFFSET = Finding("clipped", "clipped: a lot."), Finding("dc_offset", "offset: 0.2.")


def measured(*findings: Finding) -> CheckedRecording:
    return CheckedRecording(sha256="b" * 64, findings=findings)


def test_findings_have_the_severity_of_their_rules() -> None:
    verdict = evaluate_clip(CLIP, measured(CLIPPED, OFFSET), ValidationSettings())
    assert verdict.rejected == [{"audio_file": "a.wav", "row": 3, "reason": "clipped: a lot.", "severity": "error"}]
    assert verdict.warned == []
    verdict = evaluate_clip(CLIP, measured(CLIPPED, OFFSET), ValidationSettings(severity={"clipped": "warning"}))
    assert [one["reason"] for one in verdict.warned] == ["clipped: a lot.", "offset: 0.2."]
    assert verdict.rejected == []
    strict = ValidationSettings(severity={"dc_offset": "error"})
    assert (
        evaluate_clip(CLIP, measured(CLIPPED, OFFSET), strict).rejected[0]["reason"] == "clipped: a lot. offset: 0.2."
    )
    off = ValidationSettings(severity={"clipped": "off", "dc_offset": "off"})
    assert evaluate_clip(CLIP, measured(CLIPPED, OFFSET), off) == ([], [])


@pytest.mark.parametrize("severity", ["error", "warning"])
def test_a_table_row_keeps_its_severity_whatever_its_reason(severity: str) -> None:
    reason = "score ': duplicate of x' is not a number"
    assert reject_row(RowError(3, "a.wav", reason, severity)) == reject(CLIP, reason, severity)


def test_an_undecodable_recording_is_rejected_with_all_severities() -> None:
    off = ValidationSettings(severity={"clipped": "off"})
    assert evaluate_clip(CLIP, CheckedRecording(error="cannot be decoded."), off).rejected == [
        reject(CLIP, "cannot be decoded.")
    ]


def test_changed_content_is_rejected_with_both_hashes() -> None:
    table = Clip("a.wav", 70.0, row=3, sha256="a" * 64)
    [one] = evaluate_clip(table, measured(), ValidationSettings()).rejected
    assert one == reject(table, one["reason"])
    assert re.findall(r"\b[ab]{12}\b", one["reason"]) == ["b" * 12, "a" * 12]
    assert evaluate_clip(table, measured(), ValidationSettings(severity={"changed_content": "off"})) == ([], [])
    assert evaluate_clip(Clip("a.wav", 70.0, sha256="b" * 64), measured(), ValidationSettings()) == ([], [])


def test_an_unscored_group_keeps_the_first_position_of_a_recording() -> None:
    group = [Clip("a.wav", sha256="x"), Clip("b.wav", sha256="y"), Clip("c.wav", sha256="x"), Clip("a.wav", sha256="x")]
    kept, rejected = without_repeats(group)
    assert [clip.audio_file for clip in kept] == ["a.wav", "b.wav"]
    assert [(one["audio_file"], one["severity"]) for one in rejected] == [("c.wav", "warning"), ("a.wav", "warning")]
    assert all("a.wav" in one["reason"] for one in rejected)


def test_rejections_are_sorted_by_row_and_those_without_row_are_last() -> None:
    mixed = [reject(Clip("x.wav"), ""), reject(Clip("b.wav", row=9), ""), reject(Clip("a.wav", row=2), "")]
    assert [one["row"] for one in by_row(mixed)] == [2, 9, None]


def test_every_rule_has_a_severity_and_one_scope_and_unknown_rules_are_refused() -> None:
    assert set(RULES.values()) <= set(get_args(Severity))
    assert set(RULES) == set(CLIP_RULES) | set(TABLE_RULES)
    assert not set(CLIP_RULES) & set(TABLE_RULES)
    with pytest.raises(UsageError, match=r"\bcliped, novoice\b.*no_voice"):
        ValidationSettings(severity={"novoice": "error", "cliped": "off"})


Find = Callable[[list[Clip], list[tuple[int, int]], Severity], NearDuplicates]


@pytest.fixture
def find(monkeypatch: pytest.MonkeyPatch) -> Find:
    """A function that finds near-duplicates, given the pairs with the same fingerprint."""

    def find(clips: list[Clip], pairs: list[tuple[int, int]], severity: Severity) -> NearDuplicates:
        monkeypatch.setattr(rejections, "near_duplicates", lambda _: pairs)
        return find_near_duplicates(clips, [None] * len(clips), severity)

    return find


def clips(*scores: float | None) -> list[Clip]:
    """Clips a.wav, b.wav ...; those without a score have no row."""
    return [
        Clip(f"{name}.wav", score, row=None if score is None else number, sha256=name * 64)
        for number, (name, score) in enumerate(zip("abcdefg", scores, strict=False), 1)
    ]


def test_the_same_recording_at_another_level_is_a_pair_and_another_recording_is_not() -> None:
    rng = np.random.default_rng(3)
    waves = [0.1 * rng.standard_normal(5 * 16_000).astype(np.float32) for _ in range(2)]
    prints = [fingerprint(Recording(wave, 16_000)) for wave in (waves[0], waves[1], waves[0] * np.float32(0.3))]
    found = find_near_duplicates(clips(70.0, 71.0, 72.0), prints, "warning")
    assert found.pairs == [("a.wav", "c.wav")]
    [one] = found.warned
    assert (one["audio_file"], one["row"], one["severity"]) == ("c.wav", 3, "warning")
    assert "row 1 (a.wav)" in one["reason"]
    assert found.rejected == {}


def test_scores_more_than_ten_points_apart_are_listed_with_every_severity(find: Find) -> None:
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


def test_with_severity_error_all_but_the_first_copy_are_rejected(find: Find) -> None:
    found = find(clips(70.0, 71.0, 72.0, 73.0), [(0, 1), (1, 2)], "error")
    assert sorted(found.rejected) == [1, 2]
    assert all("row 1 (a.wav)" in one["reason"] for one in found.rejected.values())
    assert {one["severity"] for one in found.rejected.values()} == {"error"}
    assert found.warned == []


def test_a_recording_without_a_score_is_never_rejected_as_a_near_duplicate(find: Find) -> None:
    found = find(clips(70.0, None, None), [(0, 1), (1, 2)], "error")
    assert found.rejected == {}
    assert [re.findall(r"row \d|\w\.wav", one["reason"]) for one in found.warned] == [["row 1", "a.wav"], ["b.wav"]]


def test_the_same_file_in_the_table_and_in_an_order_is_not_a_pair(find: Find) -> None:
    scored, named, copied = Clip("a.wav", 70.0, row=1, sha256="a"), Clip("a.wav", sha256="a"), Clip("b.wav", sha256="a")
    assert find([scored, named], [(0, 1)], "warning") == NearDuplicates([], [], {})
    assert find([scored, copied], [(0, 1)], "warning") == NearDuplicates([("a.wav", "b.wav")], [], {})


def test_links_by_an_unused_clip_are_kept() -> None:
    pairs = [("a", "b"), ("c", "d"), ("b", "c"), ("e", "f")]
    assert linked_pairs(pairs, set("abcdef")) == [("a", "b"), ("a", "c"), ("a", "d"), ("e", "f")]
    assert linked_pairs(pairs, set("adef")) == [("a", "d"), ("e", "f")]
    assert linked_pairs(pairs, set("e")) == []
    assert linked_pairs([], set("ab")) == []


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda pair: pair[0] < pair[1])))
def test_linked_pairs_have_the_same_components_as_scipy(pairs: list[tuple[int, int]]) -> None:
    def components(edges: list[tuple[int, int]]) -> list[int]:
        rows, columns = zip(*edges, strict=True) if edges else ((), ())
        graph = coo_array((np.ones(len(edges)), (rows, columns)), shape=(10, 10))
        return list(connected_components(graph, directed=False)[1])

    linked = linked_pairs([(str(i), str(j)) for i, j in pairs], set("0123456789"))
    assert components([(int(i), int(j)) for i, j in linked]) == components(pairs)


def test_rows_of_a_workbook_are_named_as_in_the_spreadsheet() -> None:
    clips = [Clip("a.wav", 80.0, row=1, sha256="x"), Clip("b.wav", 80.0, row=2, sha256="x"), Clip("c.wav", 95.0, row=3)]
    locations = {1: "sheet KTV, row 5"}
    kept, [copy] = rejections.without_copies(clips, locations)
    assert kept == [clips[0], clips[2]]
    assert "sheet KTV, row 5 (a.wav)" in copy["reason"]
    assert "row 1 (a.wav)" in rejections.without_copies(clips)[1][0]["reason"]
