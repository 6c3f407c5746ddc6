"""Who may be singing where nobody said: clips grouped into voices by their speaker embeddings. An estimate, no more."""

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from audioscore.data.clips import Clip
from audioscore.errors import DataError, shorten

BLOCK = 10_000  # rows clustered at once: time grows with their square, half a minute for so many
TIE = 1e-9  # nearness that differs by less is equal, so that rounding cannot send the search in circles


@dataclass(frozen=True)
class PseudoSingers:
    """An estimate of who sings each clip that has no singer.

    `of` goes from audio_file to a voice (voice-0001, ...), or to the id of the known singer whose voice it seems to
    be; `alike` lists, voice by voice, the files that seem to share a singer, with one file of every known singer whose
    voice is among them.
    """

    of: dict[str, str]
    alike: tuple[tuple[str, ...], ...]
    clips: int  # all clips, with a singer and without
    recognised: int  # clips taken for a known singer's
    largest: int  # clips in the voice that has most, those of its known singers included
    min_cosine: float

    def summary(self) -> str:
        """One sentence for a report."""
        known = f", {self.recognised} of them taken for known singers" if self.recognised else ""
        voices = "1 voice" if len(self.alike) == 1 else f"{len(self.alike)} voices"
        return (
            f"{len(self.of)} of {self.clips} clips have no singer: grouped into {voices} by their CAM++ embedding "
            f"(cosine >= {self.min_cosine:g}){known}, the largest of {self.largest} clips; an estimate."
        )


def singer_name(singer_id: str) -> str:
    """One spelling for a singer's id: width, case and outer spaces make no other singer.

    >>> singer_name(" \uff21\uff10\uff11 ") == singer_name("a01")
    True
    """
    return unicodedata.normalize("NFKC", singer_id).casefold().strip()


def group_voices(clips: Sequence[Clip], embeddings: NDArray[np.floating], *, min_cosine: float) -> PseudoSingers:
    """Estimate who sings the clips that have no singer_id, whatever order the clips come in.

    Shape: embeddings [N, E], one row a clip, those with a singer included. A known singer's clips count as one voice
    from the start; voices then join by `cluster_voices`' rule. Known singers who are not told apart from the same
    unknown clips come into one voice with them: better one group too large than a singer in two splits.

    Raises DataError where rows and clips differ in number or an embedding is not finite.
    """
    if len(embeddings) != len(clips):
        raise DataError(f"{len(embeddings)} embeddings for {len(clips)} clips. Give one a clip.")
    order = sorted(range(len(clips)), key=lambda index: (clips[index].audio_file, clips[index].sha256 or ""))
    listed = [clips[index] for index in order]
    unit = _unit(np.asarray(embeddings)[order], [clip.audio_file for clip in listed])
    rows: dict[str, int] = {}  # a known singer, or a clip without one -> row of the means
    row_of = np.array([rows.setdefault(_row_name(clip, index), len(rows)) for index, clip in enumerate(listed)], int)
    means, sizes = _means(unit, row_of)
    voices: dict[int, list[int]] = defaultdict(list)
    for index, voice in enumerate(_cluster(means, sizes, min_cosine)[row_of].tolist()):
        voices[voice].append(index)
    of: dict[str, str] = {}
    alike: list[tuple[str, ...]] = []
    recognised = largest = 0
    for members in voices.values():
        unknown = [index for index in members if listed[index].singer_id is None]
        if not unknown:
            continue
        known = {
            int(row_of[index]): listed[index] for index in reversed(members) if listed[index].singer_id is not None
        }
        nearest = _nearest(unit[unknown], means[list(known)], [str(clip.singer_id) for clip in known.values()])
        names = nearest or [f"voice-{len(alike) + 1:04d}"] * len(unknown)
        of |= {listed[index].audio_file: name for index, name in zip(unknown, names, strict=True)}
        alike.append((*(listed[index].audio_file for index in unknown), *(clip.audio_file for clip in known.values())))
        recognised += len(nearest)
        largest = max(largest, len(members))
    return PseudoSingers(of, tuple(alike), len(clips), recognised, largest, min_cosine)


def cluster_voices(embeddings: NDArray[np.floating], *, min_cosine: float) -> NDArray[np.int64]:
    """Average-linkage clusters: two are joined while the mean cosine between their members is at least `min_cosine`.

    Shape: embeddings [N, E] -> [N], clusters numbered from 0 in the order of their first row.

    The mean cosine between two clusters is the scalar product of the means of their unit vectors, so that no [N, N]
    matrix is needed: memory is that of the embeddings. Up to BLOCK rows the result is exact; beyond, blocks of so many
    rows are clustered each on its own, and then their clusters by the same rule.

    >>> cluster_voices(np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.1]]), min_cosine=0.5)
    array([0, 1, 0])
    """
    unit = _unit(embeddings, [f"row {row}" for row in range(len(embeddings))])
    return _cluster(unit, np.ones(len(unit)), min_cosine)


