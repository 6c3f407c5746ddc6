"""Decide which clips are rejected or used with a warning: broken rules, duplicates, conflicting scores."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, TypedDict

from audioscore.data.audio_checks import RULES, AudioLimits, Finding, Severity
from audioscore.data.clips import Clip
from audioscore.data.file_checks import CheckedRecording
from audioscore.data.fingerprint import near_duplicates
from audioscore.data.labels import RowError, row_name, with_location
from audioscore.errors import UsageError, shorten

HASH_SHOWN = 12  # hexadecimal digits of a content hash in a message
FAR_APART = 10.0  # points between the scores of two near-duplicates: one of the scores must be wrong


@dataclass(frozen=True)
class ValidationSettings:
    """The requirements of the gate; the configuration's `validation` section sets them.

    `sources` lists the allowed recording domains; if it is empty, a clip may have any source or none. A minimum of 0 is
    no requirement; `min_per_band` and `min_per_source` apply to every score band and source with clips now or in the
    last accepted version. `max_shift` is the largest change of a source's score distribution since then, as the
    Kullback-Leibler divergence in nats: 0.2 is a normal distribution shifted by 0.63 standard deviations. `severity`
    overrides RULES by name. `column_map` and `singer_from` are those of `read_labels`.

    Raises UsageError if `severity` contains an unknown rule.
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
    limits: AudioLimits = field(default_factory=AudioLimits)
    severity: Mapping[str, Severity] = field(default_factory=dict)
    column_map: Mapping[str, str] | None = None
    singer_from: str | None = None

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.severity) - set(RULES)):
            raise UsageError(f"validation.severity: unknown rules: {shorten(unknown)}. Use {', '.join(RULES)}.")

    def severity_of(self, rule: str) -> Severity:
        """Return the severity of a rule: the configured one, else its default.

        >>> settings = ValidationSettings(severity={"no_voice": "error"})
        >>> settings.severity_of("no_voice"), settings.severity_of("dc_offset")
        ('error', 'warning')
        """
        return self.severity.get(rule, RULES[rule])


class Rejection(TypedDict):
    """A clip and the reason why it is rejected or has a warning. `row` is None for a clip of order.json.

    The `severity` of a rejected clip is "warning" for a harmless duplicate, else "error"; that of a clip that is used
    with a warning is always "warning".
    """

    audio_file: str
    row: int | None
    reason: str
    severity: str


class ClipVerdict(NamedTuple):
    """The decision about one clip: at most one rejection, or the warnings with which it is used."""

    rejected: list[Rejection]
    warned: list[Rejection]


def reject(clip: Clip, reason: str, severity: str = "error") -> Rejection:
    """Create the entry of a clip for the list of rejections, or of warnings."""
    return {"audio_file": clip.audio_file, "row": clip.row, "reason": reason, "severity": severity}


def reject_row(error: RowError) -> Rejection:
    """Create the entry of a table row that `read_labels` excluded."""
    return {"audio_file": error.audio_file, "row": error.row, "reason": error.reason, "severity": error.severity}


def with_locations(rejections: Iterable[Rejection], locations: Mapping[int, str]) -> list[Rejection]:
    """Name the rows of worksheets as a spreadsheet numbers them, in front of the reasons."""
    return [Rejection({**one, "reason": with_location(one["row"], one["reason"], locations)}) for one in rejections]


def by_row(rejections: Iterable[Rejection]) -> list[Rejection]:
    """Sort by table row; clips of order.json are last."""
    return sorted(rejections, key=lambda one: (one["row"] is None, one["row"] or 0))


def evaluate_clip(clip: Clip, checked: CheckedRecording, settings: ValidationSettings) -> ClipVerdict:
    """Reject a clip, or list its warnings, by the severities of its findings.

    A recording that cannot be decoded is always rejected, since no rule covers it.
    """
    if checked.error:
        return ClipVerdict([reject(clip, checked.error)], [])
    found = [*_changed_content(clip, checked), *checked.findings]
    errors = [finding.reason for finding in found if settings.severity_of(finding.rule) == "error"]
    if errors:
        return ClipVerdict([reject(clip, " ".join(errors))], [])
    listed = [finding.reason for finding in found if settings.severity_of(finding.rule) == "warning"]
    return ClipVerdict([], [reject(clip, reason, "warning") for reason in listed])


def _changed_content(clip: Clip, checked: CheckedRecording) -> list[Finding]:
    if not clip.sha256 or not checked.sha256 or clip.sha256 == checked.sha256:
        return []
    was, now = clip.sha256[:HASH_SHOWN], checked.sha256[:HASH_SHOWN]
    reason = f"changed content: its SHA-256 is {now}..., but {was}... in the table; restore it, or add it again."
    return [Finding("changed_content", reason)]


