"""Training losses.

A batch holds raw outputs `raw` [B] (higher is better) and the human scores of its clips, `scores` [B]. Without `groups`
every score is absolute. With `groups` [B], clips marked ABSOLUTE have absolute scores; any other number names a
relative group, whose clips have order ranks instead (higher is better; distances mean nothing) and are compared only
with each other. Clips with equal scores form no pair.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from audioscore.errors import DataError

ABSOLUTE = 0  # the group of clips with absolute scores: the main list


@dataclass(frozen=True)
class Objective:
    """The training objective: a ranking loss plus `absolute_weight` times a regression loss on absolute scores.

    One score point is `margin_per_point` raw units, and raw 0 is `centre`, the mean score of the training clips.
    """

    loss: str  # pairwise | list_mle
    margin_per_point: float
    order_margin: float
    absolute_weight: float
    absolute_beta: float

    def __call__(self, raw: Tensor, scores: Tensor, groups: Tensor, centre: float) -> Tensor:
        """Shape: raw [B], scores [B], groups [B] -> scalar."""
        if self.loss == "list_mle":
            value = list_mle(raw, scores, groups)
        else:
            value = pairwise_logistic(
                raw, scores, margin_per_point=self.margin_per_point, order_margin=self.order_margin, groups=groups
            )
        if self.absolute_weight > 0:
            predicted = centre + raw / self.margin_per_point
            value = value + self.absolute_weight * smooth_l1(predicted, scores, beta=self.absolute_beta, groups=groups)
        return value


@dataclass(frozen=True)
class Pairs:
    """Positions in a batch. Shape: better [P], worse [P], gap [P] in score points, all gaps above 0."""

    better: Tensor
    worse: Tensor
    gap: Tensor


def ordered_pairs(scores: Tensor) -> Pairs:
    """Return every pair of clips with different scores once, the better clip first.

    Shape: scores [B] -> at most B (B - 1) / 2 pairs.

    >>> pairs = ordered_pairs(torch.tensor([60.0, 90.0, 60.0]))
    >>> pairs.better.tolist(), pairs.worse.tolist(), pairs.gap.tolist()
    ([1, 1], [0, 2], [30.0, 30.0])
    """
    gaps = scores[:, None] - scores[None, :]
    better, worse = torch.nonzero(gaps > 0, as_tuple=True)
    return Pairs(better, worse, gaps[better, worse])


def pairwise_ranking_loss(better: Tensor, worse: Tensor, *, margin: Tensor | float) -> Tensor:
    """Compute the mean logistic loss of raw outputs that should differ by at least `margin`.

    softplus(margin - (better - worse)): every pair has a gradient, which raises the better output and lowers the worse.

    Shape: better [P], worse [P], margin [P] or a number -> scalar.
    """
    return F.softplus(margin - (better - worse)).mean()


def pairwise_logistic(
    raw: Tensor, scores: Tensor, *, margin_per_point: float, order_margin: float = 0.0, groups: Tensor | None = None
) -> Tensor:
    """Compute `pairwise_ranking_loss` over all pairs of the batch with different scores; 0 without such pairs.

    The margin of two absolute scores grows with their gap, by `margin_per_point` per point; within a relative group
    it is `order_margin`. All pairs have the same weight.

    Shape: raw [B], scores [B], groups [B] -> scalar, float32 or wider.
    Raises: DataError if a score is not finite.
    Source: Burges et al. 2005, Learning to Rank using Gradient Descent (RankNet); the margin: Wang et al. 2025, QAMRO.
    """
    raw = _checked(raw, scores, groups)
    pairs = ordered_pairs(scores)
    margin = margin_per_point * pairs.gap
    if groups is not None:
        same = groups[pairs.better] == groups[pairs.worse]
        pairs = Pairs(pairs.better[same], pairs.worse[same], pairs.gap[same])
        margin = torch.where(groups[pairs.better] == ABSOLUTE, margin[same], order_margin)
    if len(pairs.gap) == 0:
        return raw.sum() * 0.0  # keeps the graph, so that a batch without pairs needs no special case
    return pairwise_ranking_loss(raw[pairs.better], raw[pairs.worse], margin=margin.to(raw))


def list_mle(raw: Tensor, scores: Tensor, groups: Tensor | None = None) -> Tensor:
    """Compute the mean negative log-likelihood of the batch's order under the Plackett-Luce model.

    One term per clip: the probability that it is chosen as the best of itself and all clips of its group with lower
    scores. Clips with equal scores are left out of each other's terms, so that ties and their order have no effect;
    without ties this is ListMLE. A term is softplus(logsumexp(worse) - clip): for two clips, the pairwise logistic
    loss without margin. 0 if no two clips have different scores.

    Shape: raw [B], scores [B], groups [B] -> scalar, float32 or wider.
    Raises: DataError if a score is not finite.
    Source: Xia et al. 2008, Listwise Approach to Learning to Rank.
    """
    raw = _checked(raw, scores, groups)
    below = scores[:, None] > scores[None, :]  # (B, B): the row's clip is better than the column's
    if groups is not None:
        below &= groups[:, None] == groups[None, :]
    below = below.to(raw.device)
    chosen = below.any(dim=1)
    if not chosen.any():
        return raw.sum() * 0.0
    worse = raw.masked_fill(~below[chosen], float("-inf")).logsumexp(dim=1)
    # Not logsumexp(all) - raw: for a clip far ahead, that difference and its gradient would round to 0.
    return F.softplus(worse - raw[chosen]).mean()


def smooth_l1(predicted: Tensor, scores: Tensor, *, beta: float, groups: Tensor | None = None) -> Tensor:
    """Compute the mean Huber-style distance from absolute scores: quadratic up to `beta` points, then linear.

    `predicted` is in score points. Clips of relative groups are left out; 0 if no other clip remains.

    Shape: predicted [B], scores [B], groups [B] -> scalar, float32 or wider.
    Raises: DataError if a score is not finite.
    Source: Girshick 2015, Fast R-CNN (with beta 1).
    """
    predicted = _checked(predicted, scores, groups)
    target = scores.to(predicted)
    if groups is not None:
        absolute = groups.to(predicted.device) == ABSOLUTE
        predicted, target = predicted[absolute], target[absolute]
    if len(predicted) == 0:
        return predicted.sum()
    return F.smooth_l1_loss(predicted, target, beta=beta)


def _checked(raw: Tensor, scores: Tensor, groups: Tensor | None) -> Tensor:
    """Check shapes and scores; return `raw` in float32 or wider, since bfloat16 would merge nearby outputs."""
    shapes = [tuple(part.shape) for part in (raw, scores, groups) if part is not None]
    if raw.ndim != 1 or len(set(shapes)) > 1:
        raise ValueError(f"raw outputs, scores and groups must each be [B]; got {', '.join(map(str, shapes))}")
    if bad := int((~torch.isfinite(scores)).sum()):
        raise DataError(
            f"batch: {bad} of {len(scores)} scores are not finite. "
            f"Score these clips, or give them the ranks of a relative group."
        )
    return raw.to(torch.promote_types(raw.dtype, torch.float32))
