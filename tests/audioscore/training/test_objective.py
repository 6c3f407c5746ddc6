import pytest
import torch
from torch.autograd.functional import hessian

from audioscore.training.losses import list_mle, pairwise_logistic, smooth_l1
from audioscore.training.objective import Objective

SCORES = torch.tensor([90.0, 90.0, 72.5, 51.0, 0.0, -1.0, -2.0], dtype=torch.float64)
GROUPS = torch.tensor([0, 0, 0, 0, 3, 3, 5])
RAW = torch.linspace(-1, 1, 7, dtype=torch.float64)


def test_every_pair_that_people_ordered_pulls_at_both_clips_and_no_other_does() -> None:
    """Two clips are compared exactly where the pull on one depends on where the other is."""
    objective = Objective("pairwise", 0.1, 0.5, 0.0, 2.0)
    pulls = hessian(lambda raw: objective(raw, SCORES, GROUPS, 75.0), RAW)
    ordered = (SCORES[:, None] != SCORES[None]) & (GROUPS[:, None] == GROUPS[None])
    off_diagonal = ~torch.eye(7, dtype=torch.bool)
    assert ((pulls != 0) == ordered)[off_diagonal].all()
    assert int(ordered.sum()) == 2 * (5 + 1), "90 over 72.5 and 51 twice, 72.5 over 51, and one pair of group 3"


@pytest.mark.parametrize("loss", ["pairwise", "list_mle"])
def test_each_ordered_pair_alone_has_a_gradient_whichever_way_it_stands(loss: str) -> None:
    objective = Objective(loss, 0.1, 0.5, 0.0, 2.0)
    for better in range(7):
        for worse in range(7):
            both = [better, worse]
            if not (GROUPS[better] == GROUPS[worse] and SCORES[better] > SCORES[worse]):
                continue
            for lead in (-30.0, 0.0, 30.0):
                raw = torch.tensor([lead, 0.0], dtype=torch.float64, requires_grad=True)
                (pull,) = torch.autograd.grad(objective(raw, SCORES[both], GROUPS[both], 75.0), raw)
                assert pull[0] < 0 < pull[1]


def test_the_absolute_term_is_added_by_its_weight_and_left_out_at_0() -> None:
    ranking = pairwise_logistic(RAW, SCORES, margin_per_point=0.2, order_margin=0.5, groups=GROUPS)
    absolute = smooth_l1(75.0 + RAW / 0.2, SCORES, beta=3.0, groups=GROUPS)
    both = Objective("pairwise", 0.2, 0.5, 0.7, 3.0)(RAW, SCORES, GROUPS, 75.0)
    assert float(both) == pytest.approx(float(ranking + 0.7 * absolute))
    assert float(Objective("pairwise", 0.2, 0.5, 0.0, 3.0)(RAW, SCORES, GROUPS, 0.0)) == pytest.approx(float(ranking))


def test_list_mle_is_chosen_by_name() -> None:
    found = Objective("list_mle", 0.2, 0.5, 0.0, 3.0)(RAW, SCORES, GROUPS, 0.0)
    assert float(found) == float(list_mle(RAW, SCORES, GROUPS))


def test_a_batch_of_ranks_alone_has_no_absolute_term() -> None:
    last = slice(4, 7)
    found = Objective("pairwise", 0.1, 0.5, 9.0, 2.0)(RAW[last], SCORES[last], GROUPS[last], 0.0)
    wanted = Objective("pairwise", 0.1, 0.5, 0.0, 2.0)(RAW[last], SCORES[last], GROUPS[last], 0.0)
    assert float(found) == float(wanted)