def without_copies(
    clips: Sequence[Clip], locations: Mapping[int, str] = MappingProxyType({})
) -> tuple[list[Clip], list[Rejection]]:
    """Keep the first of each recording's copies (same bytes) if their scores are equal, else no copy.

    Two scores of the same bytes contradict each other, so neither can be trusted. Clips without a hash are kept.
    `locations` are those of the table.
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
            reason = f"duplicate: same audio and score as {_label(first, locations)}"
            rejected += [reject(other, reason, "warning") for other in others]
            dropped |= {id(other) for other in others}
        else:
            scores = shorten([f"{clip.score:g} in {_label(clip, locations)}" for clip in group])
            rejected += [reject(clip, f"conflict: the same audio has the scores {scores}") for clip in group]
            dropped |= {id(clip) for clip in group}
    return [clip for clip in clips if id(clip) not in dropped], rejected


def without_repeats(group: Sequence[Clip]) -> tuple[list[Clip], list[Rejection]]:
    """Remove duplicates from an unscored group: the first, best position of each recording is kept."""
    kept: dict[str, Clip] = {}
    rejected: list[Rejection] = []
    for clip in group:
        first = kept.setdefault(clip.sha256 or clip.audio_file, clip)
        if first is not clip:
            rejected.append(reject(clip, f"duplicate: same audio as {first.audio_file}, which precedes it", "warning"))
    return list(kept.values()), rejected


class NearDuplicates(NamedTuple):
    """Pairs of near-duplicates by name, their warnings, and the clips that they reject, by position."""

    pairs: list[tuple[str, str]]
    warned: list[Rejection]
    rejected: dict[int, Rejection]


def find_near_duplicates(
    clips: Sequence[Clip],
    fingerprints: Sequence[bytes | None],
    severity: Severity,
    locations: Mapping[int, str] = MappingProxyType({}),
) -> NearDuplicates:
    """Find clips with the same audio but different bytes, by their fingerprints.

    With severity "error", all but the first of the scored clips of each group are rejected. With "off", they cause no
    warning, but the pairs are still returned: near-duplicates in two splits would leak test data into training. Scores
    more than FAR_APART apart always cause a warning. A clip that is also in order.json does not form a pair.
    """
    found = [
        (clips[i], clips[j]) for i, j in near_duplicates(fingerprints) if clips[i].audio_file != clips[j].audio_file
    ]
    pairs = [(one.audio_file, other.audio_file) for one, other in found]
    rejected = _later_ones(clips, pairs, locations) if severity == "error" else {}
    gone = {clips[position].audio_file for position in rejected}
    warned = []
    for one, other in found:
        apart = _far_apart(one, other)
        # An exact copy of a scored recording in an unscored group is a pair, but needs no warning.
        listed = apart or (severity != "off" and (one.sha256 is None or one.sha256 != other.sha256))
        if listed and gone.isdisjoint((one.audio_file, other.audio_file)):
            warned.append(reject(other, f"near-duplicate of {_label(one, locations)}{apart}", "warning"))
    return NearDuplicates(pairs, warned, rejected)


def linked_pairs(pairs: Iterable[tuple[str, str]], names: Collection[str]) -> list[tuple[str, str]]:
    """Return the pairs that link `names`: the first name of each connected group with each other name, in order.

    Names that are linked by a clip that is not used stay linked.

    >>> linked_pairs([("a", "b"), ("b", "c"), ("d", "e")], {"a", "c", "d", "e"})
    [('a', 'c'), ('d', 'e')]
    """
    linked = [[name for name in group if name in names] for group in _groups(pairs)]
    return [(first, other) for first, *others in filter(None, linked) for other in others]


def _groups(pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """The connected groups of names, in the order of first mention."""
    group_of: dict[str, dict[str, None]] = {}
    for one, other in pairs:
        first, second = group_of.setdefault(one, {one: None}), group_of.setdefault(other, {other: None})
        if first is not second:
            first |= second
            group_of |= dict.fromkeys(second, first)
    return [list(group) for group in {id(group): group for group in group_of.values()}.values()]


def _later_ones(
    clips: Sequence[Clip], pairs: Sequence[tuple[str, str]], locations: Mapping[int, str]
) -> dict[int, Rejection]:
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
            rejected[position] = reject(clips[position], f"near-duplicate of {_label(clips[first], locations)}{apart}")
    return rejected


def _label(clip: Clip, locations: Mapping[int, str]) -> str:
    return clip.audio_file if clip.row is None else f"{row_name(clip.row, locations)} ({clip.audio_file})"


def _far_apart(one: Clip, other: Clip) -> str:
    if one.score is None or other.score is None or abs(one.score - other.score) <= FAR_APART:
        return ""
    gap = abs(one.score - other.score)
    return f", but its score {other.score:g} differs from {one.score:g} by {gap:g} points; listen to both"
