"""Metrics by slice of the test clips: source, score band, top of the scale, singer and song."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audioscore.evaluation.bootstrap import ResampledClips, ResampledValue
from audioscore.evaluation.metrics import Array, Metric, bias, mae, spearman, within_sources
from audioscore.units import band_of

Members = NDArray[np.intp]

TOPS = (85, 90)  # points; thresholds of a good and of an excellent recording
SINGER_CLIPS = 2  # a singer with fewer clips has no mean
SONG_CLIPS = 5  # a song with fewer clips has no Spearman; 2 are enough for its MAE
WORST_SONGS = 10
NO_ORDER = "fewer than 2 different human scores or predictions"


def per_source(predicted: Array, test: ResampledClips) -> dict[str, Any]:
    """Compute Spearman, MAE and bias for each source."""
    return {name: _slice(predicted, test, member) for name, member in sorted(_groups(test.sources).items())}


def per_band(predicted: Array, test: ResampledClips) -> dict[str, Any]:
    """Compute the same for each band of human scores that has clips, lowest band first.

    Within a band scores differ little, so Spearman is low for any model and any rater.
    """
    order = np.argsort(test.scores, kind="stable")
    names = [band_of(float(test.scores[index])) for index in order]
    return {name: _slice(predicted, test, order[member]) for name, member in _groups(names).items()}


def at_the_top(predicted: Array, test: ResampledClips) -> dict[str, Any]:
    """Compute precision and recall of "score at or above a threshold" for each threshold."""
    found: dict[str, Any] = {}
    for top in TOPS:
        good, chosen = test.scores >= top, predicted >= top
        precision, recall = test.share(good, np.flatnonzero(chosen)), test.share(chosen, np.flatnonzero(good))
        found[str(top)] = {
            "clips": int(good.sum()),
            "predicted": int(chosen.sum()),
            "precision": _with_reason(precision.as_dict(), f"no clip is predicted at {top} or above"),
            "recall": _with_reason(recall.as_dict(), f"no clip has a human score of {top} or above"),
        }
    return found


def by_singer(predicted: Array, test: ResampledClips) -> dict[str, Any]:
    """Compute Spearman and MAE of the mean scores of singers with 2 clips or more."""
    groups = [member for member in _groups(test.singers).values() if len(member) >= SINGER_CLIPS]
    human = np.array([test.scores[member].mean() for member in groups])
    means = np.array([predicted[member].mean() for member in groups])
    first = np.array([member[0] for member in groups], dtype=np.intp)  # a singer's clips are drawn together

    def figure(metric: Metric, undefined: str) -> dict[str, Any]:
        found = ResampledValue(metric(human, means), metric(human, means, test.counts[:, first]))
        return test.with_interval(found, first, undefined).as_dict()

    no_singer = f"no known singer has {SINGER_CLIPS} clips or more"
    return {
        "singers": len(groups),
        "clips": sum(map(len, groups)),
        "min_clips": SINGER_CLIPS,
        "spearman": figure(spearman, NO_ORDER if groups else no_singer),
        "mae": figure(mae, no_singer),
    }


def by_song(predicted: Array, test: ResampledClips) -> dict[str, Any]:
    """Compute Spearman within songs of 5 clips or more, averaged by clips, and list the songs with the largest MAE."""
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


def _slice(predicted: Array, test: ResampledClips, member: Members) -> dict[str, Any]:
    ranks = test.estimate(spearman, predicted, member, NO_ORDER).as_dict()
    return {**_errors(predicted, test, member), "spearman": ranks}


def _errors(predicted: Array, test: ResampledClips, member: Members) -> dict[str, Any]:
    return {
        "clips": len(member),
        "singers": test.singer_count(member),
        "mae": test.estimate(mae, predicted, member).as_dict(),
        "bias": test.estimate(bias, predicted, member).as_dict(),
    }


def _with_reason(figure: dict[str, Any], undefined: str) -> dict[str, Any]:
    return figure if figure["value"] is not None else {**figure, "no_interval": undefined}


def _groups(names: Sequence[str | None]) -> dict[str, Members]:
    """Return the indices of each name, in order of first occurrence, ignoring None.

    >>> {name: member.tolist() for name, member in _groups(["b", None, "a", "b"]).items()}
    {'b': [0, 3], 'a': [2]}
    """
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        if name is not None:
            groups.setdefault(name, []).append(index)
    return {name: np.array(member, dtype=np.intp) for name, member in groups.items()}
