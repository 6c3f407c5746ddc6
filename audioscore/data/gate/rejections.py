"""Which clips are not used, or are used with a warning, and why: broken rules, exact repeats, conflicts."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypedDict

from audioscore.data.audio_checks import Heard
from audioscore.data.clips import Clip
from audioscore.data.gate.validation_settings import ValidationSettings
from audioscore.data.labels import Fault
from audioscore.data.rules import Finding
from audioscore.errors import shorten

HASH_SHOWN = 12  # hexadecimal digits of a content hash in a sentence


class Rejection(TypedDict):
    """A clip and what is wrong with it. `row` is None for a clip of order.json.

    Among rejected clips, `severity` is "warning" for a harmless repeat and "error" for everything else; among warned
    ones, which are used, it is always "warning".
    """

    audio_file: str
    row: int | None
    reason: str
    severity: str


class Weighed(NamedTuple):
    """What a clip's findings come to: why it is rejected, if it is, and what is said of it otherwise."""

    rejected: list[Rejection]
    warned: list[Rejection]


def reject(clip: Clip, reason: str, severity: str = "error") -> Rejection:
    return {"audio_file": clip.audio_file, "row": clip.row, "reason": reason, "severity": severity}


def from_fault(fault: Fault) -> Rejection:
    severity = "warning" if fault.reason.startswith("duplicate") else "error"
    return {"audio_file": fault.audio_file, "row": fault.row, "reason": fault.reason, "severity": severity}


def by_row(rejections: Iterable[Rejection]) -> list[Rejection]:
    """In the table's order, then those of order.json."""
    return sorted(rejections, key=lambda one: (one["row"] is None, one["row"] or 0))


def weigh(clip: Clip, heard: Heard, settings: ValidationSettings) -> Weighed:
    """What follows from what was heard of a clip. A recording that cannot be decoded is rejected by no rule's leave."""
    if heard.fault:
        return Weighed([reject(clip, heard.fault)], [])
    found = [*_changed_content(clip, heard), *heard.findings]
    errors = [finding.reason for finding in found if settings.severity_of(finding.rule) == "error"]
    if errors:
        return Weighed([reject(clip, " ".join(errors))], [])
    listed = [finding.reason for finding in found if settings.severity_of(finding.rule) == "warning"]
    return Weighed([], [reject(clip, reason, "warning") for reason in listed])


def _changed_content(clip: Clip, heard: Heard) -> list[Finding]:
    if not clip.sha256 or not heard.sha256 or clip.sha256 == heard.sha256:
        return []
    was, now = clip.sha256[:HASH_SHOWN], heard.sha256[:HASH_SHOWN]
    reason = f"changed content: its SHA-256 is {now}..., and the table says {was}...; restore it, or add it again."
    return [Finding("changed_content", reason)]


def without_copies(clips: Sequence[Clip]) -> tuple[list[Clip], list[Rejection]]:
    """The first of each recording's copies (same bytes) where their scores agree, and none where they do not.

    Clips whose content is not known have no copies.
    """
    copies: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        if clip.sha256:
            copies[clip.sha256].append(clip)
    rejected: list[Rejection] = []
    dropped: set[int] = set()
    for group in copies.values():
        first, *others = group
        if all(other.score == first.score for other in others):
            reason = f"duplicate: same audio and score as row {first.row} ({first.audio_file})"
            rejected += [reject(other, reason, "warning") for other in others]
            dropped |= {id(other) for other in others}
        else:
            told = shorten([f"{clip.score:g} in row {clip.row} ({clip.audio_file})" for clip in group])
            rejected += [reject(clip, f"conflict: the same audio is scored {told}") for clip in group]
            dropped |= {id(clip) for clip in group}
    return [clip for clip in clips if id(clip) not in dropped], rejected


def without_repeats(group: Sequence[Clip]) -> tuple[list[Clip], list[Rejection]]:
    """An unscored group without the recordings that stand in it twice: the first place is kept."""
    kept: dict[str, Clip] = {}
    rejected: list[Rejection] = []
    for clip in group:
        first = kept.setdefault(clip.sha256 or clip.audio_file, clip)
        if first is not clip:
            rejected.append(reject(clip, f"duplicate: same audio as {first.audio_file}, above it", "warning"))
    return list(kept.values()), rejected
