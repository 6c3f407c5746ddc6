"""Where a model is good and where it is not: by source, band of scores, singer, song, and at the top of the scale."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audioscore.evaluation.estimates import HeldOut, Resampled
from audioscore.evaluation.metrics import Array, Metric, bias, mae, spearman, within_sources
from audioscore.units import band_of

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
