"""Assign clips to train, val and test splits that share no singer and no recording.

A clip that is once in a split is never moved to another one: splits.json stores the split of every singer and
recording.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from audioscore.data.clips import Clip
from audioscore.data.split.groups import (
    SPLITS,
    Group,
    SingerClips,
    can_fill,
    content_key,
    empty_splits,
    group_clips,
    group_key,
    join_same_voice,
    joined_singers,
    previous_split,
    with_equal_ids,
)
from audioscore.data.split.report import SplitReport, report_splits
from audioscore.errors import DataError, UsageError, shorten
from audioscore.files import read_json, write_json

TRIES = 16  # orders in which groups are assigned; the best balanced result is used
SONG_WEIGHT = 1.0  # cost of a clip whose song is in another split; with higher values, balance suffered in trials

Assignment = list[tuple[int, int]]  # (group, split), both as indices


class SplitsFile(NamedTuple):
    """The content of splits.json: the seed, and the split of every singer and recording so far, by key."""

    seed: int
    groups: dict[str, str]
    joined: Mapping[str, str] = {}


@dataclass(frozen=True)
class Splits:
    """The split of every clip.

    `of` maps audio_file to split, without the excluded clips; `groups` is written to splits.json, and so is `joined`:
    the name of the group of each recording whose group has several singers, by its key.
    """

    seed: int
    groups: dict[str, str]
    of: dict[str, str]
    report: SplitReport
    joined: dict[str, str] = field(default_factory=dict)


def assign_splits(
    clips: Sequence[Clip],
    *,
    val: float,
    test: float,
    seed: int,
    previous: Mapping[str, str] | None = None,
    joined: Mapping[str, str] | None = None,
    same_recording: Sequence[Collection[str]] = (),
    same_voice: Sequence[Collection[str]] = (),
    score_levels: int = 4,
) -> Splits:
    """Assign clips to train, val and test, so that no singer and no recording is in two splits.

    Clips are assigned in groups. A group contains the clips of one singer, or one clip without a singer; groups with
    the same audio (equal sha256, or `same_recording`) are joined. New groups are assigned so that each split gets its
    share of every source and of every score level within it, and so that few songs are in two splits. The result
    depends on the seed and on the clips, not on their order.

    Singers and recordings of `previous` keep their splits, so a clip keeps its split when its singer is added or
    corrected. If this contradicts a group, no clip is moved: the clip in the earlier of train, val and test, or the
    clip whose singer is in another split, is excluded from all splits and reported.

    Args:
        val: Share of the clips, as is `test`.
        previous: The groups of splits.json.
        joined: What splits.json has joined.
        same_recording: Sets of near-duplicates, by sha256 or audio_file.
        same_voice: Sets of clips, by audio_file, that probably share a singer. These estimates join new groups, and
            assign new groups to the split of previous ones. If a voice is in several splits, its new groups follow most
            of its clips, and the voice is counted in the report. Estimates that would leave a split empty are ignored,
            with a warning.
        score_levels: Number of quantile levels of the scores of a source.

    Raises:
        DataError: There are fewer than three groups, or no new group for an empty split.
        UsageError: A share is outside 0-1.
    """
    if not (val > 0 and test > 0 and val + test < 1):
        raise UsageError(f"val {val:g}, test {test:g}: must be above 0, and below 1 together. Correct them.")
    known = with_equal_ids(previous or {})
    singers, groups, left_out = group_clips(clips, same_recording, known)
    _check_enough(groups, len(clips))
    by_voice, voices_apart = join_same_voice(groups, same_voice)
    usable = can_fill(by_voice)
    by_voice, voices_apart = (by_voice, voices_apart) if usable else (groups, 0)
    shares = dict(zip(SPLITS, (1 - val - test, val, test), strict=True))
    of = _assign(by_voice, list(shares.values()), seed, score_levels)
    with_voice = {name for item in same_voice for name in item}
    grouped = {clip.audio_file for clip in clips if clip.singer_id is None} & with_voice
    report = report_splits(
        clips,
        of,
        shares,
        groups=len(groups),
        new_groups=sum(group.split is None for group in groups),
        left_out=[left_out[name] for name in sorted(left_out)],
        grouped_by_voice=len(grouped) if usable else 0,
        voices_apart=voices_apart,
    )
    if not usable:
        report.warnings.append(
            f"{len(same_voice)} estimated voices would leave a split empty and are not used. "
            f"Raise split.same_voice_cosine."
        )
    keys = _keys(singers, known, of)
    stored = {key: split for key, split in keys.items() if key not in known or key in (previous or {})}
    voices = same_voice if usable else ()
    return Splits(seed, stored, of, report, joined_singers(clips, [*same_recording, *voices], joined or {}))


def read_splits(path: Path) -> SplitsFile:
    """Read splits.json; DataError if it does not have the format of `write_splits`."""
    if not path.is_file():
        raise DataError(f"{path}: no such file. `audioscore data sort DIR` writes it.")
    try:
        value = read_json(path)
    except ValueError as error:
        raise DataError(f"{path.name}: not JSON ({error}). Restore it from the last version of the data.") from error
    groups, joined = (value.get("groups"), value.get("joined", {})) if isinstance(value, dict) else (None, {})
    if not isinstance(groups, dict) or not isinstance(value.get("seed"), int):
        raise DataError(f'{path.name}: no "seed" or "groups". Restore it from the last version of the data.')
    if invalid := [f"{key}: {split}" for key, split in groups.items() if split not in SPLITS]:
        raise DataError(
            f"{path.name}: {len(invalid)} of {len(groups)} groups have an unknown split ({shorten(invalid)}). "
            f"Use one of {', '.join(SPLITS)}."
        )
    return SplitsFile(value["seed"], groups, joined)


def write_splits(path: Path, splits: Splits) -> None:
    """Write splits.json atomically: the seed, and the split of every singer and recording, by key."""
    joined = {"joined": splits.joined} if splits.joined else {}
    write_json(path, {"seed": splits.seed, "groups": splits.groups, **joined})


def singer_groups(clips: Sequence[Clip], path: Path) -> list[str]:
    """Return the name of each clip's group: clips of one group must be in the same fold.

    It is the clip's singer, else its recording; or what splits.json at `path`, which may be missing, joins them to.
    Rows of one recording are in one group.
    """
    known = read_splits(path).joined if path.is_file() else {}
    joined = joined_singers(clips, (), known)
    return [joined.get(content_key(clip), group_key(clip)) for clip in clips]


def assign_folds(clips: Sequence[Clip], names: Sequence[str], folds: int, *, seed: int = 0) -> list[int]:
    """Return the fold of each clip: whole groups, balanced by source and score level.

    Raises DataError for fewer groups than folds.
    """
    members: dict[str, list[Clip]] = defaultdict(list)
    for clip, name in zip(clips, names, strict=True):
        members[name].append(clip)
    if len(members) < folds:
        raise DataError(
            f"cross-validation: {len(members)} groups of singers for {folds} folds. Add singers, or lower split.folds."
        )
    ordered = sorted(members)  # the result does not depend on the order of the clips
    groups = [sorted(members[name], key=lambda clip: clip.audio_file) for name in ordered]
    found = balance_groups(groups, ordered, [None] * len(groups), [1 / folds] * folds, seed=seed, score_levels=4)
    of = dict(zip(ordered, found, strict=True))
    return [of[name] for name in names]


def balance_groups(
    groups: Sequence[Sequence[Clip]],
    names: Sequence[str],
    fixed: Sequence[int | None],
    shares: Sequence[float],
    *,
    seed: int,
    score_levels: int,
) -> list[int]:
    """Return the index of every group's split, balanced by source and score level.

    Several seeded orders are tried, and the best balanced result is returned. A split that would stay empty gets the
    smallest new group that another split can spare, so there must be at least as many new groups as empty splits.

    Args:
        names: Unique names of the groups, which make the result independent of their order.
        fixed: The split of each group that must keep it, None for a new group.
        shares: The wanted shares of the clips, by split.
    """
    table = _strata(groups, score_levels)
    targets = np.array(shares)[:, None] * table.sum(axis=0)  # (splits, strata)
    songs = [[clip.song_id for clip in group if clip.song_id is not None] for group in groups]
    new = [index for index, split in enumerate(fixed) if split is None]
    kept = [(index, split) for index, split in enumerate(fixed) if split is not None]
    best: tuple[float, Assignment] | None = None
    for attempt in range(TRIES):
        order = sorted(new, key=lambda index: _order_key(seed, attempt, names[index]))
        result = _assign_in_order(order, kept, table, songs, targets)
        best = result if best is None or result[0] < best[0] else best
    assigned = dict([*kept, *(best[1] if best else [])])
    _fill_empty(assigned, len(shares), sorted(new, key=lambda index: (len(groups[index]), names[index])))
    return [assigned[index] for index in range(len(groups))]


def _check_enough(groups: Sequence[Group], clips: int) -> None:
    if len(groups) < len(SPLITS):
        raise DataError(
            f"{clips} clips by {len(groups)} singers: cannot fill train, val and test without a singer in two splits. "
            f"Add recordings by at least {len(SPLITS) - len(groups)} more."
        )
    if not can_fill(groups):
        new = sum(group.split is None for group in groups)
        raise DataError(
            f"{empty_splits(groups)[0]} split: no clip; only {new} of {len(groups)} groups are new, and splits.json "
            f"assigns the others to other splits. Add recordings by new singers."
        )


def _assign(groups: Sequence[Group], shares: Sequence[float], seed: int, score_levels: int) -> dict[str, str]:
    """Assign the new groups, set the split of every singer, and return that of every clip."""
    indices = balance_groups(
        [group.clips for group in groups],
        [group.name for group in groups],
        [None if group.split is None else SPLITS.index(group.split) for group in groups],
        shares,
        seed=seed,
        score_levels=score_levels,
    )
    of: dict[str, str] = {}
    for group, index in zip(groups, indices, strict=True):
        of |= {clip.audio_file: SPLITS[index] for clip in group.clips}
        for singer in group.singers:
            singer.split = SPLITS[index]
    return of


def _keys(singers: Sequence[SingerClips], known: Mapping[str, str], of: Mapping[str, str]) -> dict[str, str]:
    """The groups of the new splits.json; previous entries do not change."""
    keys = dict(known)
    clips = [(clip, singer) for singer in singers for clip in singer.clips]
    # A recording may be in one split and, with another singer, excluded from a second: its own split is stored.
    for clip, singer in sorted(clips, key=lambda one: one[0].audio_file not in of):
        keys.setdefault(content_key(clip), previous_split(clip, known) or str(singer.split))
    for singer in singers:
        keys.setdefault(singer.key, str(singer.split))
    return dict(sorted(keys.items()))


def _strata(groups: Sequence[Sequence[Clip]], score_levels: int) -> NDArray[np.float64]:
    """The number of clips of each stratum in a group: all clips, each source, each score level within a source.

    Shape: [G, K], one row per group.
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


