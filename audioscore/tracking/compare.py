"""Any scorers on the same clips: their predictions as one table, and the difference between two of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from audioscore.encoders.store import FeatureStore
from audioscore.errors import DataError
from audioscore.evaluation.bootstrap import cluster_counts, estimate, paired_difference, singer_clusters
from audioscore.evaluation.metrics import Metric, pairwise_accuracy, spearman, within_sources
from audioscore.evaluation.predict import prediction_rows
from audioscore.evaluation.predictions import Prediction
from audioscore.scoring.checkpoint import read_description
from audioscore.tracking.judging_data import JudgingData
from audioscore.tracking.rescore import rescore, unseen

if TYPE_CHECKING:
    from audioscore.config import EvaluationSection


def predict_scorers(
    scorers: Mapping[str, Path], judged_on: JudgingData, split: str, store: FeatureStore
) -> tuple[list[Prediction], int]:
    """A row for each scorer, in the column `plan`, and clip of a split that none of them has seen; how many were left
    out because one had.

    Raises DataError where fewer than 2 clips, or clips of one singer alone, are left.
    """
    clips = judged_on.clips(split)
    fresh = unseen([clip for _, clip in clips], scorers.values())
    singers = len(set(singer_clusters([clip.singer_id for clip in fresh])))
    if len(fresh) < 2 or singers < 2:
        raise DataError(
            f"{judged_on.index}: of {len(clips)} scored clips in split {split}, {len(clips) - len(fresh)} were trained "
            f"on by a model, which leaves {len(fresh)} of {singers} singers, too few to judge by. Give other data, "
            "with singer_id, or another --split."
        )
    split_of = {(clip.sha256, clip.audio_file): name for name, clip in clips}
    splits = [split_of[clip.sha256, clip.audio_file] for clip in fresh]
    rows = [
        row
        for name, folder in scorers.items()
        for row in prediction_rows(
            name, read_description(folder), splits, fresh, rescore(folder, fresh, judged_on.data, store)
        )
    ]
    return rows, len(clips) - len(fresh)


def compare_predictions(
    rows: Sequence[Prediction], first: str, second: str, settings: "EvaluationSection"
) -> dict[str, Any]:
    """Both models' figures and second minus first, each with its interval over singers, from raw outputs.

    Raises DataError where all clips are of one singer, so that nothing has an interval.
    """
    of_first = [row for row in rows if row.plan == first]
    raw = {name: [row.raw for row in rows if row.plan == name] for name in (first, second)}
    human = [row.human for row in of_first]
    clusters = singer_clusters([row.singer_id for row in of_first])
    counts = cluster_counts(clusters, settings.resamples, settings.seed)
    metrics: dict[str, Metric] = {
        "spearman": spearman,
        "spearman_within_source": within_sources([row.source for row in of_first]),
        "pairwise_accuracy": pairwise_accuracy,
    }
    confidence = settings.confidence
    return {
        "clips": len(of_first),
        "singers": len(np.unique(clusters)),
        "confidence": confidence,
        "models": {
            name: {
                key: estimate(metric, human, raw[name], counts, confidence).as_dict() for key, metric in metrics.items()
            }
            for name in (first, second)
        },
        "difference": {
            key: paired_difference(metric, human, raw[second], raw[first], counts, confidence).as_dict("delta")
            for key, metric in metrics.items()
        },
    }
