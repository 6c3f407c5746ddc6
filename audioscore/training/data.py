"""Clips for training and validation, in an order that depends only on their content."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from audioscore.data.clips import Clip
from audioscore.encoders.features import Features
from audioscore.encoders.stored_features import FeatureSubset
from audioscore.errors import ModelError, shorten
from audioscore.scoring.fusion import frame_mask
from audioscore.scoring.network import ScoreNetwork, batches
from audioscore.training.losses import ABSOLUTE


@dataclass(frozen=True)
class TrainingClip:
    """A clip with its training target: a score, or a rank (higher is better) in a relative group."""

    clip: Clip
    score: float
    group: int = ABSOLUTE


@dataclass(frozen=True)
class TrainingSplit:
    """N clips with their features and training targets.

    Args:
        scores: human scores, or ranks in relative groups.
        keys: content hashes (SHA-256) of the recordings.
        targets: speaker embeddings [N, T] that an adversary predicts.
        names: file names for messages; the keys by default.
    """

    features: Sequence[Features]
    scores: Sequence[float]
    sources: Sequence[str]
    keys: Sequence[str]
    groups: Sequence[int] = field(default=())
    targets: Tensor | None = None
    names: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        if not self.names:
            object.__setattr__(self, "names", tuple(self.keys))
        if not self.groups:
            object.__setattr__(self, "groups", (ABSOLUTE,) * len(self.scores))

    def part(self, rows: Sequence[int]) -> "TrainingSplit":
        """Return the clips of some rows; their features are read on access."""
        return TrainingSplit(
            FeatureSubset(self.features, rows),
            [self.scores[row] for row in rows],
            [self.sources[row] for row in rows],
            [self.keys[row] for row in rows],
            [self.groups[row] for row in rows],
            None if self.targets is None else self.targets[list(rows)],
            [self.names[row] for row in rows],
        )


def training_clips(clips: Iterable[Clip], relative: Iterable[Sequence[Clip]] = ()) -> list[TrainingClip]:
    """Combine scored clips and relative groups of clips (each from best to worst), sorted by content.

    The rows of a labels table can be in any order, and training must not depend on it.
    """
    found = [TrainingClip(clip, float(clip.score)) for clip in clips if clip.score is not None]
    ordered = sorted(([_content(clip) for clip in group], group) for group in map(list, relative))
    for number, (_, group) in enumerate(ordered, start=ABSOLUTE + 1):
        found += [TrainingClip(clip, float(-rank), number) for rank, clip in enumerate(group)]
    return sorted(found, key=lambda one: (_content(one.clip), one.group, one.score))


def _content(clip: Clip) -> tuple[str, str]:
    return str(clip.sha256), clip.audio_file


def fit_statistics(
    network: ScoreNetwork, features: Sequence[Features], device: str | torch.device = "cpu", names: Sequence[str] = ()
) -> None:
    """Set the normalisation of each branch to the mean and deviation over all frames of the training clips.

    If MuQ is tuned, they are statistics of the untuned network's output. One batch at a time is in memory.

    Raises: ModelError, naming the clip, if its features are not finite: they would make all statistics NaN.
    """
    norms = getattr(getattr(network.head, "fusion", None), "norms", {})
    sums = {name: torch.zeros(3, norm.mean.numel(), dtype=torch.float64) for name, norm in norms.items()}
    if not sums:
        return
    network.eval()
    with torch.inference_mode():
        done = 0
        for batch in batches(network, features):
            encoded = network.encode(batch.to(device))
            rows = range(done, done + len(encoded.lengths))
            done = rows.stop
            if "muq" in sums and encoded.frames is not None:
                mask, frames = frame_mask(encoded.lengths, encoded.frames.shape[1]), encoded.frames.cpu()
                _check_finite(frames.masked_fill(~mask[..., None], 0.0).flatten(1), rows, names)
                _add(sums["muq"], frames[mask])
            if "campplus" in sums and encoded.embedding is not None:
                _check_finite(encoded.embedding, rows, names)
                _add(sums["campplus"], encoded.embedding.cpu())
    for name, (count, mean, squares) in sums.items():
        norms[name].set(mean.float(), (squares / count).sqrt().float())


def _check_finite(values: Tensor, rows: Sequence[int], names: Sequence[str]) -> None:
    """Shape: values [B, D] of B rows of the split."""
    finite = values.isfinite().all(dim=1).tolist()
    if wrong := [row for row, fine in zip(rows, finite, strict=True) if not fine]:
        clips = [names[row] if names else f"clip {row}" for row in wrong]
        raise ModelError(
            f"features of {shorten(clips)}: not finite. Check these recordings, and the encoder that was used."
        )


def _add(sums: Tensor, values: Tensor) -> None:
    """Update count, mean and sum of squared deviations.

    Shape: sums [3, D], values [N, D]. Source: Chan et al. 1983, Algorithms for Computing the Sample Variance.
    """
    values = values.double()
    count, mean = len(values), values.mean(dim=0)
    before = float(sums[0, 0])
    shift = mean - sums[1]
    sums[0] += count
    sums[2] += (values - mean).square().sum(dim=0) + shift.square() * before * count / (before + count)
    sums[1] += shift * count / (before + count)
