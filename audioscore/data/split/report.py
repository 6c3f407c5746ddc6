"""What a split came out as, and where it falls short of what one would want."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from audioscore.data.clips import Clip
from audioscore.data.split.pseudo_singers import singer_name
from audioscore.errors import shorten

OFF_SHARE = 0.25  # a split's share of the clips may miss its target by this part of it before a warning


@dataclass(frozen=True)
class LeftOut:
    """A clip that is in no index, since it would carry a voice or a recording from one split into another."""

    audio_file: str
    split: str  # where it would have been
    reason: str

    def describe(self) -> str:
        """As text: `b.m4a left out of train: near-identical to a.m4a in test`."""
        return f"{self.audio_file} left out of {self.split}: {self.reason}"


@dataclass(frozen=True)
class SplitCounts:
    """One split: how much it holds of what. `sources` counts clips; the scores are None where no clip has one.

    `share` is its part of all clips and `wanted` what was asked for; `unscored` clips are known by order only.
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
    """All splits, and the shortfalls.

    `unknown_singers` counts clips without a singer. `shared_songs` counts test clips whose song also occurs in train,
    and `shared_song_share` is their part of the test clips whose song is known. `pseudo_singers` gives the voice that
    a clip without a singer was estimated to have; `voices_apart` counts such voices with clips in several splits.
    """

    splits: dict[str, SplitCounts]
    groups: int
    new_groups: int
    unknown_singers: int
    unknown_songs: int
    shared_songs: int
    shared_song_share: float
    warnings: list[str]
    left_out: list[LeftOut] = field(default_factory=list)
    pseudo_singers: dict[str, str] = field(default_factory=dict)
    voices_apart: int = 0

    def to_json(self) -> dict[str, Any]:
        """The report as plain dictionaries, lists and numbers."""
        return asdict(self)


def report_splits(
    clips: Sequence[Clip],
    of: Mapping[str, str],
    targets: Mapping[str, float],
    *,
    groups: int,
    new_groups: int,
    left_out: Sequence[LeftOut] = (),
    heard: int = 0,
    voices_apart: int = 0,
) -> SplitReport:
    """Count what each split holds.

    `of` gives a clip's split, and none for those left out; `targets` are the wanted shares of the clips; `heard` is
    how many clips without a singer were grouped by voice.
    """
    kept = [clip for clip in clips if clip.audio_file in of]
    parts = {split: [clip for clip in kept if of[clip.audio_file] == split] for split in targets}
    counts = {split: _count(part, len(kept), targets[split]) for split, part in parts.items()}
    trained = {clip.song_id for clip in parts["train"]} - {None}
    known = [clip for clip in parts["test"] if clip.song_id is not None]
    shared = sum(clip.song_id in trained for clip in known)
    unknown = sum(clip.singer_id is None for clip in clips)
    warnings = _share_warnings(counts, len(kept)) + _source_warnings(counts)
    warnings += _singer_warnings(unknown - heard, len(clips), voices_apart)
    if shared:
        warnings.append(f"{shared} of {len(known)} test clips with a known song have it in train too.")
    if left_out:
        warnings.append(
            f"{len(left_out)} of {len(clips)} clips are in no split, since each would link two splits "
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
        singers=len({singer_name(clip.singer_id) for clip in part if clip.singer_id is not None}),
        songs=len({clip.song_id for clip in part} - {None}),
        sources=dict(sorted(Counter(clip.source or "unknown" for clip in part).items())),
        lowest=min(scores, default=None),
        highest=max(scores, default=None),
    )


def _share_warnings(counts: Mapping[str, SplitCounts], total: int) -> list[str]:
    return [
        f"{split} holds {count.clips} of {total} clips ({count.share:.0%}), wanted {count.wanted:.0%}."
        for split, count in counts.items()
        if abs(count.share - count.wanted) > OFF_SHARE * count.wanted
    ]


def _source_warnings(counts: Mapping[str, SplitCounts]) -> list[str]:
    sources = sorted({source for count in counts.values() for source in count.sources})
    return [
        f"{split} holds no clip of source {source}."
        for source in sources
        for split, count in counts.items()
        if source not in count.sources
    ]


def _singer_warnings(unheard: int, total: int, voices_apart: int) -> list[str]:
    warnings = []
    if unheard:
        warnings.append(
            f"{unheard} of {total} clips have no singer: two of them in different splits may share one. "
            f"Give singer_id or --singer-from, or let voices be estimated (split.pseudo_singers)."
        )
    if voices_apart:
        warnings.append(
            f"{voices_apart} estimated voices have clips in several splits since earlier versions of the data; what "
            f"was in a split stays there."
        )
    return warnings