def _cluster(means: NDArray[np.float64], sizes: NDArray[np.float64], min_cosine: float) -> NDArray[np.int64]:
    """Clusters of clusters: `_average_linkage`, in blocks where there are many."""
    labels = np.zeros(len(means), dtype=np.int64)
    found = 0
    for start in range(0, len(means), BLOCK):
        block = slice(start, start + BLOCK)
        part = _average_linkage(means[block], sizes[block], min_cosine)
        labels[block] = part + found
        found += int(part.max()) + 1
    if len(means) <= BLOCK:
        return labels
    sums, totals = np.zeros((found, means.shape[1])), np.zeros(found)
    np.add.at(sums, labels, means * sizes[:, None])
    np.add.at(totals, labels, sizes)
    joined: NDArray[np.int64] = _average_linkage(sums / totals[:, None], totals, min_cosine)[labels]
    return joined


def _average_linkage(means: NDArray[np.float64], sizes: NDArray[np.float64], min_cosine: float) -> NDArray[np.int64]:
    """Join weighted clusters by nearest-neighbour chains.

    Follow nearest neighbours until two are each other's, and join those. Joining never brings a third cluster nearer
    than the nearer of the two was, so the order does not matter, and what has no near neighbour is done for good.

    Shape: means [M, E] of unit vectors, sizes [M] -> [M], numbered in the order of their first row.
    """
    means, sizes = means.copy(), sizes.copy()
    parent = np.arange(len(means))
    open_ = np.ones(len(means), dtype=bool)
    chain: list[int] = []
    for start in range(len(means)):
        if open_[start]:
            chain.append(start)
        while chain:
            here, before = chain[-1], chain[-2] if len(chain) > 1 else -1
            nearness = np.where(open_, means @ means[here], -np.inf)
            nearness[here] = -np.inf
            there = int(nearness.argmax())
            if before >= 0 and nearness[before] >= nearness[there] - TIE:
                there = before
            if nearness[there] < min_cosine - TIE:
                open_[chain.pop()] = False
            elif there == before:
                kept, joined = min(here, before), max(here, before)
                total = sizes[here] + sizes[before]
                means[kept] = (means[here] * sizes[here] + means[before] * sizes[before]) / total
                sizes[kept], open_[joined], parent[joined] = total, False, kept
                del chain[-2:]
                if not chain:
                    chain.append(kept)
            else:
                chain.append(there)
    for row in range(len(parent)):  # a cluster is kept under its first row, so parents come before their children
        parent[row] = parent[parent[row]]
    return np.unique(parent, return_inverse=True)[1].astype(np.int64)


def _nearest(unit: NDArray[np.float64], singers: NDArray[np.float64], names: Sequence[str]) -> list[str]:
    """The name of the singer each row is nearest to, by cosine; none where there are no singers."""
    if not names:
        return []
    return [names[choice] for choice in (unit @ _unit(singers, names).T).argmax(axis=1).tolist()]


def _row_name(clip: Clip, index: int) -> str:
    return f"clip {index}" if clip.singer_id is None else f"singer {singer_name(clip.singer_id)}"


def _unit(embeddings: NDArray[np.floating], names: Sequence[str]) -> NDArray[np.float64]:
    rows = np.asarray(embeddings, dtype=np.float64)
    if rows.ndim != 2:
        raise DataError(f"embeddings have shape {list(rows.shape)}. Give one row a clip, [N, E].")
    if lost := [names[row] for row in np.flatnonzero(~np.isfinite(rows).all(axis=1)).tolist()]:
        raise DataError(
            f"{len(lost)} of {len(rows)} voice embeddings are not finite ({shorten(lost)}). Extract them again."
        )
    norms: NDArray[np.float64] = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, np.finfo(np.float64).tiny))


def _means(rows: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means of the rows that share a label, and their number. Shape: [N, E] with labels [N] -> [L, E], [L]."""
    sizes = np.bincount(labels).astype(np.float64) if len(labels) else np.zeros(0)
    sums = np.zeros((len(sizes), rows.shape[1]))
    np.add.at(sums, labels, rows)
    return sums / sizes[:, None], sizes
