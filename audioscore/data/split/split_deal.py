"""Dealing groups of clips out, so that each part gets its share of every source and score level, and songs keep apart.

Parts are numbers here, 0 to P - 1; which of them is train or test is not this file's business.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from audioscore.data.clips import Clip

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
