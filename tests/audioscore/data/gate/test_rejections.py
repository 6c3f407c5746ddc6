import re
from typing import get_args

import pytest

from audioscore.data.audio_checks import Heard
from audioscore.data.clips import Clip
from audioscore.data.gate.rejections import ValidationSettings, by_row, reject, weigh, without_repeats
from audioscore.data.rules import CLIP_RULES, RULES, TABLE_RULES, Finding, Severity
from audioscore.errors import UsageError

CLIP = Clip("a.wav", 70.0, row=3)
CLIPPED, OFFSET = Finding("clipped", "clipped: a lot."), Finding("dc_offset", "offset: 0.2.")


def measured(*findings: Finding) -> Heard:
    return Heard(sha256="b" * 64, findings=findings)


def test_findings_weigh_what_their_rules_do() -> None:
    weighed = weigh(CLIP, measured(CLIPPED, OFFSET), ValidationSettings())
    assert weighed.rejected == [{"audio_file": "a.wav", "row": 3, "reason": "clipped: a lot.", "severity": "error"}]
    assert weighed.warned == []
    weighed = weigh(CLIP, measured(CLIPPED, OFFSET), ValidationSettings(severity={"clipped": "warning"}))
    assert [one["reason"] for one in weighed.warned] == ["clipped: a lot.", "offset: 0.2."]
    assert weighed.rejected == []
    strict = ValidationSettings(severity={"dc_offset": "error"})
    assert weigh(CLIP, measured(CLIPPED, OFFSET), strict).rejected[0]["reason"] == "clipped: a lot. offset: 0.2."
    off = ValidationSettings(severity={"clipped": "off", "dc_offset": "off"})
    assert weigh(CLIP, measured(CLIPPED, OFFSET), off) == ([], [])


def test_what_cannot_be_decoded_is_rejected_whatever_the_severities() -> None:
    off = ValidationSettings(severity={"clipped": "off"})
    assert weigh(CLIP, Heard(fault="cannot be decoded."), off).rejected == [reject(CLIP, "cannot be decoded.")]


def test_content_other_than_the_tables_is_rejected_with_both_hashes() -> None:
    table = Clip("a.wav", 70.0, row=3, sha256="a" * 64)
    [one] = weigh(table, measured(), ValidationSettings()).rejected
    assert one == reject(table, one["reason"])
    assert re.findall(r"\b[ab]{12}\b", one["reason"]) == ["b" * 12, "a" * 12]
    assert weigh(table, measured(), ValidationSettings(severity={"changed_content": "off"})) == ([], [])
    assert weigh(Clip("a.wav", 70.0, sha256="b" * 64), measured(), ValidationSettings()) == ([], [])


def test_an_order_keeps_the_first_place_of_a_recording() -> None:
    group = [Clip("a.wav", sha256="x"), Clip("b.wav", sha256="y"), Clip("c.wav", sha256="x"), Clip("a.wav", sha256="x")]
    kept, rejected = without_repeats(group)
    assert [clip.audio_file for clip in kept] == ["a.wav", "b.wav"]
    assert [(one["audio_file"], one["severity"]) for one in rejected] == [("c.wav", "warning"), ("a.wav", "warning")]
    assert all("a.wav" in one["reason"] for one in rejected)


def test_rows_come_in_their_order_and_before_what_has_none() -> None:
    mixed = [reject(Clip("x.wav"), ""), reject(Clip("b.wav", row=9), ""), reject(Clip("a.wav", row=2), "")]
    assert [one["row"] for one in by_row(mixed)] == [2, 9, None]


def test_every_rule_has_a_severity_and_one_scope_and_unknown_ones_are_refused() -> None:
    assert set(RULES.values()) <= set(get_args(Severity))
    assert set(RULES) == set(CLIP_RULES) | set(TABLE_RULES)
    assert not set(CLIP_RULES) & set(TABLE_RULES)
    with pytest.raises(UsageError, match=r"\bcliped, novoice\b.*no_voice"):
        ValidationSettings(severity={"novoice": "error", "cliped": "off"})
