"""Report the content of the splits, with warnings about deviations from the configuration."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from audioscore.data.clips import Clip
from audioscore.data.spelling import id_key
from audioscore.errors import shorten

OFF_SHARE = 0.25  # largest deviation of a split's share from its target, relative to the target, without a warning


@dataclass(frozen=True)
class ExcludedClip:
    """A clip that is in no index, since it would put a singer or a recording into two splits."""

    audio_file: str
    split: str  # that it would belong to
    reason: str

    def describe(self) -> str:
        """Describe it in one line: `b.m4a excluded from train: near-identical to a.m4a in test`."""
        return f"{self.audio_file} excluded from {self.split}: {self.reason}"


@dataclass(frozen=True)
class SplitCounts:
    """The content of one split. `sources` counts clips; `lowest` and `highest` are scores, None if no clip has one.

    `share` is its share of all clips, `wanted` the configured one; `unscored` clips have an order but no score.
    """

    clips: int
    share: float
    wanted: float
    unscored: int
    singers: int
    songs: int
    sources: dict[str, int]
    lowest: float | None
    highest: float | None


@dataclass(frozen=True)
class SplitReport:
    """The content of all splits, and warnings.

    `unknown_singers` counts clips without a singer. `shared_songs` counts test clips whose song is also in train, and
    `shared_song_share` is their share of the test clips with a song. `left_out` lists the excluded clips.
    `pseudo_singers` maps clips without a singer to their estimated voice; `voices_apart` counts the voices with clips
    in several splits.
    """

    splits: dict[str, SplitCounts]
    groups: int
    new_groups: int
    unknown_singers: int
    unknown_songs: int
    shared_songs: int
    shared_song_share: float
    warnings: list[str]
    left_out: list[ExcludedClip] = field(default_factory=list)
    pseudo_singers: dict[str, str] = field(default_factory=dict)
    voices_apart: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the report as dictionaries, lists and numbers."""
        return asdict(self)


def report_splits(
    clips: Sequence[Clip],
    of: Mapping[str, str],
    targets: Mapping[str, float],
    *,
    groups: int,
    new_groups: int,
    left_out: Sequence[ExcludedClip] = (),
    grouped_by_voice: int = 0,
    voices_apart: int = 0,
) -> SplitReport:
    """Count the clips, singers, songs and sources of each split, and list warnings.

    Args:
        of: Split by audio_file, without the excluded clips.
        targets: Wanted share of the clips by split.
        grouped_by_voice: Number of clips without a singer that were grouped by voice.
    """
    kept = [clip for clip in clips if clip.audio_file in of]
    parts = {split: [clip for clip in kept if of[clip.audio_file] == split] for split in targets}
    counts = {split: _count(part, len(kept), targets[split]) for split, part in parts.items()}
    trained = {clip.song_id for clip in parts["train"]} - {None}
    known = [clip for clip in parts["test"] if clip.song_id is not None]
    shared = sum(clip.song_id in trained for clip in known)
    unknown = sum(clip.singer_id is None for clip in clips)
    warnings = _share_warnings(counts, len(kept)) + _source_warnings(counts)
    warnings += _singer_warnings(unknown - grouped_by_voice, len(clips), voices_apart)
    if shared:
        warnings.append(f"{shared} of {len(known)} test clips with a known song have a song that is also in train.")
    if left_out:
        warnings.append(
            f"{len(left_out)} of {len(clips)} clips are excluded from all splits, since each links two splits "
            f"({shorten([clip.describe() for clip in left_out])})."
        )
    return SplitReport(
        splits=counts,
        groups=groups,
        new_groups=new_groups,
        unknown_singers=unknown,
        unknown_songs=sum(clip.song_id is None for clip in clips),
        shared_songs=shared,
        shared_song_share=shared / len(known) if known else 0.0,
        warnings=warnings,
        left_out=list(left_out),
        voices_apart=voices_apart,
    )


def _count(part: Sequence[Clip], total: int, wanted: float) -> SplitCounts:
    scores = [clip.score for clip in part if clip.score is not None]
    return SplitCounts(
        clips=len(part),
        share=len(part) / total if total else 0.0,
        wanted=wanted,
        unscored=len(part) - len(scores),
        singers=len({id_key(clip.singer_id) for clip in part if clip.singer_id is not None}),
        songs=len({clip.song_id for clip in part} - {None}),
        sources=dict(sorted(Counter(clip.source or "unknown" for clip in part).items())),
        lowest=min(scores, default=None),
        highest=max(scores, default=None),
    )


def _share_warnings(counts: Mapping[str, SplitCounts], total: int) -> list[str]:
    return [
        f"{split} has {count.clips} of {total} clips ({count.share:.0%}), wanted {count.wanted:.0%}."
        for split, count in counts.items()
        if abs(count.share - count.wanted) > OFF_SHARE * count.wanted
    ]


def _source_warnings(counts: Mapping[str, SplitCounts]) -> list[str]:
    sources = sorted({source for count in counts.values() for source in count.sources})
    return [
        f"{split} has no clip of source {source}."
        for source in sources
        for split, count in counts.items()
        if source not in count.sources
    ]


def _singer_warnings(ungrouped: int, total: int, voices_apart: int) -> list[str]:
    warnings = []
    if ungrouped:
        warnings.append(
            f"{ungrouped} of {total} clips have no singer: two of them in different splits may have the same one. "
            f"Add singer_id, use --singer-from, or estimate voices (split.pseudo_singers)."
        )
    if voices_apart:
        warnings.append(
            f"{voices_apart} estimated voices have clips in several splits since earlier versions of the data; clips "
            f"keep their split."
        )
    return warnings
