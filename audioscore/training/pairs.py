"""Which clip of a batch is better than which, and by how much."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Positions in a batch. Shape: better [P], worse [P], gap [P] in points, all gaps above 0."""

    better: Tensor
    worse: Tensor
    gap: Tensor


def ordered_pairs(scores: Tensor) -> Pairs:
    """Every pair of clips whose human scores differ, once, better first; ties teach nothing and are left out.

    Shape: scores [B] -> at most B (B - 1) / 2 pairs.

    >>> pairs = ordered_pairs(torch.tensor([60.0, 90.0, 60.0]))
    >>> pairs.better.tolist(), pairs.worse.tolist(), pairs.gap.tolist()
    ([1, 1], [0, 2], [30.0, 30.0])
    """
    gaps = scores[:, None] - scores[None, :]
    better, worse = torch.nonzero(gaps > 0, as_tuple=True)
    return Pairs(better, worse, gaps[better, worse])
