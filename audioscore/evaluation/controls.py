"""What can be guessed of a score without listening to the singing: the controls that a model has to beat."""

import math
from collections.abc import Iterable, Sequence

from audioscore.data.clips import Clip
from audioscore.evaluation.predictions import Prediction

MEASURES = {"duration": "seconds", "level": "level_db", "file size": "bytes"}  # control -> field of a clip


def measured_controls(clips: Iterable[Clip]) -> dict[str, dict[str, float]]:
    """Seconds, level in dB and bytes of each recording, by control name and then sha256.

    A clip that was not measured, or has no sha256, has no value; the evaluation counts those that have one.

    >>> measured_controls([Clip("a.wav", sha256="00", seconds=12.5)])
    {'duration': {'00': 12.5}, 'level': {}, 'file size': {}}
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
    elsewhere = {row.clip: row for row in predictions if row.split != "test"}
    if not elsewhere:
        return {}
    by_source: dict[str | None, list[float]] = {}
    for _, row in sorted(elsewhere.items()):
        by_source.setdefault(row.source, []).append(row.human)
    overall = math.fsum(score for scores in by_source.values() for score in scores) / len(elsewhere)
    means = {source: math.fsum(scores) / len(scores) for source, scores in by_source.items()}
    return {row.sha256: means.get(row.source, overall) for row in predictions if row.split == "test"}
