"""Clips to learn from or to choose by, in an order that only their content decides."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from audioscore.data.clips import Clip
from audioscore.encoders.features import Features
from audioscore.errors import ModelError, shorten
from audioscore.scoring.fusion import frame_mask
from audioscore.scoring.network import ScoreNetwork, batches
from audioscore.training.losses import ABSOLUTE


@dataclass(frozen=True)
class Entry:
    """A clip with what is to be learned of it: a score, or a rank (higher is better) in a relative group."""

    clip: Clip
    score: float
    group: int = ABSOLUTE


@dataclass(frozen=True)
class Fold:
    """N clips. `scores` are human scores, of relative groups ranks; `keys` identify recordings by content (sha256),
    `names` for people.

    `targets` [N, T] are the speakers that an adversary is to guess.
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


def entries_of(clips: Iterable[Clip], relative: Iterable[Sequence[Clip]] = ()) -> list[Entry]:
    """Scored clips, and relative groups of clips, each from the best to the worst, sorted by content.

    The rows of a labels table may come in any order: training must not see it.
    """
    entries = [Entry(clip, float(clip.score)) for clip in clips if clip.score is not None]
    ordered = sorted(([_content(clip) for clip in group], group) for group in map(list, relative))
    for number, (_, group) in enumerate(ordered, start=ABSOLUTE + 1):
        entries += [Entry(clip, float(-place), number) for place, clip in enumerate(group)]
    return sorted(entries, key=lambda entry: (_content(entry.clip), entry.group, entry.score))


def _content(clip: Clip) -> tuple[str, str]:
    return str(clip.sha256), clip.audio_file


def fit_statistics(
    network: ScoreNetwork,
    features: Sequence[Features],
    device: str | torch.device = "cpu",
    names: Sequence[str] = (),
) -> None:
    """Give each branch's normalisation the statistics of the training clips, every real frame counted once.

    They are of what the head is given: of the untrained network's frames, where MuQ is tuned. Memory is one batch.
    Raises ModelError where a clip's are not finite, by its name where `names` has them: it would spoil all others'.
    """
    norms = getattr(getattr(network.head, "fusion", None), "norms", {})
    sums = {name: torch.zeros(3, norm.mean.numel(), dtype=torch.float64) for name, norm in norms.items()}
    if not sums:
        return
    network.eval()
    with torch.inference_mode():
        done = 0
        for batch in batches(network, features):
            heard = network.hear(batch.to(device))
            own = range(done, done + len(heard.lengths))
            done = own.stop
            if "muq" in sums and heard.frames is not None:
                mask, frames = frame_mask(heard.lengths, heard.frames.shape[1]), heard.frames.cpu()
                _check_finite(frames.masked_fill(~mask[..., None], 0.0).flatten(1), own, names)
                _add(sums["muq"], frames[mask])
            if "campplus" in sums and heard.embedding is not None:
                _check_finite(heard.embedding, own, names)
                _add(sums["campplus"], heard.embedding.cpu())
    for name, (count, mean, squares) in sums.items():
        norms[name].set(mean.float(), (squares / count).sqrt().float())


def _check_finite(values: Tensor, places: Sequence[int], names: Sequence[str]) -> None:
    """Shape: values [B, D] of B places in the fold."""
    finite = values.isfinite().all(dim=1).tolist()
    if wrong := [place for place, fine in zip(places, finite, strict=True) if not fine]:
        told = [names[place] if names else f"clip {place}" for place in wrong]
        raise ModelError(
            f"the features of {shorten(told)} are not finite. Look at these recordings, and at the encoder they were "
            f"extracted with."
        )


def _add(sums: Tensor, values: Tensor) -> None:
    """Count, mean and sum of squared deviations, brought up to date.

    Shape: sums [3, D], values [N, D]. Source: Chan et al. 1983, Algorithms for Computing the Sample Variance.
    """
    values = values.double()
    count, mean = len(values), values.mean(dim=0)
    before = float(sums[0, 0])
    shift = mean - sums[1]
    sums[0] += count
    sums[2] += (values - mean).square().sum(dim=0) + shift.square() * before * count / (before + count)
    sums[1] += shift * count / (before + count)
