"""How much of who sings a network's representation tells, asked of the validation clips."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch

from audioscore.data.clips import Clip
from audioscore.encoders.extract import Features
from audioscore.encoders.stored_features import Chosen
from audioscore.evaluation.speaker_probe import MIN_CLIPS_PER_SINGER, speaker_probe
from audioscore.scoring.network import ScoreNetwork, representations


class Probed(NamedTuple):
    """Balanced accuracy of naming one of so many singers; chance is 1 / singers."""

    accuracy: float
    singers: int


def probe_speakers(
    network: ScoreNetwork, clips: Sequence[Clip], features: Sequence[Features], device: str | torch.device = "cpu"
) -> Probed | None:
    """The independent probe on what the network knows of clips; None where fewer than two singers have two clips."""
    counts = Counter(clip.singer_id for clip in clips)
    places = [
        place
        for place, clip in enumerate(clips)
        if clip.singer_id is not None and counts[clip.singer_id] >= MIN_CLIPS_PER_SINGER
    ]
    singers = [str(clips[place].singer_id) for place in places]
    if len(set(singers)) < 2:
        return None
    known = representations(network, Chosen(features, places), device)
    return Probed(speaker_probe(known, singers), len(set(singers)))
