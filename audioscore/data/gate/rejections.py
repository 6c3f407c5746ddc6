"""Which clips are not used, or are used with a warning, and why: broken rules, exact repeats, conflicts."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict

from audioscore.data.audio_checks import Heard, ProbeLimits
from audioscore.data.clips import Clip
from audioscore.data.fingerprint import near_duplicates
from audioscore.data.labels import Fault
from audioscore.data.rules import RULES, Finding, Severity
from audioscore.errors import UsageError, shorten


@dataclass(frozen=True)
class ValidationSettings:
    """What the gate asks for. `sources` lists the recording domains allowed; empty allows any, and none.

    A minimum of 0 asks for nothing; `min_per_band` and `min_per_source` hold for every score band and source that has
    clips now or had some in the last accepted version. `max_shift` is how far the scores of a source may have moved
    since then, as the Kullback-Leibler divergence in nats: 0.2 is a bell curve that moved by 0.63 of its width.
    `severity` overrides RULES by name. `column_map` and `singer_from` are those of `read_labels`.

    Raises UsageError where `severity` names an unknown rule.
    """

    min_clips: int = 10
    min_per_source: int = 0
    min_per_band: int = 0
    min_singers: int = 0
    min_per_singer: int = 0
    sources: tuple[str, ...] = ()
    usual_scores: tuple[float, float] = (50.0, 99.0)
    max_shift: float = 0.2
    max_rejected_share: float = 0.1
    limits: ProbeLimits = field(default_factory=ProbeLimits)
    severity: Mapping[str, Severity] = field(default_factory=dict)
    column_map: Mapping[str, str] | None = None
    singer_from: str | None = None

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.severity) - set(RULES)):
            raise UsageError(
                f"validation.severity: no such rule: {shorten(unknown)}. The rules are {', '.join(RULES)}."
            )

    def severity_of(self, rule: str) -> Severity:
        """The severity set for a rule, or the one it has by itself.

        >>> settings = ValidationSettings(severity={"no_voice": "error"})
        >>> settings.severity_of("no_voice"), settings.severity_of("dc_offset")
        ('error', 'warning')
        """
        return self.severity.get(rule, RULES[rule])


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


FAR_APART = 10.0  # points between the scores of two recordings that sound the same: one of them must be wrong


class NearDuplicates(NamedTuple):
    """Pairs of clips that sound the same, by name; what is said of them; and which clips they reject, by position."""

    pairs: list[tuple[str, str]]
    warned: list[Rejection]
    rejected: dict[int, Rejection]


def find_near_duplicates(
    clips: Sequence[Clip], fingerprints: Sequence[bytes | None], severity: Severity
) -> NearDuplicates:
    """What sounds the same among clips; a clip that has a score and a place in an order is no pair with itself.

    As an error, all but the first of the scored clips that sound the same are rejected. Off, nothing is said of them,
    but the pairs are still found: a split that tears them apart would be dishonest. Scores more than FAR_APART are
    always warned about.
    """
    found = [
        (clips[i], clips[j]) for i, j in near_duplicates(fingerprints) if clips[i].audio_file != clips[j].audio_file
    ]
    pairs = [(one.audio_file, other.audio_file) for one, other in found]
    rejected = _later_ones(clips, pairs) if severity == "error" else {}
    gone = {clips[position].audio_file for position in rejected}
    warned = []
    for one, other in found:
        apart = _far_apart(one, other)
        # The exact copy of a scored recording in an unscored group is a pair, but nothing to warn about.
        told = apart or (severity != "off" and (one.sha256 is None or one.sha256 != other.sha256))
        if told and gone.isdisjoint((one.audio_file, other.audio_file)):
            warned.append(reject(other, f"near-duplicate of {_place(one)}{apart}", "warning"))
    return NearDuplicates(pairs, warned, rejected)


def linked_pairs(pairs: Iterable[tuple[str, str]], names: Collection[str]) -> list[tuple[str, str]]:
    """Those of `names` that pairs link, each with the first of its group, in the order of first mention.

    Names that pairs link by way of a clip that is not used stay linked.

    >>> linked_pairs([("a", "b"), ("b", "c"), ("d", "e")], {"a", "c", "d", "e"})
    [('a', 'c'), ('d', 'e')]
    """
    linked = [[name for name in group if name in names] for group in _groups(pairs)]
    return [(first, other) for first, *others in filter(None, linked) for other in others]


def _groups(pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Names that pairs link directly or by way of others, group by group, in the order of first mention."""
    group_of: dict[str, dict[str, None]] = {}
    for one, other in pairs:
        first, second = group_of.setdefault(one, {one: None}), group_of.setdefault(other, {other: None})
        if first is not second:
            first |= second
            group_of |= dict.fromkeys(second, first)
    return [list(group) for group in {id(group): group for group in group_of.values()}.values()]


def _later_ones(clips: Sequence[Clip], pairs: Sequence[tuple[str, str]]) -> dict[int, Rejection]:
    """All but the first scored clip of each group, by position."""
    positions = defaultdict(list)
    for position, clip in enumerate(clips):
        if clip.score is not None:
            positions[clip.audio_file].append(position)
    rejected = {}
    for group in _groups(pairs):
        first, *later = sorted(position for name in group for position in positions[name]) or [0]
        for position in later:
            apart = _far_apart(clips[first], clips[position])
            rejected[position] = reject(clips[position], f"near-duplicate of {_place(clips[first])}{apart}")
    return rejected


def _place(clip: Clip) -> str:
    return clip.audio_file if clip.row is None else f"row {clip.row} ({clip.audio_file})"


def _far_apart(one: Clip, other: Clip) -> str:
    if one.score is None or other.score is None or abs(one.score - other.score) <= FAR_APART:
        return ""
    gap = abs(one.score - other.score)
    return f", yet scored {other.score:g} against {one.score:g}, {gap:g} points apart; listen to both"
