"""What training minimises.

A batch holds raw outputs `raw` [B], higher better, and what people said of its clips, `scores` [B]. Without `groups`
every score is absolute. With `groups` [B], clips marked ABSOLUTE carry absolute scores; any other number names a
relative group, whose clips carry order ranks instead (higher is better; their distances mean nothing) and are compared
with each other only. Clips that people put level teach nothing about each other.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from audioscore.errors import DataError


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


ABSOLUTE = 0  # the group of clips with absolute scores: the main list


def pairwise_ranking_loss(better: Tensor, worse: Tensor, *, margin: Tensor | float) -> Tensor:
    """Mean logistic loss of raw outputs that should differ by `margin` or more.

    softplus(margin - (better - worse)): every pair has a gradient, pushing the better clip up and the worse one down.

    Shape: better [P], worse [P], margin [P] or a number -> scalar.
    """
    return F.softplus(margin - (better - worse)).mean()


def pairwise_logistic(
    raw: Tensor,
    scores: Tensor,
    *,
    margin_per_point: float,
    order_margin: float = 0.0,
    groups: Tensor | None = None,
) -> Tensor:
    """`pairwise_ranking_loss` over every pair of the batch that people ordered; 0 where they ordered none.

    The margin of two absolute scores grows with their gap, `margin_per_point` a point; that of two clips of a relative
    group is `order_margin`. Every pair weighs the same.

    Shape: raw [B], scores [B], groups [B] -> scalar, float32 or wider. Raises DataError where a score is not finite.
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
        return raw.sum() * 0.0  # keeps the graph: a batch that teaches nothing is a step of zero, not a special case
    return pairwise_ranking_loss(raw[pairs.better], raw[pairs.worse], margin=margin.to(raw))


def list_mle(raw: Tensor, scores: Tensor, groups: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of the batch's order under Plackett and Luce's model, a mean over its choices.

    A choice is a clip taken as the best of itself and all clips that people put below it, in its group. Level clips
    are left out of each other's choices, so that ties teach nothing and their listing does not matter; without ties
    this is ListMLE. A choice costs softplus(logsumexp(worse) - clip): of two clips, the pairwise logistic loss without
    margin. 0 where people ordered no two clips.

    Shape: raw [B], scores [B], groups [B] -> scalar, float32 or wider. Raises DataError where a score is not finite.
    Source: Xia et al. 2008, Listwise Approach to Learning to Rank.
    """
    raw = _checked(raw, scores, groups)
    below = scores[:, None] > scores[None, :]  # (B, B): the row's clip is better than the column's
    if groups is not None:
        below &= groups[:, None] == groups[None, :]
    below = below.to(raw.device)
    choices = below.any(dim=1)
    if not choices.any():
        return raw.sum() * 0.0
    worse = raw.masked_fill(~below[choices], float("-inf")).logsumexp(dim=1)
    # Not logsumexp(all) - raw: of a clip far ahead, that difference, and with it the gradient, would round to 0.
    return F.softplus(worse - raw[choices]).mean()


def smooth_l1(predicted: Tensor, scores: Tensor, *, beta: float, groups: Tensor | None = None) -> Tensor:
    """How far predictions are from absolute scores: quadratic up to `beta` points, linear beyond; a mean over clips.

    `predicted` is in points, as `scores` are: a raw output times the points that one of its units stands for, plus
    where raw 0 lies on the scale. Clips of relative groups are left out; 0 where no other is there.

    Shape: predicted [B], scores [B], groups [B] -> scalar, float32 or wider. Raises DataError where a score is not
    finite.
    Source: Girshick 2015, Fast R-CNN (with beta 1).
    """
    predicted = _checked(predicted, scores, groups)
    wanted = scores.to(predicted)
    if groups is not None:
        absolute = groups.to(predicted.device) == ABSOLUTE
        predicted, wanted = predicted[absolute], wanted[absolute]
    if len(predicted) == 0:
        return predicted.sum()
    return F.smooth_l1_loss(predicted, wanted, beta=beta)


def _checked(raw: Tensor, scores: Tensor, groups: Tensor | None) -> Tensor:
    """`raw` in float32 at least: two near outputs in bfloat16 are one. Refuses what would broadcast or be skipped."""
    shapes = [tuple(part.shape) for part in (raw, scores, groups) if part is not None]
    if raw.ndim != 1 or len(set(shapes)) > 1:
        raise ValueError(f"raw outputs, scores and groups must each be [B]; got {', '.join(map(str, shapes))}")
    if bad := int((~torch.isfinite(scores)).sum()):
        raise DataError(
            f"{bad} of {len(scores)} scores of a batch are not finite, and would be compared with nothing. "
            f"Give clips without scores the ranks of a relative group."
        )
    return raw.to(torch.promote_types(raw.dtype, torch.float32))


@dataclass(frozen=True)
class Objective:
    """A ranking loss, and beside it, by `absolute_weight`, how far scores are off.

    `margin_per_point` raw units stand for a point, and raw 0 for `centre`, the mean score of the training clips.
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
