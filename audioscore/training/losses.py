"""What training minimises."""

import torch.nn.functional as F
from torch import Tensor


def pairwise_ranking_loss(better: Tensor, worse: Tensor, *, margin: Tensor | float) -> Tensor:
    """Mean logistic loss of raw outputs that should differ by `margin` or more.

    softplus(margin - (better - worse)): every pair has a gradient, pushing the better clip up and the worse one down.

    Shape: better [P], worse [P], margin [P] or a number -> scalar.
    """
    return F.softplus(margin - (better - worse)).mean()
