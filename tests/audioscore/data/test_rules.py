from typing import get_args

from audioscore.data.rules import CLIP_RULES, RULES, TABLE_RULES, Finding, Severity


def test_every_rule_has_one_of_the_severities_and_one_place() -> None:
    assert set(RULES.values()) <= set(get_args(Severity))
    assert set(RULES) == set(CLIP_RULES) | set(TABLE_RULES)
    assert not set(CLIP_RULES) & set(TABLE_RULES)


def test_a_finding_is_a_rule_and_a_reason() -> None:
    assert Finding("silent", "silent: so quiet.") == ("silent", "silent: so quiet.")
