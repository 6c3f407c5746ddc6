"""Unlearning who sings: a discriminator reads the speaker from the scorer's features, and they learn to hide it.

The sign is turned in one place, `GradientReversal`: the loss is added to the others as it is, the discriminator
descends it, and what made the features climbs it. Both are bounded, so that hiding can win no more than being at a
right angle to the speaker: a distance could be driven to infinity.

Source: Ganin et al. 2016, Domain-Adversarial Training of Neural Networks, arXiv 1505.07818.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioscore.data.clips import Clip
from audioscore.encoders.features import Features
from audioscore.encoders.stored_features import Chosen
from audioscore.errors import DataError
from audioscore.evaluation.linear_probe import MIN_CLIPS_PER_SINGER, speaker_probe
from audioscore.scoring.fusion import Standardize
from audioscore.scoring.network import ScoreNetwork, representations

STEEPNESS = 10.0  # of the ramp; Ganin et al.'s gamma


class GradientReversal(torch.autograd.Function):
    """Identity forward; backward, the gradient times -weight. The one change of sign in the adversary."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * -ctx.weight, None


def reverse_gradient(features: Tensor, weight: float) -> Tensor:
    """The features themselves, through which a loss's gradient comes back times -weight.

    Shape: any -> the same. Raises ValueError for a negative weight, which would turn the sign twice, or one that is
    not finite.
    """
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"the reversal's weight must be 0 or more; got {weight}")
    reversed_: Tensor = GradientReversal.apply(features, float(weight))
    return reversed_


def ramp(step: int, steps: int) -> float:
    """Share of the adversary's full weight at a step: from 0, so that noise of an untrained discriminator teaches
    nothing, towards 1.

    2 / (1 + exp(-10 p)) - 1 at the share p = step / steps of training; beyond its end, as at its end.

    >>> [round(ramp(step, 100), 3) for step in (0, 10, 50, 100)]
    [0.0, 0.462, 0.987, 1.0]
    """
    if steps < 1 or step < 0:
        raise ValueError(f"a ramp needs a step from 0 on and 1 step or more in all; got step {step} of {steps}")
    return math.tanh(STEEPNESS / 2 * min(1.0, step / steps))  # the same, without a large exponential


class SpeakerAdversary(nn.Module):
    """Predicts the speaker's embedding from pooled features, which learn to leave no trace of it.

    Features are read as they are: after a LayerNorm, their mean over channels and their length would be hidden from
    the discriminator and free to carry the speaker. Targets are standardised by the training clips' statistics
    (`fit_targets`): what all speakers' embeddings have in common could be predicted from nothing.
    """

    def __init__(self, dim: int, hidden: int, target_dim: int) -> None:
        super().__init__()
        self.targets = Standardize(target_dim)
        self.discriminator = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, target_dim))

    def fit_targets(self, targets: Tensor) -> None:
        """Take the statistics of the training clips' speakers, once, before the first step.

        Shape: targets [N, target_dim]. Raises DataError where one is not finite, ValueError for another shape.
        """
        _check_targets(targets, self.targets)
        self.targets.fit(targets)

    def forward(self, features: Tensor, weight: float) -> Tensor:
        """Predicted standardised targets; the features' gradient comes back times -weight.

        Shape: features [B, dim] -> [B, target_dim].
        """
        predicted: Tensor = self.discriminator(reverse_gradient(features, weight))
        return predicted


def adversary_loss(adversary: SpeakerAdversary, features: Tensor, targets: Tensor, *, weight: float) -> Tensor:
    """How far the discriminator is from the speakers: mean of 1 - cosine, in [0, 2]; 1 is what knowing nothing gives.

    Added to the ranking loss as it is: `weight`, ramped, scales only what comes back to the features, and the
    discriminator always learns at full strength. No gradient reaches the targets.

    Shape: features [B, dim], targets [B, target_dim] -> scalar, float32 or wider. Raises DataError where a target is
    not finite.
    """
    _check_targets(targets, adversary.targets)
    if features.ndim != 2 or len(features) != len(targets):
        raise ValueError(f"features must be [B, dim] of {len(targets)} clips; got {list(features.shape)}")
    predicted = adversary(features, weight)
    predicted = predicted.to(torch.promote_types(predicted.dtype, torch.float32))
    wanted = adversary.targets(targets.detach().to(predicted))
    return (1 - F.cosine_similarity(predicted, wanted, dim=1)).mean()


def _check_targets(targets: Tensor, statistics: Standardize) -> None:
    """Refuse what would broadcast, or make every weight NaN."""
    dim = len(statistics.mean)
    if targets.ndim != 2 or targets.shape[1] != dim or len(targets) == 0:
        raise ValueError(f"speaker targets must be [B, {dim}] of one clip or more; got {list(targets.shape)}")
    if bad := int((~torch.isfinite(targets).all(dim=1)).sum()):
        raise DataError(f"{bad} of {len(targets)} speaker targets are not finite. Leave these clips out.")


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