def _assign_in_order(
    order: Sequence[int],
    fixed: Assignment,
    table: NDArray[np.float64],
    songs: Sequence[Sequence[str]],
    targets: NDArray[np.float64],
) -> tuple[float, Assignment]:
    """Assign each group to the split with the least additional cost; return the total cost, too.

    The cost is the chi-square distance from the targets, and that of songs in several splits.
    """
    scale = np.maximum(targets, 1.0)
    counts = np.zeros_like(targets)
    by_song: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(len(targets)))

    def add(group: int, split: int) -> None:
        counts[split] += table[group]
        for song in songs[group]:
            by_song[song][split] += 1

    for group, split in fixed:
        add(group, split)
    assigned: Assignment = []
    for group in order:
        added = table[group]
        cost = (added * (2 * (counts - targets) + added) / scale).sum(axis=1)
        elsewhere = np.zeros(len(targets))
        for song in {song for song in songs[group] if song in by_song}:
            present = by_song[song] > 0
            elsewhere += present.sum() - present
        split = int(np.argmin(cost + SONG_WEIGHT * elsewhere))
        add(group, split)
        assigned.append((group, split))
    shared = sum(float(counts_of.sum() - counts_of.max()) for counts_of in by_song.values())
    return float(((counts - targets) ** 2 / scale).sum()) + SONG_WEIGHT * shared, assigned


def _fill_empty(assigned: dict[int, int], count: int, smallest_first: Sequence[int]) -> None:
    """Move the smallest new group that can be spared into each empty split."""
    for split in range(count):
        sizes = Counter(assigned.values())
        if not sizes[split]:
            assigned[next(group for group in smallest_first if sizes[assigned[group]] > 1)] = split
