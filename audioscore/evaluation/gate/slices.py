"""Does a challenger fall behind the champion on some kind of recording, while it wins over all of them together?

Ranks are compared and not errors in points, as the gate does overall: a calibration can be fitted again, what a model
cannot tell apart stays so.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from audioscore.errors import shorten
from audioscore.evaluation.bootstrap import Counts, or_none, paired_difference
from audioscore.evaluation.estimates import NO_SOURCE, SLICE_SINGERS
from audioscore.evaluation.metrics import Array, spearman
from audioscore.units import SCORE_BANDS, band_of

SLICE_MARGIN, SLICE_CLIPS = 0.05, 20

Verdict = Literal["kept", "fell", "too small"]


@dataclass(frozen=True)
class Slice:
    """One kind of test clips: both models' Spearman there, and the difference with its interval.

    `verdict` is "fell" where the difference lies below minus the margin and its whole interval below 0; "too small"
    slices are not judged. A figure that is undefined is None.
    """

    kind: Literal["source", "band"]
    name: str
    clips: int
    singers: int  # clips without a singer count as one each
    verdict: Verdict
    challenger: float | None = None
    champion: float | None = None
    delta: float | None = None
    lo: float | None = None
    hi: float | None = None

    @property
    def title(self) -> str:
        """What a sentence calls it.

        >>> Slice("band", "85-90", 30, 9, "kept").title
        'band 85-90'
        """
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class SliceRule:
    """When a slice is judged, and by how much Spearman may fall on it."""

    margin: float = SLICE_MARGIN
    min_clips: int = SLICE_CLIPS
    min_singers: int = SLICE_SINGERS


def judge_slices(
    human: Array,
    new: Array,
    old: Array,
    clusters: NDArray[np.int64],
    sources: Sequence[str | None],
    counts: Counts,
    rule: SliceRule,
    confidence: float,
) -> tuple[Slice, ...]:
    """Every source and every band of human scores that has clips, sources first, bands from the lowest up.

    Shape: human, new, old, clusters, sources [N], counts [B, N].
    """
    found = []
    for kind, name, member in _members(human, sources):
        size: dict[str, Any] = {
            "kind": kind, "name": name, "clips": len(member), "singers": len(np.unique(clusters[member])),
        }  # fmt: skip
        if size["clips"] < rule.min_clips or size["singers"] < rule.min_singers:
            found.append(Slice(**size, verdict="too small"))
            continue
        part = human[member], new[member], old[member]
        ranks = spearman(part[0], part[1]), spearman(part[0], part[2])
        difference = paired_difference(spearman, *part, counts[:, member], confidence)
        # All clips alike is no ranking, which counts 0: a model may not get out of a slice by saying nothing.
        delta = float(np.nan_to_num(ranks[0]) - np.nan_to_num(ranks[1]))
        shown = math.isnan(difference.value) or difference.hi < 0
        found.append(
            Slice(
                **size,
                verdict="fell" if delta < -rule.margin and shown else "kept",
                challenger=or_none(ranks[0]),
                champion=or_none(ranks[1]),
                delta=delta,
                lo=or_none(difference.lo),
                hi=or_none(difference.hi),
            )
        )
    return tuple(found)


def _members(
    human: Array, sources: Sequence[str | None]
) -> Iterator[tuple[Literal["source", "band"], str, NDArray[np.intp]]]:
    names = np.array([source or NO_SOURCE for source in sources], dtype=str)
    for name in np.unique(names):
        yield "source", str(name), np.flatnonzero(names == name)
    bands = np.array([band_of(float(score)) for score in human], dtype=str)
    for low, high in SCORE_BANDS:
        if len(member := np.flatnonzero(bands == f"{low:g}-{high:g}")):
            yield "band", f"{low:g}-{high:g}", member


def slices_text(slices: Sequence[Slice], margin: float) -> str:
    """What the gate's sentence says of the slices; empty where there are none.

    >>> few = Slice("band", "0-60", 3, 2, "too small")
    >>> slices_text([Slice("source", "ktv", 40, 9, "fell", 0.2, 0.5, -0.3), few], 0.05)
    'it falls on source ktv (0.500 to 0.200, 40 clips, 9 singers), by more than 0.05; too small to judge: band 0-60'
    """
    fell = [
        f"{one.title} ({_number(one.champion)} to {_number(one.challenger)}, {one.clips} clips, {one.singers} singers)"
        for one in slices
        if one.verdict == "fell"
    ]
    small = [one.title for one in slices if one.verdict == "too small"]
    judged = len(slices) - len(small)
    said = [f"it falls on {shorten(fell)}, by more than {margin:g}"] if fell else []
    if judged and not fell:
        said = [f"it falls on none of {judged} slices by more than {margin:g}"]
    return "; ".join(said + ([f"too small to judge: {shorten(small, 10)}"] if small else []))


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
