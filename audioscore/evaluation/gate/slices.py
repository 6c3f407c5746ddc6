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
from audioscore.evaluation.estimates import NO_SOURCE, SLICE_SINGERS, HeldOut, Resampled
from audioscore.evaluation.metrics import Array, Metric, bias, mae, spearman, within_sources
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


Members = NDArray[np.intp]

TOPS = (85, 90)  # points from which a recording counts as good, and as excellent
SINGER_CLIPS = 2  # a singer's, for a mean that is more than one clip
SONG_CLIPS = 5  # a song's, for an order of its clips; 2 do for its mean error
WORST_SONGS = 10
NO_ORDER = "fewer than 2 different human scores or predictions"


def per_source(predicted: Array, test: HeldOut) -> dict[str, Any]:
    """Spearman, MAE and bias inside each recording domain."""
    return {name: _slice(predicted, test, member) for name, member in sorted(_groups(test.sources).items())}


def per_band(predicted: Array, test: HeldOut) -> dict[str, Any]:
    """The same for each band of human scores that has clips, lowest band first.

    Inside a band scores differ little, and Spearman is low for any model and any rater.
    """
    order = np.argsort(test.scores, kind="stable")
    names = [band_of(float(test.scores[index])) for index in order]
    return {name: _slice(predicted, test, order[member]) for name, member in _groups(names).items()}


def at_the_top(predicted: Array, test: HeldOut) -> dict[str, Any]:
    """For each threshold: precision, the share of clips predicted at or above it that people put there, and recall."""
    found: dict[str, Any] = {}
    for top in TOPS:
        good, chosen = test.scores >= top, predicted >= top
        precision, recall = test.share(good, np.flatnonzero(chosen)), test.share(chosen, np.flatnonzero(good))
        found[str(top)] = {
            "clips": int(good.sum()),
            "predicted": int(chosen.sum()),
            "precision": _told(precision.as_dict(), f"no clip is predicted at {top} or above"),
            "recall": _told(recall.as_dict(), f"no clip has a human score of {top} or above"),
        }
    return found


def by_singer(predicted: Array, test: HeldOut) -> dict[str, Any]:
    """Spearman and MAE of singers' mean scores against their mean predictions, over singers of 2 clips or more."""
    groups = [member for member in _groups(test.singers).values() if len(member) >= SINGER_CLIPS]
    human = np.array([test.scores[member].mean() for member in groups])
    means = np.array([predicted[member].mean() for member in groups])
    first = np.array([member[0] for member in groups], dtype=np.intp)  # a singer's clips are drawn together

    def figure(metric: Metric, undefined: str) -> dict[str, Any]:
        found = Resampled(metric(human, means), metric(human, means, test.counts[:, first]))
        return test.judge(found, first, undefined).as_dict()

    nobody = f"no known singer has {SINGER_CLIPS} clips or more"
    return {
        "singers": len(groups),
        "clips": sum(map(len, groups)),
        "min_clips": SINGER_CLIPS,
        "spearman": figure(spearman, NO_ORDER if groups else nobody),
        "mae": figure(mae, nobody),
    }


def by_song(predicted: Array, test: HeldOut) -> dict[str, Any]:
    """Spearman inside songs of 5 clips or more, averaged by their clips, and the songs with the largest errors."""
    groups = _groups(test.songs)
    full = {song: member for song, member in groups.items() if len(member) >= SONG_CLIPS}
    member = np.sort(np.concatenate([*full.values(), np.zeros(0, dtype=np.intp)]))
    inside = within_sources([test.songs[index] for index in member])
    none = NO_ORDER if full else f"no song has {SONG_CLIPS} clips or more"
    errors = {song: mae(test.scores[own], predicted[own]) for song, own in groups.items() if len(own) > 1}
    worst = sorted(errors, key=lambda song: (-errors[song], song))[:WORST_SONGS]
    return {
        "songs": len(full),
        "clips": len(member),
        "min_clips": SONG_CLIPS,
        "spearman": test.estimate(inside, predicted, member, none).as_dict(),
        "worst": [{"song": song, **_errors(predicted, test, groups[song])} for song in worst],
    }


def _slice(predicted: Array, test: HeldOut, member: Members) -> dict[str, Any]:
    ranks = test.estimate(spearman, predicted, member, NO_ORDER).as_dict()
    return {**_errors(predicted, test, member), "spearman": ranks}


def _errors(predicted: Array, test: HeldOut, member: Members) -> dict[str, Any]:
    return {
        "clips": len(member),
        "singers": test.singer_count(member),
        "mae": test.estimate(mae, predicted, member).as_dict(),
        "bias": test.estimate(bias, predicted, member).as_dict(),
    }


def _told(figure: dict[str, Any], undefined: str) -> dict[str, Any]:
    return figure if figure["value"] is not None else {**figure, "no_interval": undefined}


def _groups(names: Sequence[str | None]) -> dict[str, Members]:
    """Positions of each name, names in the order they come; None is no name.

    >>> {name: member.tolist() for name, member in _groups(["b", None, "a", "b"]).items()}
    {'b': [0, 3], 'a': [2]}
    """
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        if name is not None:
            groups.setdefault(name, []).append(place)
    return {name: np.array(member, dtype=np.intp) for name, member in groups.items()}
