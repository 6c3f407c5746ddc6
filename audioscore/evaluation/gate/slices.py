"""Regression check by slice: does the challenger rank worse than the champion on a source or score band?

Spearman is compared, as in the overall decision, and not the error in points: a calibration can be refitted, a wrong
order cannot.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from audioscore.errors import shorten
from audioscore.evaluation.bootstrap import NO_SOURCE, SLICE_SINGERS, Counts, or_none, paired_difference
from audioscore.evaluation.metrics import Array, spearman
from audioscore.units import SCORE_BANDS, band_of

SLICE_MARGIN, SLICE_CLIPS = 0.05, 20

Verdict = Literal["kept", "fell", "too small"]


@dataclass(frozen=True)
class Slice:
    """One slice of the test clips: Spearman of both models, and the difference with its interval.

    `verdict` is "fell" where the difference is below minus the margin and its whole interval below 0. Slices that are
    "too small" are not compared. Undefined values are None.
    """

    kind: Literal["source", "band"]
    name: str
    clips: int
    singers: int  # a clip without a singer counts as a separate singer
    verdict: Verdict
    challenger: float | None = None
    champion: float | None = None
    delta: float | None = None
    lo: float | None = None
    hi: float | None = None

    @property
    def title(self) -> str:
        """Name of the slice in texts.

        >>> Slice("band", "85-90", 30, 9, "kept").title
        'band 85-90'
        """
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class SliceRule:
    """Minimum size of a slice for a comparison, and how much Spearman may fall on it."""

    margin: float = SLICE_MARGIN
    min_clips: int = SLICE_CLIPS
    min_singers: int = SLICE_SINGERS


def compare_slices(
    human: Array,
    new: Array,
    old: Array,
    clusters: NDArray[np.int64],
    sources: Sequence[str | None],
    counts: Counts,
    rule: SliceRule,
    confidence: float,
) -> tuple[Slice, ...]:
    """Compare two models on every source, then on every score band that has clips.

    `new` and `old` are the predictions of the challenger and the champion.

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
        # Constant predictions count as a Spearman of 0: a model must not pass a slice by predicting a constant.
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
    """Summarise the slices for the reason of a decision; empty without slices.

    >>> few = Slice("band", "0-60", 3, 2, "too small")
    >>> slices_text([Slice("source", "ktv", 40, 9, "fell", 0.2, 0.5, -0.3), few], 0.05)
    'regression on source ktv (0.500 to 0.200, 40 clips, 9 singers), margin 0.05; too small to compare: band 0-60'
    """
    fell = [
        f"{one.title} ({_number(one.champion)} to {_number(one.challenger)}, {one.clips} clips, {one.singers} singers)"
        for one in slices
        if one.verdict == "fell"
    ]
    small = [one.title for one in slices if one.verdict == "too small"]
    compared = len(slices) - len(small)
    parts = [f"regression on {shorten(fell)}, margin {margin:g}"] if fell else []
    if compared and not fell:
        parts = [f"no regression on {compared} slices, margin {margin:g}"]
    return "; ".join(parts + ([f"too small to compare: {shorten(small, 10)}"] if small else []))


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
