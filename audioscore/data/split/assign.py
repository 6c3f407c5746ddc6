"""Train, validation and test parts that share no singer and no recording, and keep every group where it first went."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from audioscore.data.clips import Clip
from audioscore.data.split.groups import SPLITS as SPLITS
from audioscore.data.split.groups import (
    Group,
    Singer,
    can_fill,
    content_key,
    empty_splits,
    group_clips,
    join_alike,
    remembered_split,
)
from audioscore.data.split.report import SplitReport, report_splits
from audioscore.data.split.split_deal import deal
from audioscore.errors import DataError, UsageError, shorten
from audioscore.files import read_json, write_json


class SplitsFile(NamedTuple):
    """What splits.json remembers: the seed, and the split of every singer and recording there ever was."""

    seed: int
    groups: dict[str, str]


@dataclass(frozen=True)
class Splits:
    """Where every clip went.

    `of` goes from audio_file to split and lacks the clips that are left out; `groups` is for splits.json.
    """

    seed: int
    groups: dict[str, str]
    of: dict[str, str]
    report: SplitReport


def assign_splits(
    clips: Sequence[Clip],
    *,
    val: float,
    test: float,
    seed: int,
    remembered: Mapping[str, str] | None = None,
    together: Sequence[Collection[str]] = (),
    alike: Sequence[Collection[str]] = (),
    score_levels: int = 4,
) -> Splits:
    """Deal groups of clips out to train, val and test.

    A group is a singer; a clip without one is a group of its own, known by its content. Groups that hold identical
    audio (one sha256), or that `together` joins (each item names clips by sha256 or audio_file: near-copies), are one
    group. `val` and `test` are shares of the clips. New groups are dealt so that each split gets its share of every
    source and of `score_levels` score levels (quantiles) within it, and so that songs, too, stay on one side as far as
    that allows. The result depends on the seed and the clips, not on their order.

    What `remembered` (splits.json) holds stays where it is: singers, and every recording by its content, so that a
    clip keeps its split when its singer becomes known or is corrected. Where that contradicts a group, the clip in the
    earlier of train, val and test, or the one whose singer is remembered elsewhere, is left out of all splits, and
    reported: no clip ever moves from one to another.

    `alike` are estimates: each names clips, by audio_file, that seem to share a singer. They join groups that are not
    remembered, and bring new groups to remembered ones; where a voice is remembered in several splits nothing moves,
    new groups follow the most of its clips, and it is counted. Estimates that would leave a split empty are not used,
    and the report says so.

    Raises DataError where there are fewer than three groups, or where no new group can fill an empty split;
    UsageError for shares outside 0-1.
    """
    if not (val > 0 and test > 0 and val + test < 1):
        raise UsageError(f"val {val:g} and test {test:g} must both be above 0, and less than 1 together.")
    known = dict(remembered or {})
    singers, groups, left_out = group_clips(clips, together, known)
    _check_enough(groups, len(clips))
    joined, voices_apart = join_alike(groups, alike)
    usable = can_fill(joined)
    joined, voices_apart = (joined, voices_apart) if usable else (groups, 0)
    shares = dict(zip(SPLITS, (1 - val - test, val, test), strict=True))
    of = _deal(joined, list(shares.values()), seed, score_levels)
    heard = {clip.audio_file for clip in clips if clip.singer_id is None} & {name for item in alike for name in item}
    report = report_splits(
        clips,
        of,
        shares,
        groups=len(groups),
        new_groups=sum(group.split is None for group in groups),
        left_out=[left_out[name] for name in sorted(left_out)],
        heard=len(heard) if usable else 0,
        voices_apart=voices_apart,
    )
    if not usable:
        report.warnings.append(
            f"{len(alike)} estimated voices would leave a split empty and are not used. Raise split.same_voice_cosine."
        )
    return Splits(seed, _remember(singers, known, of), of, report)


def read_splits(path: Path) -> SplitsFile:
    """Read splits.json; DataError where it is not what `write_splits` writes."""
    if not path.is_file():
        raise DataError(f"{path}: no such file. `audioscore data sort DIR` writes it.")
    try:
        value = read_json(path)
    except ValueError as fault:
        raise DataError(f"{path.name} is not JSON ({fault}). Restore it from the data's last version.") from fault
    groups = value.get("groups") if isinstance(value, dict) else None
    if not isinstance(groups, dict) or not isinstance(value.get("seed"), int):
        raise DataError(f'{path.name} lacks "seed" or "groups". Restore it from the data\'s last version.')
    if strange := [f"{key}: {split}" for key, split in groups.items() if split not in SPLITS]:
        raise DataError(
            f"{path.name}: {len(strange)} of {len(groups)} groups are in no split ({shorten(strange)}). "
            f"Give each one of {', '.join(SPLITS)}."
        )
    return SplitsFile(value["seed"], groups)


def write_splits(path: Path, splits: Splits) -> None:
    """Write splits.json atomically: the seed and every group's split, by key."""
    write_json(path, {"seed": splits.seed, "groups": splits.groups})


def _check_enough(groups: Sequence[Group], clips: int) -> None:
    if len(groups) < len(SPLITS):
        raise DataError(
            f"{clips} clips by {len(groups)} singers cannot fill train, val and test without sharing one. "
            f"Add recordings by at least {len(SPLITS) - len(groups)} more."
        )
    if not can_fill(groups):
        new = sum(group.split is None for group in groups)
        raise DataError(
            f"no clip is left for {empty_splits(groups)[0]}: all but {new} of {len(groups)} groups are remembered in "
            f"other splits (splits.json). Add recordings by new singers."
        )


def _deal(groups: Sequence[Group], shares: Sequence[float], seed: int, score_levels: int) -> dict[str, str]:
    """Deal the new groups out, note every singer's split, and return every clip's."""
    parts = deal(
        [group.clips for group in groups],
        [group.name for group in groups],
        [None if group.split is None else SPLITS.index(group.split) for group in groups],
        shares,
        seed=seed,
        score_levels=score_levels,
    )
    for group, part in zip(groups, parts, strict=True):
        for singer in group.singers:
            singer.split = SPLITS[part]
    return {clip.audio_file: SPLITS[part] for group, part in zip(groups, parts, strict=True) for clip in group.clips}


def _remember(singers: Sequence[Singer], known: Mapping[str, str], of: Mapping[str, str]) -> dict[str, str]:
    """What splits.json holds from now on; what it held before is never changed."""
    keys = dict(known)
    heard = [(clip, singer) for singer in singers for clip in singer.clips]
    # A recording may be in one split and, under another singer, left out of a second: where it is in counts.
    for clip, singer in sorted(heard, key=lambda one: one[0].audio_file not in of):
        keys.setdefault(content_key(clip), remembered_split(clip, known) or str(singer.split))
    for singer in singers:
        keys.setdefault(singer.key, str(singer.split))
    return dict(sorted(keys.items()))
