"""Train, validation and test parts that share no singer and no recording, and keep every group where it first went."""

import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from audioscore.data.clips import Clip
from audioscore.data.split_report import SplitReport, report_splits
from audioscore.errors import DataError, UsageError, shorten
from audioscore.files import read_json, write_json

SPLITS = ("train", "val", "test")
TRIES = 16  # orders in which groups are dealt out; the best balanced is kept
SONG_WEIGHT = 1.0  # what a clip whose song is in another split costs; above this, balance suffered in trials


class SplitsFile(NamedTuple):
    """What splits.json remembers: the seed, and the split of every group there ever was."""

    seed: int
    groups: dict[str, str]


@dataclass(frozen=True)
class Splits:
    """Where every clip went. `of` goes from audio_file to split; `groups` is for splits.json."""

    seed: int
    groups: dict[str, str]
    of: dict[str, str]
    report: SplitReport


@dataclass
class _Group:
    """Clips that must stay together, under all the keys they are or were known by."""

    keys: set[str]
    clips: list[Clip]
    split: str | None = None


def assign_splits(
    clips: Sequence[Clip],
    *,
    val: float,
    test: float,
    seed: int,
    remembered: Mapping[str, str] | None = None,
    together: Sequence[Collection[str]] = (),
    score_levels: int = 4,
) -> Splits:
    """Deal groups of clips out to train, val and test.

    A group is a singer; a clip without one is a group of its own, known by its content. Groups that hold identical
    audio (one sha256), or that `together` joins (each item names clips by sha256 or audio_file: near-copies, speaker
    clusters), are one group. `val` and `test` are shares of the clips. Groups in `remembered` (splits.json) stay where
    they are; new ones are dealt so that each split gets its share of every source and of `score_levels` score levels
    (quantiles) within it, and so that songs, too, stay on one side as far as that allows. The result depends on the
    seed and the clips, not on their order.

    Raises DataError where there are fewer than three groups, where no new group can fill an empty split, or where one
    group is remembered in two splits; UsageError for shares outside 0-1.
    """
    if not (val > 0 and test > 0 and val + test < 1):
        raise UsageError(f"val {val:g} and test {test:g} must both be above 0, and less than 1 together.")
    known = dict(remembered or {})
    groups = _group(clips, together)
    if len(groups) < len(SPLITS):
        raise DataError(
            f"{len(clips)} clips by {len(groups)} singers cannot fill train, val and test without sharing one. "
            f"Add recordings by at least {len(SPLITS) - len(groups)} more."
        )
    for group in groups:
        group.split = _remembered_split(group, known)
    new = [group for group in groups if group.split is None]
    shares = np.array([1 - val - test, val, test])
    _deal(groups, new, shares, seed, score_levels)
    _fill_empty(groups, new)
    for group in groups:
        known |= {key: str(group.split) for clip in group.clips for key in [group_key(clip)] if key not in known}
    of = {clip.audio_file: str(group.split) for group in groups for clip in group.clips}
    report = report_splits(clips, of, dict(zip(SPLITS, shares.tolist(), strict=True)), len(groups), len(new))
    return Splits(seed, dict(sorted(known.items())), of, report)


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


def group_key(clip: Clip) -> str:
    """The name under which splits.json remembers a clip: its singer, else its content, else its file.

    >>> group_key(Clip("a.m4a", singer_id="A01")), group_key(Clip("a.m4a", sha256="5fd2")), group_key(Clip("a.m4a"))
    ('singer:a01', 'sha256:5fd2', 'file:a.m4a')
    """
    if clip.singer_id is not None:
        return f"singer:{unicodedata.normalize('NFKC', clip.singer_id).casefold().strip()}"
    return f"sha256:{clip.sha256}" if clip.sha256 else f"file:{clip.audio_file}"


def _all_keys(clip: Clip) -> list[str]:
    content = [f"sha256:{clip.sha256}"] if clip.sha256 else []
    return [group_key(clip), f"file:{clip.audio_file}", *content]


