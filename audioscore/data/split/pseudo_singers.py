"""Estimate the singers of clips without singer_id: cluster speaker embeddings into voices."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from audioscore.data.clips import Clip
from audioscore.data.spelling import id_key
from audioscore.errors import DataError, shorten

BLOCK = 10_000  # rows clustered at once: time grows with their square, half a minute for this number
TIE = 1e-9  # cosines that differ by less are equal, so that rounding cannot cause an endless loop


@dataclass(frozen=True)
class PseudoSingers:
    """The estimated singers of the clips without one.

    `of` maps audio_file to a voice (voice-0001, ...), or to the id of a known singer with this voice. `same_voice`
    lists the files of each voice, with one file of every known singer who has it.
    """

    of: dict[str, str]
    same_voice: tuple[tuple[str, ...], ...]
    clips: int  # all clips, with a singer and without
    recognised: int  # clips that are assigned to a known singer
    largest: int  # clips of the largest voice, including those of known singers
    min_cosine: float

    def summary(self) -> str:
        """Describe the estimate in one sentence for a report."""
        known = f", {self.recognised} of them assigned to known singers" if self.recognised else ""
        voices = "1 voice" if len(self.same_voice) == 1 else f"{len(self.same_voice)} voices"
        return (
            f"{len(self.of)} of {self.clips} clips have no singer: grouped into {voices} by their CAM++ embedding "
            f"(cosine >= {self.min_cosine:g}){known}, the largest with {self.largest} clips; an estimate."
        )


def group_voices(clips: Sequence[Clip], embeddings: NDArray[np.floating], *, min_cosine: float) -> PseudoSingers:
    """Estimate the singers of the clips without singer_id; the result does not depend on the order of the clips.

    The clips of a known singer are one voice initially; voices are then joined as in `cluster_voices`. Known singers
    who are similar to the same unknown clips become one voice with them: a group that is too large is better than a
    singer in two splits.

    Shape: embeddings [N, E], one row per clip, including those with a singer.

    Raises DataError if the numbers of rows and clips differ, or an embedding is not finite.
    """
    if len(embeddings) != len(clips):
        raise DataError(f"voice embeddings: {len(embeddings)} for {len(clips)} clips. Pass one per clip.")
    order = sorted(range(len(clips)), key=lambda index: (clips[index].audio_file, clips[index].sha256 or ""))
    listed = [clips[index] for index in order]
    unit = _unit(np.asarray(embeddings)[order], [clip.audio_file for clip in listed])
    rows: dict[str, int] = {}  # a known singer, or a clip without one -> row of the means
    row_of = np.array([rows.setdefault(_row_name(clip, index), len(rows)) for index, clip in enumerate(listed)], int)
    means, sizes = _means(unit, row_of, np.ones(len(unit)))
    voices: dict[int, list[int]] = defaultdict(list)
    for index, voice in enumerate(_cluster(means, sizes, min_cosine)[row_of].tolist()):
        voices[voice].append(index)
    of: dict[str, str] = {}
    same_voice: list[tuple[str, ...]] = []
    recognised = largest = 0
    for members in voices.values():
        unknown = [index for index in members if listed[index].singer_id is None]
        if not unknown:
            continue
        known = {
            int(row_of[index]): listed[index] for index in reversed(members) if listed[index].singer_id is not None
        }
        nearest = _nearest(unit[unknown], means[list(known)], [str(clip.singer_id) for clip in known.values()])
        names = nearest or [f"voice-{len(same_voice) + 1:04d}"] * len(unknown)
        of |= {listed[index].audio_file: name for index, name in zip(unknown, names, strict=True)}
        same_voice.append(tuple(clip.audio_file for clip in [*(listed[index] for index in unknown), *known.values()]))
        recognised += len(nearest)
        largest = max(largest, len(members))
    return PseudoSingers(of, tuple(same_voice), len(clips), recognised, largest, min_cosine)


def cluster_voices(embeddings: NDArray[np.floating], *, min_cosine: float) -> NDArray[np.int64]:
    """Cluster by average linkage: two clusters are joined while the mean cosine of their members is >= `min_cosine`.

    The mean cosine of two clusters is the scalar product of the means of their unit vectors, so no [N, N] matrix is
    needed, and memory is proportional to N. Up to BLOCK rows the result is exact; with more, each block of rows is
    clustered first, and then the clusters of all blocks.

    Shape: embeddings [N, E] -> [N], clusters numbered from 0 in the order of their first row.

    >>> cluster_voices(np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.1]]), min_cosine=0.5)
    array([0, 1, 0])
    """
    unit = _unit(embeddings, [f"row {row}" for row in range(len(embeddings))])
    return _cluster(unit, np.ones(len(unit)), min_cosine)


def _cluster(means: NDArray[np.float64], sizes: NDArray[np.float64], min_cosine: float) -> NDArray[np.int64]:
    """`_average_linkage`, in blocks if there are many rows."""
    labels = np.zeros(len(means), dtype=np.int64)
    found = 0
    for start in range(0, len(means), BLOCK):
        block = slice(start, start + BLOCK)
        part = _average_linkage(means[block], sizes[block], min_cosine)
        labels[block] = part + found
        found += int(part.max()) + 1
    if len(means) <= BLOCK:
        return labels
    joined: NDArray[np.int64] = _average_linkage(*_means(means, labels, sizes), min_cosine)[labels]
    return joined


def _average_linkage(means: NDArray[np.float64], sizes: NDArray[np.float64], min_cosine: float) -> NDArray[np.int64]:
    """Join weighted clusters by nearest-neighbour chains.

    Nearest neighbours are followed until two clusters are each other's nearest, and these are joined. A joined cluster
    is never nearer to a third one than the nearer of the two was, so the order does not matter, and a cluster without a
    near neighbour is final.

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
            current, before = chain[-1], chain[-2] if len(chain) > 1 else -1
            cosines = np.where(open_, means @ means[current], -np.inf)
            cosines[current] = -np.inf
            nearest = int(cosines.argmax())
            if before >= 0 and cosines[before] >= cosines[nearest] - TIE:
                nearest = before
            if cosines[nearest] < min_cosine - TIE:
                open_[chain.pop()] = False
            elif nearest == before:
                kept, joined = min(current, before), max(current, before)
                total = sizes[current] + sizes[before]
                means[kept] = (means[current] * sizes[current] + means[before] * sizes[before]) / total
                sizes[kept], open_[joined], parent[joined] = total, False, kept
                del chain[-2:]
                if not chain:
                    chain.append(kept)
            else:
                chain.append(nearest)
    for row in range(len(parent)):  # a cluster is stored in its first row, so parents precede their children
        parent[row] = parent[parent[row]]
    return np.unique(parent, return_inverse=True)[1].astype(np.int64)


