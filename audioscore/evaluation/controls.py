"""Controls: predictors that do not use the singing (duration, level, source, ...), which a model has to beat."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from audioscore.data.clips import Clip
from audioscore.errors import UsageError
from audioscore.evaluation.bootstrap import ResampledClips
from audioscore.evaluation.metrics import Array, bias, mae, spearman, within_sources
from audioscore.evaluation.predictions import Prediction
from audioscore.evaluation.slices import NO_ORDER

# control -> attribute of Clip
MEASURES = {"duration": "seconds", "level": "level_db", "SNR": "snr_db", "file size": "bytes"}
SOURCE, CONSTANT = "source", "constant"  # computed here from the train and val scores
NOT_IN_POINTS = "not on the score scale: only its order counts"
ONE_VALUE = "the same value for all clips, so there is no order"
ONE_VALUE_A_SOURCE = "the same value within each source, so there is no order"


def measured_controls(clips: Iterable[Clip]) -> dict[str, dict[str, float]]:
    """Return seconds, level and SNR in dB, and bytes of each recording, by control and then sha256.

    Clips without a measurement or sha256 are omitted.

    >>> measured_controls([Clip("a.wav", sha256="00", seconds=12.5)])
    {'duration': {'00': 12.5}, 'level': {}, 'SNR': {}, 'file size': {}}
    """
    hashed = [clip for clip in clips if clip.sha256 is not None]
    return {
        name: {str(clip.sha256): float(getattr(clip, field)) for clip in hashed if getattr(clip, field) is not None}
        for name, field in MEASURES.items()
    }


def source_means(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Predict each test clip by the mean score of its source in train and val; keyed by sha256.

    A source that occurs only in the test split gets the mean of all train and val clips. Empty without such rows.
    """
    elsewhere = _other_clips(predictions)
    if not elsewhere:
        return {}
    by_source: dict[str | None, list[float]] = {}
    for row in elsewhere:
        by_source.setdefault(row.source, []).append(row.human)
    overall = fmean(row.human for row in elsewhere)
    means = {source: fmean(scores) for source, scores in by_source.items()}
    return {row.sha256: means.get(row.source, overall) for row in predictions if row.split == "test"}


def constant_mean(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Predict each test clip by the mean score of all train clips (val without train); keyed by sha256.

    Empty without train and val rows.
    """
    elsewhere = _other_clips(predictions)
    learned = [row for row in elsewhere if row.split == "train"] or elsewhere
    if not learned:
        return {}
    mean = fmean(row.human for row in learned)
    return {row.sha256: mean for row in predictions if row.split == "test"}


def evaluate_controls(
    measured: Mapping[str, Mapping[str, float]], predictions: Sequence[Prediction], test: ResampledClips
) -> tuple[dict[str, Any], list[str]]:
    """Compute the metrics of all controls, `source` and `constant` included, and the warnings about them.

    Args:
        measured: control -> sha256 -> value.

    Raises: UsageError where a measured control is named `source` or `constant`.
    """
    if reserved := [name for name in (SOURCE, CONSTANT) if name in measured]:
        raise UsageError(f"Control {reserved[0]}: this name is reserved. Rename the control.")
    warnings: list[str] = []
    found = {name: _control(name, values, False, test, warnings) for name, values in measured.items()}
    scored = {SOURCE: source_means(predictions), CONSTANT: constant_mean(predictions)}
    if scored[SOURCE]:
        found |= {name: _control(name, values, True, test, warnings) for name, values in scored.items()}
    else:
        warnings.append("No train or val predictions: the controls source and constant are missing.")
    return found, warnings


def _control(
    name: str, values: Mapping[str, float], in_points: bool, test: ResampledClips, warnings: list[str]
) -> dict[str, Any]:
    """Compute the metrics of one control over the test clips that have a value."""
    predicted = np.array([values.get(sha256, math.nan) for sha256, _ in test.keys])
    defined = np.flatnonzero(np.isfinite(predicted))
    if len(defined) < len(test.keys):
        warnings.append(f"Control {name} has a value for {len(defined)} of {len(test.keys)} test clips.")
    inside = within_sources([test.sources[index] for index in defined])
    within_undefined = ONE_VALUE_A_SOURCE if name == SOURCE else None
    return {
        "clips": len(defined),
        "spearman": test.estimate(spearman, predicted, defined, _no_order(predicted[defined])).as_dict(),
        "spearman_within_source": test.estimate(
            inside, predicted, defined, within_undefined or _no_order(predicted[defined])
        ).as_dict(),
        **_errors(predicted, defined, in_points, test),
    }


def _no_order(predicted: Array) -> str:
    """Return the reason for an undefined Spearman of these values."""
    if not len(predicted):
        return "no test clip has a value"
    return ONE_VALUE if len(np.unique(predicted)) == 1 else NO_ORDER


def _errors(predicted: Array, defined: Any, in_points: bool, test: ResampledClips) -> dict[str, Any]:
    if not in_points:
        none = {"value": None, "lo": None, "hi": None, "no_interval": NOT_IN_POINTS}
        return {"mae": none, "bias": dict(none)}
    return {
        name: test.estimate(metric, predicted, defined).as_dict() for name, metric in (("mae", mae), ("bias", bias))
    }


def _other_clips(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Return one row for each train and val clip, of any run, ordered by clip."""
    return [row for _, row in sorted({row.clip: row for row in predictions if row.split != "test"}.items())]
