"""Batch sampling for a ranking loss, which compares only clips of the same batch.

Each batch should contain small and large score gaps, both recording domains and every part of the scale, and the clips
of a relative group, which have no pairs with other clips, should be in one batch. The result depends on the clips, the
seed and the epoch, not on the order of rows in a table.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from audioscore.errors import DataError, UsageError, shorten
from audioscore.training.losses import ABSOLUTE

Rows = NDArray[np.intp]

# Each stratum has a share in every batch, and the clips of one stratum make the small gaps. With many strata, a batch
# would be spaced evenly over the scale, and clips closer than that spacing would hardly ever be compared.
QUANTILES = 4  # strata of a source, at most
STRATUM_CLIPS = 4  # of a stratum in each batch, at least; a source with fewer clips gets fewer quantiles
MIN_STRATIFIED_CLIPS = 4  # smaller batches are drawn at random, so that their few pairs are of all kinds


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
    """Draw the batches of one epoch: every clip once, at most `batch_clips` in each, batch sizes at most one apart.

    Clips with absolute scores are stratified by source and, within a source, by quantile of the score: a batch has its
    share of each stratum, rounded up or down. A source with fewer than two clips per batch is drawn in pairs, since a
    single clip would never be compared within its source. Pairs and relative groups are assigned first, which can
    change the other shares by the space they use. They are split only if no batch has enough space left, into halves
    that change from epoch to epoch.

    Args:
        scores: human scores, or ranks in a relative group.
        groups: 0 for clips with absolute scores; any other number names a relative group.
        keys: content hashes (SHA-256) of the recordings.
    Shape: N clips -> batches of row numbers.
    Raises: UsageError for batches of fewer than two clips, DataError if a score is not finite.
    """
    _check(scores, sources, groups, keys, batch_clips)
    if not len(scores):
        return []
    generator = np.random.default_rng([seed % 2**63, epoch])
    main, together = _canonical(scores, sources, groups, keys)
    count = -(-len(scores) // batch_clips)
    spread, pairs = _stratify(generator.permutation(main), scores, sources, count, generator)
    together = [generator.permutation(group) for group in together] + pairs
    sizes = [len(range(batch, len(scores), count)) for batch in range(count)]
    batches = _assign_groups(together, sizes, generator)
    dealt = _deal(sizes, [size - len(batch) for size, batch in zip(sizes, batches, strict=True)])
    whole = [np.concatenate([batch, spread[dealt == number]]) for number, batch in enumerate(batches)]
    return [whole[number] for number in generator.permutation(count)]


def _check(
    scores: Sequence[float], sources: Sequence[str], groups: Sequence[int], keys: Sequence[str], batch_clips: int
) -> None:
    if not len(scores) == len(sources) == len(groups) == len(keys):
        raise ValueError(
            f"scores, sources, groups and keys must have the same length; "
            f"got {len(scores)}, {len(sources)}, {len(groups)}, {len(keys)}"
        )
    if batch_clips < 2:
        raise UsageError(f"batch_clips {batch_clips}: a batch of one clip has no pair to compare. Set it to 2 or more.")
    if bad := [key[:12] for key, score in zip(keys, scores, strict=True) if not np.isfinite(score)]:
        raise DataError(
            f"training clips: {len(bad)} of {len(scores)} have no finite score ({shorten(bad)}). "
            f"Score them, or give them the ranks of a relative group."
        )


def _canonical(
    scores: Sequence[float], sources: Sequence[str], groups: Sequence[int], keys: Sequence[str]
) -> tuple[Rows, list[Rows]]:
    """Return the rows of the main list and of each relative group, in an order that depends only on their content.

    A recording can be in several groups, so rows and groups are ordered by all of their values. Rows with equal values
    are interchangeable.
    """
    name = [(keys[row], float(scores[row]), sources[row]) for row in range(len(keys))]
    members: dict[int, list[int]] = {}
    for row in sorted(range(len(keys)), key=name.__getitem__):
        members.setdefault(int(groups[row]), []).append(row)
    main = np.array(members.pop(ABSOLUTE, []), dtype=np.intp)
    relative = sorted(members.values(), key=lambda rows: [name[row] for row in rows])
    return main, [np.array(rows, dtype=np.intp) for rows in relative]


def _assign_groups(groups: Sequence[Rows], sizes: Sequence[int], generator: np.random.Generator) -> list[Rows]:
    """Put each group into the batch with the most free space, large groups first; halve those that fit nowhere."""
    free = np.array(sizes)
    batches: list[Rows] = [np.zeros(0, dtype=np.intp) for _ in sizes]
    waiting = [groups[number] for number in generator.permutation(len(groups))]
    while waiting:
        waiting.sort(key=len)  # stable: groups of equal size stay in their random order
        group = waiting.pop()
        batch = int(free.argmax())
        if len(group) <= free[batch]:
            batches[batch] = np.concatenate([batches[batch], group])
            free[batch] -= len(group)
        else:
            waiting += np.array_split(group, 2)
    return batches


def _stratify(
    shuffled: Rows, scores: Sequence[float], sources: Sequence[str], count: int, generator: np.random.Generator
) -> tuple[Rows, list[Rows]]:
    """Order the main list by stratum, each stratum shuffled; return apart, in pairs, sources too rare for `count`
    batches.

    `shuffled` is in random order, so that clips with equal scores fall on either side of a quantile at random.
    """
    if len(sources) < MIN_STRATIFIED_CLIPS * count:
        return shuffled, []
    strata, pairs = [np.zeros(0, dtype=np.intp)], []
    for source in sorted({sources[row] for row in shuffled}):
        rows = np.array([row for row in shuffled if sources[row] == source], dtype=np.intp)
        if len(rows) < 2 * count:
            pairs += [rows[first : first + 2] for first in range(0, len(rows), 2)]
            continue
        by_score = rows[np.argsort([scores[row] for row in rows], kind="stable")]
        quantiles = int(np.clip(len(rows) // (STRATUM_CLIPS * count), 1, QUANTILES))
        strata += [generator.permutation(part) for part in np.array_split(by_score, quantiles)]
    return np.concatenate(strata), pairs


def _deal(sizes: Sequence[int], left: Sequence[int]) -> Rows:
    """Return the batch of each clip of a list, so that every part of the list is spread over all batches.

    Clips are dealt round by round; a batch that is partly filled by groups is skipped in evenly spaced rounds.

    Shape: `sizes` of B batches, `left` [B] free positions of each -> batch numbers [sum of left].

    >>> _deal([3, 2], [3, 2]).tolist(), _deal([3, 3], [1, 3]).tolist()
    ([0, 1, 0, 1, 0], [1, 0, 1, 1])
    """
    rounds = [(np.arange(count) + 0.5) * size // max(count, 1) for size, count in zip(sizes, left, strict=True)]
    batch = np.repeat(np.arange(len(sizes)), left)
    return batch[np.lexsort([batch, np.concatenate(rounds)])]