def _nearest(unit: NDArray[np.float64], singers: NDArray[np.float64], names: Sequence[str]) -> list[str]:
    """The name of the nearest singer of each row, by cosine; empty without singers."""
    if not names:
        return []
    return [names[choice] for choice in (unit @ _unit(singers, names).T).argmax(axis=1).tolist()]


def _row_name(clip: Clip, index: int) -> str:
    return f"clip {index}" if clip.singer_id is None else f"singer {id_key(clip.singer_id)}"


def _unit(embeddings: NDArray[np.floating], names: Sequence[str]) -> NDArray[np.float64]:
    rows = np.asarray(embeddings, dtype=np.float64)
    if rows.ndim != 2:
        raise DataError(f"voice embeddings: shape {list(rows.shape)}. Pass one row per clip, [N, E].")
    if lost := [names[row] for row in np.flatnonzero(~np.isfinite(rows).all(axis=1)).tolist()]:
        raise DataError(
            f"voice embeddings: {len(lost)} of {len(rows)} are not finite ({shorten(lost)}). Extract them again."
        )
    norms: NDArray[np.float64] = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, np.finfo(np.float64).tiny))


def _means(
    rows: NDArray[np.float64], labels: NDArray[np.int64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted mean and total weight of the rows of each label.

    Shape: rows [N, E], labels and weights [N] -> [L, E], [L].
    """
    totals = np.bincount(labels, weights).astype(np.float64)
    sums = np.zeros((len(totals), rows.shape[1]))
    np.add.at(sums, labels, rows * weights[:, None])
    return sums / totals[:, None], totals
