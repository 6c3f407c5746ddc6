"""What can be guessed of a score without listening to the singing: the controls that a model has to beat."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from audioscore.data.clips import Clip
from audioscore.errors import UsageError
from audioscore.evaluation.estimates import HeldOut
from audioscore.evaluation.gate.slices import NO_ORDER
from audioscore.evaluation.metrics import Array, bias, mae, spearman, within_sources
from audioscore.evaluation.predictions import Prediction

# control -> field of a clip
MEASURES = {"duration": "seconds", "level": "level_db", "SNR": "snr_db", "file size": "bytes"}
SOURCE, CONSTANT = "source", "constant"  # computed here, from the scores of other splits
NOT_IN_POINTS = "its values are no scores: it is judged by the order it gives"
ONE_VALUE = "it says the same of every clip, which is no order"
ONE_VALUE_A_SOURCE = "it says the same of every clip of a source, which is no order"


def measured_controls(clips: Iterable[Clip]) -> dict[str, dict[str, float]]:
    """Seconds, level and SNR in dB, and bytes of each recording, by control name and then sha256.

    A clip that was not measured, or has no sha256, has no value; the evaluation counts those that have one.

    >>> measured_controls([Clip("a.wav", sha256="00", seconds=12.5)])
    {'duration': {'00': 12.5}, 'level': {}, 'SNR': {}, 'file size': {}}
    """
    heard = [clip for clip in clips if clip.sha256 is not None]
    return {
        name: {str(clip.sha256): float(getattr(clip, field)) for clip in heard if getattr(clip, field) is not None}
        for name, field in MEASURES.items()
    }


def source_means(predictions: Sequence[Prediction]) -> dict[str, float]:
    """What the recording domain alone predicts of each test clip: the mean score of its source outside the test split.

    Keyed by sha256. Means are over the train and val rows, each clip once; a source that only the test split has gets
    the mean over all of them. Empty where there are no train or val rows.
    """
    elsewhere = _other_clips(predictions)
    if not elsewhere:
        return {}
    by_source: dict[str | None, list[float]] = {}
    for row in elsewhere:
        by_source.setdefault(row.source, []).append(row.human)
    overall = _mean(row.human for row in elsewhere)
    means = {source: _mean(scores) for source, scores in by_source.items()}
    return {row.sha256: means.get(row.source, overall) for row in predictions if row.split == "test"}


def constant_mean(predictions: Sequence[Prediction]) -> dict[str, float]:
    """One and the same guess for each test clip, by sha256: the mean score of the train rows, each clip once.

    The val rows stand in where there are no train rows; empty where there are neither.
    """
    elsewhere = _other_clips(predictions)
    learned = [row for row in elsewhere if row.split == "train"] or elsewhere
    if not learned:
        return {}
    mean = _mean(row.human for row in learned)
    return {row.sha256: mean for row in predictions if row.split == "test"}


def control_figures(
    measured: Mapping[str, Mapping[str, float]], predictions: Sequence[Prediction], test: HeldOut
) -> tuple[dict[str, Any], list[str]]:
    """Figures of every control, those computed here included, and what a reader must know of them.

    `measured` holds, for each control, a value by sha256. Raises UsageError where one takes the name of ours.
    """
    if taken := [name for name in (SOURCE, CONSTANT) if name in measured]:
        raise UsageError(f"A control may not be named {taken[0]}: that one is computed here. Rename it.")
    warnings: list[str] = []
    found = {name: _control(name, values, False, test, warnings) for name, values in measured.items()}
    scored = {SOURCE: source_means(predictions), CONSTANT: constant_mean(predictions)}
    if scored[SOURCE]:
        found |= {name: _control(name, values, True, test, warnings) for name, values in scored.items()}
    else:
        warnings.append(
            "No train or val predictions were given, so the source-only and constant controls are left out."
        )
    return found, warnings


def _control(
    name: str, values: Mapping[str, float], in_points: bool, test: HeldOut, warnings: list[str]
) -> dict[str, Any]:
    """Figures of something that did not listen, over the test clips where it is known."""
    predicted = np.array([values.get(sha256, math.nan) for sha256, _ in test.keys])
    known = np.flatnonzero(np.isfinite(predicted))
    if len(known) < len(test.keys):
        warnings.append(f"Control {name} is known for {len(known)} of {len(test.keys)} test clips.")
    inside = within_sources([test.sources[index] for index in known])
    within_undefined = ONE_VALUE_A_SOURCE if name == SOURCE else None
    return {
        "clips": len(known),
        "spearman": test.estimate(spearman, predicted, known, _no_order(predicted[known])).as_dict(),
        "spearman_within_source": test.estimate(
            inside, predicted, known, within_undefined or _no_order(predicted[known])
        ).as_dict(),
        **_errors(predicted, known, in_points, test),
    }


def _no_order(predicted: Array) -> str:
    """Why these values have no Spearman, if they have none."""
    if not len(predicted):
        return "it is known for no test clip"
    return ONE_VALUE if len(np.unique(predicted)) == 1 else NO_ORDER


def _errors(predicted: Array, known: Any, in_points: bool, test: HeldOut) -> dict[str, Any]:
    if not in_points:
        none = {"value": None, "lo": None, "hi": None, "no_interval": NOT_IN_POINTS}
        return {"mae": none, "bias": dict(none)}
    return {name: test.estimate(metric, predicted, known).as_dict() for name, metric in (("mae", mae), ("bias", bias))}


def _other_clips(predictions: Sequence[Prediction]) -> list[Prediction]:
    """A row for each clip outside the test split, whichever run it is of, in the order of the clips."""
    return [row for _, row in sorted({row.clip: row for row in predictions if row.split != "test"}.items())]


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)
