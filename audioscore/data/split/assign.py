"""Train, validation and test parts that share no singer and no recording, and keep every group where it first went."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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
from audioscore.errors import DataError, UsageError, shorten
from audioscore.files import read_json, write_json

TRIES = 16  # orders in which groups are dealt out; the best balanced is kept
SONG_WEIGHT = 1.0  # what a clip whose song is in another part costs; above this, balance suffered in trials

Placed = list[tuple[int, int]]  # (group, part)


def deal(
    groups: Sequence[Sequence[Clip]],
    names: Sequence[str],
    places: Sequence[int | None],
    shares: Sequence[float],
    *,
    seed: int,
    score_levels: int,
) -> list[int]:
    """The part of every group: those in `places` stay where they are, the others are dealt by several seeded orders.

    `names` tell groups apart whatever order they come in; `shares` are the parts' wanted shares of the clips. A part
    that would stay empty gets the smallest new group that can be spared, so there must be at least as many new groups
    as empty parts.
    """
    table = _strata(groups, score_levels)
    targets = np.array(shares)[:, None] * table.sum(axis=0)  # [P, K]
    songs = [[clip.song_id for clip in group if clip.song_id is not None] for group in groups]
    new = [index for index, part in enumerate(places) if part is None]
    fixed = [(index, part) for index, part in enumerate(places) if part is not None]
    best: tuple[float, Placed] | None = None
    for attempt in range(TRIES):
        order = sorted(new, key=lambda index: _order_key(seed, attempt, names[index]))
        result = _deal_in_order(order, fixed, table, songs, targets)
        best = result if best is None or result[0] < best[0] else best
    parts = dict([*fixed, *(best[1] if best else [])])
    _fill_empty(parts, len(shares), sorted(new, key=lambda index: (len(groups[index]), names[index])))
    return [parts[index] for index in range(len(groups))]


def _strata(groups: Sequence[Sequence[Clip]], score_levels: int) -> NDArray[np.float64]:
    """How many clips of each stratum a group holds: all, each source, each score level within a source.

    Shape: [G, K], one row a group.
    """
    scores: dict[str, list[float]] = defaultdict(list)
    for clip in [clip for group in groups for clip in group if clip.score is not None]:
        scores[clip.source or ""].append(clip.score or 0.0)
    inner = np.arange(1, score_levels) / score_levels
    edges = {source: np.quantile(np.sort(values), inner) for source, values in scores.items()}
    columns: dict[tuple[str, ...], int] = {(): 0}
    counts: list[Counter[int]] = []
    for group in groups:
        row: Counter[int] = Counter()
        for clip in group:
            source = clip.source or ""
            level = "none" if clip.score is None else str(np.searchsorted(edges[source], clip.score, side="right"))
            row.update(columns.setdefault(name, len(columns)) for name in ((), (source,), (source, level)))
        counts.append(row)
    table = np.zeros((len(groups), len(columns)))
    for index, row in enumerate(counts):
        table[index, list(row)] = list(row.values())
    return table


def _order_key(seed: int, attempt: int, name: str) -> str:
    return hashlib.sha256(f"{seed}/{attempt}/{name}".encode()).hexdigest()


def _deal_in_order(
    order: Sequence[int],
    fixed: Placed,
    table: NDArray[np.float64],
    songs: Sequence[Sequence[str]],
    targets: NDArray[np.float64],
) -> tuple[float, Placed]:
    """Put each group where it adds least to the cost: chi-square distance from the targets, and songs on two sides."""
    scale = np.maximum(targets, 1.0)
    counts = np.zeros_like(targets)
    sung: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(len(targets)))

    def put(group: int, part: int) -> None:
        counts[part] += table[group]
        for song in songs[group]:
            sung[song][part] += 1

    for group, part in fixed:
        put(group, part)
    placed: Placed = []
    for group in order:
        added = table[group]
        cost = (added * (2 * (counts - targets) + added) / scale).sum(axis=1)
        elsewhere = np.zeros(len(targets))
        for song in {song for song in songs[group] if song in sung}:
            present = sung[song] > 0
            elsewhere += present.sum() - present
        part = int(np.argmin(cost + SONG_WEIGHT * elsewhere))
        put(group, part)
        placed.append((group, part))
    shared = sum(float(counts_of.sum() - counts_of.max()) for counts_of in sung.values())
    return float(((counts - targets) ** 2 / scale).sum()) + SONG_WEIGHT * shared, placed


def _fill_empty(parts: dict[int, int], count: int, smallest_first: Sequence[int]) -> None:
    """Move the smallest new group that can be spared into each part that has none."""
    for part in range(count):
        sizes = Counter(parts.values())
        if not sizes[part]:
            parts[next(group for group in smallest_first if sizes[parts[group]] > 1)] = part


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
