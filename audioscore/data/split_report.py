"""What a split came out as, and where it falls short of what one would want."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from audioscore.data.clips import Clip

OFF_SHARE = 0.25  # a split's share of the clips may miss its target by this part of it before a warning


@dataclass(frozen=True)
class SplitCounts:
    """One split: how much it holds of what. `sources` counts clips; the scores are None where no clip has one."""

    clips: int
    singers: int
    songs: int
    sources: dict[str, int]
    lowest: float | None
    highest: float | None


@dataclass(frozen=True)
class SplitReport:
    """All splits, and the shortfalls.

    `unknown_singers` counts clips without a singer. `shared_songs` counts test clips whose song also occurs in train,
    and `shared_song_share` is their part of the test clips whose song is known.
    """

    splits: dict[str, SplitCounts]
    groups: int
    new_groups: int
    unknown_singers: int
    unknown_songs: int
    shared_songs: int
    shared_song_share: float
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        """The report as plain dictionaries, lists and numbers."""
        return asdict(self)


def report_splits(
    clips: Sequence[Clip], of: Mapping[str, str], targets: Mapping[str, float], groups: int, new_groups: int
) -> SplitReport:
    """Count what each split holds. `of` gives a clip's split, `targets` each split's wanted share of the clips."""
    parts = {split: [clip for clip in clips if of[clip.audio_file] == split] for split in targets}
    counts = {split: _count(part) for split, part in parts.items()}
    trained = {clip.song_id for clip in parts["train"]} - {None}
    known = [clip for clip in parts["test"] if clip.song_id is not None]
    shared = sum(clip.song_id in trained for clip in known)
    unknown = sum(clip.singer_id is None for clip in clips)
    warnings = _share_warnings(counts, targets, len(clips)) + _source_warnings(counts)
    if unknown:
        warnings.append(
            f"{unknown} of {len(clips)} clips have no singer: two of them in different splits may share one. "
            f"Give singer_id, --singer-from, or speaker clusters."
        )
    if shared:
        warnings.append(f"{shared} of {len(known)} test clips with a known song have it in train too.")
    return SplitReport(
        splits=counts,
        groups=groups,
        new_groups=new_groups,
        unknown_singers=unknown,
        unknown_songs=sum(clip.song_id is None for clip in clips),
        shared_songs=shared,
        shared_song_share=shared / len(known) if known else 0.0,
        warnings=warnings,
    )


def _count(part: Sequence[Clip]) -> SplitCounts:
    scores = [clip.score for clip in part if clip.score is not None]
    return SplitCounts(
        clips=len(part),
        singers=len({clip.singer_id for clip in part} - {None}),
        songs=len({clip.song_id for clip in part} - {None}),
        sources=dict(sorted(Counter(clip.source or "unknown" for clip in part).items())),
        lowest=min(scores, default=None),
        highest=max(scores, default=None),
    )


def _share_warnings(counts: Mapping[str, SplitCounts], targets: Mapping[str, float], total: int) -> list[str]:
    return [
        f"{split} holds {count.clips} of {total} clips ({count.clips / total:.0%}), wanted {targets[split]:.0%}."
        for split, count in counts.items()
        if abs(count.clips / total - targets[split]) > OFF_SHARE * targets[split]
    ]


def _source_warnings(counts: Mapping[str, SplitCounts]) -> list[str]:
    sources = sorted({source for count in counts.values() for source in count.sources})
    return [
        f"{split} holds no clip of source {source}."
        for source in sources
        for split, count in counts.items()
        if source not in count.sources
    ]
