import math

import pytest
import torch

from audioscore.training.losses import pairwise_ranking_loss
from audioscore.training.pairs import ordered_pairs


def test_the_value_is_the_closed_form() -> None:
    better, worse, margin = [2.0, 0.0, -1.0], [1.0, 0.0, 3.0], [0.5, 1.0, 2.0]
    wanted = sum(math.log1p(math.exp(m - (b - w))) for b, w, m in zip(better, worse, margin, strict=True)) / 3
    loss = pairwise_ranking_loss(torch.tensor(better), torch.tensor(worse), margin=torch.tensor(margin))
    assert loss.item() == pytest.approx(wanted, abs=1e-6)
    assert pairwise_ranking_loss(torch.zeros(4), torch.zeros(4), margin=0.0).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("margin", [0.0, 3.0])
def test_every_pair_pushes_the_better_up_and_the_worse_down(margin: float) -> None:
    better = torch.tensor([-5.0, 0.0, 1.0, 5.0, 9.0], requires_grad=True)
    worse = torch.zeros(5, requires_grad=True)
    pairwise_ranking_loss(better, worse, margin=margin).backward()
    assert better.grad is not None
    assert worse.grad is not None
    assert (better.grad < 0).all(), "a step against the gradient raises every better output"
    assert (worse.grad > 0).all()
    wanted = -1 / (1 + torch.exp(better.detach() - margin)) / 5  # d softplus(m - d) / dd = -sigmoid(m - d)
    torch.testing.assert_close(better.grad, wanted)


def test_a_wrong_order_costs_more_than_a_right_one_and_more_the_larger_the_gap() -> None:
    high, low = torch.tensor([1.0]), torch.tensor([0.0])
    right, wrong = (pairwise_ranking_loss(*pair, margin=0.0).item() for pair in ((high, low), (low, high)))
    assert right < math.log(2) < wrong
    assert pairwise_ranking_loss(high, low, margin=2.0).item() > pairwise_ranking_loss(high, low, margin=1.0).item()


def test_descent_on_free_outputs_ends_in_the_order_of_the_scores_and_near_the_margin() -> None:
    scores = torch.tensor([60.0, 95.0, 80.0, 70.0])
    pairs = ordered_pairs(scores)
    raw = torch.zeros(4, requires_grad=True)
    for _ in range(300):
        loss = pairwise_ranking_loss(raw[pairs.better], raw[pairs.worse], margin=0.1 * pairs.gap)
        (gradient,) = torch.autograd.grad(loss, raw)
        raw = (raw - 0.5 * gradient).detach().requires_grad_()
    assert raw.argsort().tolist() == scores.argsort().tolist()
    assert raw[1] - raw[0] > 3.5
