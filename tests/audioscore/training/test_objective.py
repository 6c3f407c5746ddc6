import pytest
import torch

from audioscore.training.losses import Objective, list_mle, pairwise_logistic, smooth_l1

SCORES = torch.tensor([90.0, 90.0, 72.5, 51.0, 0.0, -1.0, -2.0], dtype=torch.float64)
GROUPS = torch.tensor([0, 0, 0, 0, 3, 3, 5])
RAW = torch.linspace(-1, 1, 7, dtype=torch.float64)


def test_the_absolute_term_is_added_by_its_weight_and_left_out_at_0() -> None:
    ranking = pairwise_logistic(RAW, SCORES, margin_per_point=0.2, order_margin=0.5, groups=GROUPS)
    absolute = smooth_l1(75.0 + RAW / 0.2, SCORES, beta=3.0, groups=GROUPS)
    both = Objective("pairwise", 0.2, 0.5, 0.7, 3.0)(RAW, SCORES, GROUPS, 75.0)
    assert float(both) == pytest.approx(float(ranking + 0.7 * absolute))
    assert float(Objective("pairwise", 0.2, 0.5, 0.0, 3.0)(RAW, SCORES, GROUPS, 0.0)) == pytest.approx(float(ranking))


def test_list_mle_is_chosen_by_name() -> None:
    found = Objective("list_mle", 0.2, 0.5, 0.0, 3.0)(RAW, SCORES, GROUPS, 0.0)
    assert float(found) == float(list_mle(RAW, SCORES, GROUPS))
