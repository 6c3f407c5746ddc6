"""The loss of a batch, as the configuration asks for it."""

from dataclasses import dataclass

from torch import Tensor

from audioscore.training.losses import list_mle, pairwise_logistic, smooth_l1


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
