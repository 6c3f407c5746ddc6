"""Recordings of one delivery that sound the same though their bytes differ, and what is said and done about them."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from audioscore.data.clips import Clip
from audioscore.data.fingerprint import near_duplicates
from audioscore.data.gate.rejections import Rejection, reject
from audioscore.data.rules import Severity

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
