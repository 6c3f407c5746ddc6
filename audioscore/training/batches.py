"""Which clips meet in a batch: a ranking loss learns only from clips that do.

Small and large gaps, both recording domains and every part of the scale shall meet in each batch, and the clips of a
relative group, which teach nothing apart, with each other. What is drawn depends on the clips, the seed and the epoch,
never on the order of a table's rows.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from audioscore.errors import DataError, UsageError, shorten
from audioscore.training.losses import ABSOLUTE

Rows = NDArray[np.intp]

# A stratum gives every batch its share of clips, and those of one stratum make the small gaps. So strata are few: with
# many, a batch would be spaced evenly over the scale and clips closer than that spacing would hardly ever meet.
QUANTILES = 4  # strata of a source, at most
STRATUM_CLIPS = 4  # in each batch, at least; a source with fewer gets fewer quantiles
TINY = 4  # batches smaller than this are dealt at random: their few pairs shall be of all kinds


def draw_batches(
    scores: Sequence[float],
    sources: Sequence[str],
    groups: Sequence[int],
    *,
    keys: Sequence[str],
    batch_clips: int,
    seed: int,
    epoch: int,
) -> list[Rows]:
    """Deal one epoch's batches: every clip once, at most `batch_clips` in each, sizes at most one apart.

    `groups` is 0 for clips with absolute scores; any other number names a relative group, whose `scores` are ranks.
    `keys` identify clips by content (sha256). Clips with absolute scores are stratified by source and, within it, by
    quantile of the score: a batch holds its share of each, rounded up or down. A source too rare for two clips in
    every batch comes in couples, since one alone is never compared within its source. Couples and relative groups are
    placed first, which may move the other shares, by as much as they fill of a batch; they are split only where no
    batch has room left for them, into halves that change from epoch to epoch.

    Shape: N clips -> batches of row numbers. Raises UsageError for batches of fewer than two clips, DataError where
    a score is not finite.
    """
    _check(scores, sources, groups, keys, batch_clips)
    if not len(scores):
        return []
    chance = np.random.default_rng([seed % 2**63, epoch])
    main, together = _canonical(scores, sources, groups, keys)
    count = -(-len(scores) // batch_clips)
    spread, couples = _stratify(chance.permutation(main), scores, sources, count, chance)
    together = [chance.permutation(group) for group in together] + couples
    room = [len(range(batch, len(scores), count)) for batch in range(count)]
    batches = _place_together(together, room, chance)
    dealt = _deal(room, [size - len(batch) for size, batch in zip(room, batches, strict=True)])
    whole = [np.concatenate([batch, spread[dealt == number]]) for number, batch in enumerate(batches)]
    return [whole[number] for number in chance.permutation(count)]


def _check(
    scores: Sequence[float], sources: Sequence[str], groups: Sequence[int], keys: Sequence[str], batch_clips: int
) -> None:
    if not len(scores) == len(sources) == len(groups) == len(keys):
        raise ValueError(
            f"scores, sources, groups and keys must be as many; "
            f"got {len(scores)}, {len(sources)}, {len(groups)}, {len(keys)}"
        )
    if batch_clips < 2:
        raise UsageError(f"batch_clips {batch_clips}: a clip alone has nothing to be ranked against. Give 2 or more.")
    if bad := [key[:12] for key, score in zip(keys, scores, strict=True) if not np.isfinite(score)]:
        raise DataError(
            f"{len(bad)} of {len(scores)} clips have no finite score ({shorten(bad)}). "
            f"Score them, or give them the ranks of a relative group."
        )


def _canonical(
    scores: Sequence[float], sources: Sequence[str], groups: Sequence[int], keys: Sequence[str]
) -> tuple[Rows, list[Rows]]:
    """Rows of the main list, and of each relative group, in an order that only their content decides.

    One recording may stand in several groups: rows and groups are ordered by all that tells them apart. Rows that
    nothing tells apart are interchangeable.
    """
    name = [(keys[row], float(scores[row]), sources[row]) for row in range(len(keys))]
    members: dict[int, list[int]] = {}
    for row in sorted(range(len(keys)), key=name.__getitem__):
        members.setdefault(int(groups[row]), []).append(row)
    main = np.array(members.pop(ABSOLUTE, []), dtype=np.intp)
    relative = sorted(members.values(), key=lambda rows: [name[row] for row in rows])
    return main, [np.array(rows, dtype=np.intp) for rows in relative]


def _place_together(groups: Sequence[Rows], room: Sequence[int], chance: np.random.Generator) -> list[Rows]:
    """Put each group into the batch with the most room, large groups first; halve those that fit nowhere."""
    free = np.array(room)
    batches: list[Rows] = [np.zeros(0, dtype=np.intp) for _ in room]
    waiting = [groups[place] for place in chance.permutation(len(groups))]
    while waiting:
        waiting.sort(key=len)  # stable: equals stay in their random order
        group = waiting.pop()
        batch = int(free.argmax())
        if len(group) <= free[batch]:
            batches[batch] = np.concatenate([batches[batch], group])
            free[batch] -= len(group)
        else:
            waiting += np.array_split(group, 2)
    return batches


def _stratify(
    shuffled: Rows, scores: Sequence[float], sources: Sequence[str], count: int, chance: np.random.Generator
) -> tuple[Rows, list[Rows]]:
    """The main list as a row of strata, each in random order, and as couples what is too rare for `count` batches.

    `shuffled` is in random order, so that clips with one score fall on either side of a cut by chance.
    """
    if len(sources) < TINY * count:
        return shuffled, []
    strata, couples = [np.zeros(0, dtype=np.intp)], []
    for source in sorted({sources[row] for row in shuffled}):
        rows = np.array([row for row in shuffled if sources[row] == source], dtype=np.intp)
        if len(rows) < 2 * count:
            couples += [rows[first : first + 2] for first in range(0, len(rows), 2)]
            continue
        by_score = rows[np.argsort([scores[row] for row in rows], kind="stable")]
        quantiles = int(np.clip(len(rows) // (STRATUM_CLIPS * count), 1, QUANTILES))
        strata += [chance.permutation(part) for part in np.array_split(by_score, quantiles)]
    return np.concatenate(strata), couples


def _deal(sizes: Sequence[int], left: Sequence[int]) -> Rows:
    """Which batch each clip of a list goes to, so that every run of the list is spread over all batches.

    Like cards, round after round; a batch that relative groups filled in part sits out evenly spaced rounds.

    Shape: `sizes` of B batches, of which `left` [B] are to be dealt -> [sum of left] numbers of batches.

    >>> _deal([3, 2], [3, 2]).tolist(), _deal([3, 3], [1, 3]).tolist()
    ([0, 1, 0, 1, 0], [1, 0, 1, 1])
    """
    rounds = [(np.arange(count) + 0.5) * size // max(count, 1) for size, count in zip(sizes, left, strict=True)]
    batch = np.repeat(np.arange(len(sizes)), left)
    return batch[np.lexsort([batch, np.concatenate(rounds)])]
