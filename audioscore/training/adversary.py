"""Speaker adversary: a discriminator predicts the speaker from the network's features, which learn to prevent it.

The sign is reversed in one class, `GradientReversal`: the adversary's loss is added to the others as it is, the
discriminator minimises it, and the features maximise it. The loss is a cosine, which is bounded: the best that the
features can do is to be at a right angle to the speaker, where a distance could grow without limit.

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
from audioscore.encoders.stored_features import FeatureSubset
from audioscore.errors import DataError
from audioscore.evaluation.linear_probe import MIN_CLIPS_PER_SINGER, speaker_probe
from audioscore.scoring.fusion import Standardize
from audioscore.scoring.network import ScoreNetwork, representations

STEEPNESS = 10.0  # of the ramp; gamma in Ganin et al.


class GradientReversal(torch.autograd.Function):
    """Identity in the forward pass; the backward pass multiplies the gradient by -weight."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * -ctx.weight, None


def reverse_gradient(features: Tensor, weight: float) -> Tensor:
    """Return the features unchanged; the gradient that comes back is multiplied by -weight.

    Shape: any -> the same.
    Raises: ValueError if `weight` is negative, which would reverse the sign twice, or not finite.
    """
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"the weight of a gradient reversal must be 0 or more; got {weight}")
    reversed_: Tensor = GradientReversal.apply(features, float(weight))
    return reversed_


def ramp(step: int, steps: int) -> float:
    """Compute the adversary's share of its weight: 2 / (1 + exp(-10 step / steps)) - 1, constant after the end.

    It starts at 0, because the gradient of an untrained discriminator is noise.

    >>> [round(ramp(step, 100), 3) for step in (0, 10, 50, 100)]
    [0.0, 0.462, 0.987, 1.0]
    """
    if steps < 1 or step < 0:
        raise ValueError(f"a ramp needs a step of 0 or more, of at least 1 step in all; got step {step} of {steps}")
    return math.tanh(STEEPNESS / 2 * min(1.0, step / steps))  # the same value, without a large exponential


class SpeakerAdversary(nn.Module):
    """Predicts the speaker embedding from pooled features, which learn to contain no trace of it.

    There is no LayerNorm on the features: it would hide their mean and their norm from the discriminator, and these
    could then carry the speaker. The targets are standardised by the statistics of the training clips (`fit_targets`),
    because the mean embedding of all speakers could be predicted without any information.
    """

    def __init__(self, dim: int, hidden: int, target_dim: int) -> None:
        super().__init__()
        self.targets = Standardize(target_dim)
        self.discriminator = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, target_dim))

    def fit_targets(self, targets: Tensor) -> None:
        """Set the statistics of the training clips' speakers; called once, before the first step.

        Shape: targets [N, target_dim].
        Raises: DataError if a target is not finite, ValueError for another shape.
        """
        _check_targets(targets, self.targets)
        self.targets.fit(targets)

    def forward(self, features: Tensor, weight: float) -> Tensor:
        """Predict standardised targets; the gradient of the features is multiplied by -weight.

        Shape: features [B, dim] -> [B, target_dim].
        """
        predicted: Tensor = self.discriminator(reverse_gradient(features, weight))
        return predicted


def adversary_loss(adversary: SpeakerAdversary, features: Tensor, targets: Tensor, *, weight: float) -> Tensor:
    """Compute the mean of 1 - cosine of predicted and true speakers, in [0, 2]; uninformative predictions give 1.

    Added to the ranking loss as it is: `weight`, after the ramp, scales only the gradient of the features, and the
    discriminator always learns at full strength. The targets get no gradient.

    Shape: features [B, dim], targets [B, target_dim] -> scalar, float32 or wider.
    Raises: DataError if a target is not finite.
    """
    _check_targets(targets, adversary.targets)
    if features.ndim != 2 or len(features) != len(targets):
        raise ValueError(f"features must be [B, dim] of {len(targets)} clips; got {list(features.shape)}")
    predicted = adversary(features, weight)
    predicted = predicted.to(torch.promote_types(predicted.dtype, torch.float32))
    target = adversary.targets(targets.detach().to(predicted))
    return (1 - F.cosine_similarity(predicted, target, dim=1)).mean()


def _check_targets(targets: Tensor, statistics: Standardize) -> None:
    """Refuse shapes that would broadcast and values that would make every weight NaN."""
    dim = len(statistics.mean)
    if targets.ndim != 2 or targets.shape[1] != dim or len(targets) == 0:
        raise ValueError(f"speaker targets must be [B, {dim}] of at least one clip; got {list(targets.shape)}")
    if bad := int((~torch.isfinite(targets).all(dim=1)).sum()):
        raise DataError(f"speaker targets: {bad} of {len(targets)} are not finite. Leave these clips out.")


class SingerProbeResult(NamedTuple):
    """Balanced accuracy of a linear singer probe over this many singers; chance is 1 / singers."""

    accuracy: float
    singers: int


def run_singer_probe(
    network: ScoreNetwork, clips: Sequence[Clip], features: Sequence[Features], device: str | torch.device = "cpu"
) -> SingerProbeResult | None:
    """Measure how well a linear probe identifies the singer from the network's representation of the clips.

    It is independent of the adversary's discriminator, and shows whether the adversary worked.

    Returns: None if fewer than two singers have two clips each.
    """
    counts = Counter(clip.singer_id for clip in clips)
    rows = [
        row
        for row, clip in enumerate(clips)
        if clip.singer_id is not None and counts[clip.singer_id] >= MIN_CLIPS_PER_SINGER
    ]
    singers = [str(clips[row].singer_id) for row in rows]
    if len(set(singers)) < 2:
        return None
    encoded = representations(network, FeatureSubset(features, rows), device)
    return SingerProbeResult(speaker_probe(encoded, singers), len(set(singers)))
