"""The rules of the data gate, and how much each weighs unless the configuration says otherwise.

A recording that cannot be read or decoded at all breaks no rule: it is `Heard.fault`, and always rejects the clip.
Whatever can be decoded has measurements, and each rule that these break is a `Finding` in `Heard.findings`; validation
decides by the rule's severity what follows from it.
"""

from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "off"]  # rejects the clip, or fails the gate | is listed | is not looked at


class Finding(NamedTuple):
    """One rule that a recording, a row or a table breaks, and a sentence with the figures. It names no file."""

    rule: str
    reason: str


CLIP_RULES: dict[str, Severity] = {
    "too_short": "error",
    "too_long": "error",
    "silent": "error",
    "nearly_silent": "error",
    "clipped": "error",
    "phase_cancelled": "error",
    "changed_content": "error",
    "dc_offset": "warning",
    "narrow_band": "warning",
    "no_voice": "warning",
    "near_duplicate": "warning",
}

TABLE_RULES: dict[str, Severity] = {
    "unusual_score": "warning",
    "no_singer": "warning",
    "no_source": "warning",
    "few_clips": "error",
    "few_per_source": "error",
    "few_per_band": "error",
    "few_singers": "error",
    "few_per_singer": "error",
    "distribution_shift": "warning",
}

RULES: dict[str, Severity] = {**CLIP_RULES, **TABLE_RULES}
