"""From what was heard of recordings to their scores."""

import math
from collections.abc import Sequence

import numpy as np

from audioscore.encoders.extract import Features
from audioscore.errors import ModelError
from audioscore.scoring.calibration import Calibration
from audioscore.scoring.explain.timeline import moments
from audioscore.scoring.input import DecodedClip
from audioscore.scoring.network import ScoreNetwork, raw_outputs
from audioscore.scoring.results import Answer, ScoredClip


def judge(
    network: ScoreNetwork,
    calibration: Calibration,
    clips: Sequence[DecodedClip],
    features: Sequence[Features],
    *,
    device: str,
    timeline: bool = False,
) -> list[Answer]:
    """An answer a clip, in order; where the network gives no number, a ModelError stands in its place."""
    raw = raw_outputs(network, features, device)
    values = calibration.apply(np.nan_to_num(raw))
    lows, highs = calibration.interval(values)
    answers: list[Answer] = []
    for clip, feature, own, value, low, high in zip(clips, features, raw, values, lows, highs, strict=True):
        if not math.isfinite(own):
            answers.append(ModelError(f"{clip.file}: the model gives {own} for it. Its weights are of no use."))
            continue
        parts = moments(network, calibration, feature, clip.seconds, device) if timeline else None
        answers.append(ScoredClip(float(value), (float(low), float(high)), float(own), clip.seconds, parts))
    return answers