def _group(clips: Iterable[Clip], together: Sequence[Collection[str]]) -> list[_Group]:
    """Connected clips, by union-find over their keys; in an order that rows cannot change."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = key = parent[parent[key]]
        return key

    def join(keys: list[str]) -> None:
        for key in keys[1:]:
            parent[root(key)] = root(keys[0])

    ordered = sorted(clips, key=lambda clip: (clip.audio_file, clip.sha256 or "", clip.singer_id or ""))
    for clip in ordered:
        join(_all_keys(clip))
    for names in together:
        keys = [next((key for key in (f"sha256:{name}", f"file:{name}") if key in parent), name) for name in names]
        if lost := sorted(key for key in keys if key not in parent):
            raise DataError(f"{len(lost)} of {len(keys)} clips to keep together are not in the data ({shorten(lost)}).")
        join(sorted(keys))
    groups: dict[str, _Group] = defaultdict(lambda: _Group(set(), []))
    for clip in ordered:
        group = groups[root(group_key(clip))]
        group.keys.update(_all_keys(clip))
        group.clips.append(clip)
    return sorted(groups.values(), key=lambda group: min(map(group_key, group.clips)))


def _remembered_split(group: _Group, known: Mapping[str, str]) -> str | None:
    places = {key: known[key] for key in sorted(group.keys) if key in known}
    if len(set(places.values())) > 1:
        raise DataError(
            f"{len(places)} groups share recordings, but splits.json has them in different splits "
            f"({shorten([f'{key} in {split}' for key, split in places.items()])}). Remove the shared recordings from "
            f"all but one, or delete splits.json to split afresh, which voids earlier test results."
        )
    return next(iter(places.values()), None)


def _strata(groups: Sequence[_Group], score_levels: int) -> NDArray[np.float64]:
    """How many clips of each stratum a group holds: all, each source, each score level within a source.

    Shape: [G, K], one row a group.
    """
    scores: dict[str, list[float]] = defaultdict(list)
    for clip in [clip for group in groups for clip in group.clips if clip.score is not None]:
        scores[clip.source or ""].append(clip.score or 0.0)
    inner = np.arange(1, score_levels) / score_levels
    edges = {source: np.quantile(np.sort(values), inner) for source, values in scores.items()}
    columns: dict[tuple[str, ...], int] = {(): 0}
    counts: list[Counter[int]] = []
    for group in groups:
        row: Counter[int] = Counter()
        for clip in group.clips:
            source = clip.source or ""
            level = "none" if clip.score is None else str(np.searchsorted(edges[source], clip.score, side="right"))
            row.update(columns.setdefault(name, len(columns)) for name in ((), (source,), (source, level)))
        counts.append(row)
    table = np.zeros((len(groups), len(columns)))
    for index, row in enumerate(counts):
        table[index, list(row)] = list(row.values())
    return table


def _deal(
    groups: Sequence[_Group], new: Sequence[_Group], shares: NDArray[np.float64], seed: int, score_levels: int
) -> None:
    """Give every new group its split: several seeded orders, each greedy, and the cheapest of them."""
    table = _strata(groups, score_levels)
    rows = {id(group): row for group, row in zip(groups, table, strict=True)}
    targets = shares[:, None] * table.sum(axis=0)  # [splits, K]
    fixed = [(group, SPLITS.index(group.split)) for group in groups if group.split is not None]
    best: tuple[float, list[tuple[_Group, int]]] | None = None
    for attempt in range(TRIES):
        order = sorted(new, key=lambda group: _order_key(seed, attempt, group))
        result = _deal_in_order(order, fixed, rows, targets)
        best = result if best is None or result[0] < best[0] else best
    for group, place in best[1] if best else []:
        group.split = SPLITS[place]


def _order_key(seed: int, attempt: int, group: _Group) -> str:
    return hashlib.sha256(f"{seed}/{attempt}/{min(map(group_key, group.clips))}".encode()).hexdigest()


def _deal_in_order(
    order: Sequence[_Group],
    fixed: Sequence[tuple[_Group, int]],
    rows: Mapping[int, NDArray[np.float64]],
    targets: NDArray[np.float64],
) -> tuple[float, list[tuple[_Group, int]]]:
    """Put each group where it adds least to the cost: chi-square distance from the targets, and songs on two sides."""
    scale = np.maximum(targets, 1.0)
    counts = np.zeros_like(targets)
    songs: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(len(SPLITS)))

    def put(group: _Group, place: int) -> None:
        counts[place] += rows[id(group)]
        for clip in group.clips:
            if clip.song_id is not None:
                songs[clip.song_id][place] += 1

    for group, place in fixed:
        put(group, place)
    placed: list[tuple[_Group, int]] = []
    for group in order:
        added = rows[id(group)]
        cost = (added * (2 * (counts - targets) + added) / scale).sum(axis=1)
        elsewhere = np.zeros(len(SPLITS))
        for song in {clip.song_id for clip in group.clips if clip.song_id in songs}:
            present = songs[str(song)] > 0
            elsewhere += present.sum() - present
        place = int(np.argmin(cost + SONG_WEIGHT * elsewhere))
        put(group, place)
        placed.append((group, place))
    shared = sum(float(counts_of.sum() - counts_of.max()) for counts_of in songs.values())
    return float(((counts - targets) ** 2 / scale).sum()) + SONG_WEIGHT * shared, placed


def _fill_empty(groups: Sequence[_Group], new: Sequence[_Group]) -> None:
    """Move the smallest new group that can be spared into each split that has none."""
    for split in SPLITS:
        sizes = Counter(group.split for group in groups)
        if sizes[split]:
            continue
        spare = [group for group in new if sizes[group.split] > 1]
        if not spare:
            raise DataError(
                f"no clip is left for {split}: all but {len(new)} of {len(groups)} groups are remembered in other "
                f"splits (splits.json). Add recordings by new singers."
            )
        smallest = min(spare, key=lambda group: (len(group.clips), min(map(group_key, group.clips))))
        smallest.split = split
