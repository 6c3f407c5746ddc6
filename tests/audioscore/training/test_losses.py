import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from audioscore.errors import DataError
from audioscore.training.losses import (
    ABSOLUTE,
    Objective,
    list_mle,
    ordered_pairs,
    pairwise_logistic,
    pairwise_ranking_loss,
    smooth_l1,
)

Loss = Callable[..., Tensor]


def logistic(raw: Tensor, scores: Tensor, groups: Tensor | None = None) -> Tensor:
    return pairwise_logistic(raw, scores, margin_per_point=0.1, order_margin=0.7, groups=groups)


def near(raw: Tensor, scores: Tensor, groups: Tensor | None = None) -> Tensor:
    return smooth_l1(raw, scores, beta=1.0, groups=groups)


RANKING = [logistic, list_mle]


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


def outputs(count: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Main list with a tie; two relative groups, one with a tie; one group of a single clip.
SCORES = torch.tensor([60.0, 95.0, 80.0, 60.0, 3.0, 2.0, 2.0, 1.0, 0.0, 5.0], dtype=torch.float64)
GROUPS = torch.tensor([ABSOLUTE] * 4 + [7] * 3 + [2] * 2 + [9])


def slow_logistic(raw: list[float], scores: list[float], groups: list[int]) -> float:
    """Reference: pair by pair, in plain floats."""
    costs = []
    for i in range(len(raw)):
        for j in range(i):
            if groups[i] != groups[j] or scores[i] == scores[j]:
                continue
            up, down = (i, j) if scores[i] > scores[j] else (j, i)
            margin = 0.1 * (scores[up] - scores[down]) if groups[i] == ABSOLUTE else 0.7
            costs.append(math.log(1 + math.exp(margin - raw[up] + raw[down])))
    return sum(costs) / len(costs) if costs else 0.0


def slow_list_mle(raw: list[float], scores: list[float], groups: list[int]) -> float:
    """Reference: clip by clip, in plain floats: its probability among itself and all clips with lower scores."""
    costs = []
    for i in range(len(raw)):
        below = [j for j in range(len(raw)) if groups[j] == groups[i] and scores[j] < scores[i]]
        if below:
            costs.append(-math.log(math.exp(raw[i]) / (math.exp(raw[i]) + sum(math.exp(raw[j]) for j in below))))
    return sum(costs) / len(costs) if costs else 0.0


@given(
    st.lists(st.tuples(st.floats(-5, 5), st.integers(50, 56), st.sampled_from([ABSOLUTE, ABSOLUTE, 3, 8])), max_size=12)
)
def test_ranking_losses_are_those_of_a_slow_loop(clips: list[tuple[float, int, int]]) -> None:
    raw, scores, groups = [clip[0] for clip in clips], [float(clip[1]) for clip in clips], [clip[2] for clip in clips]
    tensors = torch.tensor(raw, dtype=torch.float64), torch.tensor(scores, dtype=torch.float64)
    for loss, slow in ((logistic, slow_logistic), (list_mle, slow_list_mle)):
        for names in (groups, [ABSOLUTE] * len(clips)):
            wanted = slow(raw, scores, names)
            assert loss(*tensors, groups=torch.tensor(names, dtype=torch.long)).item() == pytest.approx(wanted)
        assert loss(*tensors).item() == pytest.approx(wanted), "without groups every score is absolute"


@pytest.mark.parametrize("loss", RANKING)
def test_every_ordered_pair_contributes_and_no_other(loss: Loss) -> None:
    raw = outputs(10)
    # d2 loss / d raw_i d raw_j is the contribution of this pair: terms of one clip and of other pairs are zero.
    curvature = torch.autograd.functional.hessian(lambda values: loss(values, SCORES, groups=GROUPS), raw)
    assert isinstance(curvature, Tensor)
    for i in range(10):
        for j in range(i):
            same, tied = bool(GROUPS[i] == GROUPS[j]), bool(SCORES[i] == SCORES[j])
            if same and not tied:
                assert curvature[i, j] < 0, f"pair {i}, {j}"
            elif not same:
                assert curvature[i, j] == 0, f"pair {i}, {j} is of two groups"


@pytest.mark.parametrize("loss", RANKING)
@pytest.mark.parametrize("grouped", [False, True])
def test_a_step_on_a_pair_raises_the_better_clip_as_much_as_it_lowers_the_worse(loss: Loss, grouped: bool) -> None:
    raw = outputs(10, scale=8.0).float()
    tried = 0
    for i in range(10):
        for j in range(10):
            if not SCORES[i] > SCORES[j] or (grouped and GROUPS[i] != GROUPS[j]):
                continue
            chosen = torch.tensor([i, j])
            pair = raw[chosen].requires_grad_()
            loss(pair, SCORES[chosen].float(), groups=GROUPS[chosen] if grouped else None).backward()
            assert pair.grad is not None
            assert pair.grad[0] < 0 < pair.grad[1], f"pair {i}, {j}"
            assert pair.grad[0].item() == pytest.approx(-pair.grad[1].item())
            tried += 1
    assert tried == (8 if grouped else 43)


@pytest.mark.parametrize("loss", RANKING)
def test_only_differences_of_outputs_count_and_the_order_of_the_batch_does_not(loss: Loss) -> None:
    raw, value = outputs(10), loss(outputs(10), SCORES, groups=GROUPS)
    torch.testing.assert_close(loss(raw + 123.0, SCORES, groups=GROUPS), value)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss(raw[order], SCORES[order], groups=GROUPS[order]), value)
    renamed = torch.where(GROUPS == ABSOLUTE, ABSOLUTE, GROUPS + 100)
    torch.testing.assert_close(loss(raw, SCORES, groups=renamed), value)


@pytest.mark.parametrize("loss", RANKING)
@pytest.mark.parametrize(
    ("scores", "groups"),
    [([80.0] * 5, None), ([80.0], None), ([], None), ([80.0] * 3, [6, 6, 6]), ([90.0, 80.0, 70.0], [ABSOLUTE, 1, 2])],
    ids=["equal scores", "one clip", "no clip", "an equal group", "no common group"],
)
def test_a_batch_without_order_has_zero_loss(loss: Loss, scores: list[float], groups: list[int] | None) -> None:
    raw = outputs(len(scores)).float().requires_grad_()
    value = loss(raw, torch.tensor(scores), groups=None if groups is None else torch.tensor(groups))
    value.backward()
    assert value.item() == 0
    assert raw.grad is not None
    assert (raw.grad == 0).all()


@pytest.mark.parametrize("loss", RANKING)
def test_outputs_far_apart_stay_finite(loss: Loss) -> None:
    raw = torch.tensor([-1e4, 1e4, 0.0], requires_grad=True)
    value = loss(raw, torch.tensor([90.0, 60.0, 70.0]))
    value.backward()
    assert raw.grad is not None
    assert torch.isfinite(value)
    assert torch.isfinite(raw.grad).all()


@pytest.mark.parametrize("loss", [*RANKING, near])
def test_nan_outputs_give_nan_and_half_precision_is_widened(loss: Loss) -> None:
    scores = torch.tensor([90.0, 60.0])
    assert torch.isnan(loss(torch.tensor([float("nan"), 0.0]), scores))
    half = loss(torch.tensor([1.0, 0.5], dtype=torch.bfloat16), scores)
    assert half.dtype == torch.float32
    assert torch.equal(half, loss(torch.tensor([1.0, 0.5]), scores))


@pytest.mark.parametrize("loss", [*RANKING, near])
def test_wrong_shapes_and_scores_that_are_not_finite_are_refused(loss: Loss) -> None:
    with pytest.raises(ValueError, match=r"\(3, 1\), \(3,\)"):
        loss(torch.zeros(3, 1), torch.zeros(3))
    with pytest.raises(ValueError, match=r"\(3,\), \(3,\), \(2,\)"):
        loss(torch.zeros(3), torch.zeros(3), torch.zeros(2))
    with pytest.raises(DataError, match="2 of 3"):
        loss(torch.zeros(3), torch.tensor([80.0, float("nan"), float("inf")]))


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_smooth_l1_is_the_closed_form_over_absolute_scores_only(beta: float) -> None:
    predicted, scores = [60.5, 80.0, 95.0, 1.0], [60.0, 83.0, 95.0, 70.0]
    costs = [
        0.5 * gap**2 / beta if gap < beta else gap - 0.5 * beta
        for gap in (abs(p - s) for p, s in zip(predicted, scores, strict=True))
    ]
    tensors = torch.tensor(predicted), torch.tensor(scores, dtype=torch.float64)
    assert smooth_l1(*tensors, beta=beta).item() == pytest.approx(np.mean(costs))
    groups = torch.tensor([ABSOLUTE, ABSOLUTE, ABSOLUTE, 4])
    assert smooth_l1(*tensors, beta=beta, groups=groups).item() == pytest.approx(np.mean(costs[:3]))


def test_smooth_l1_pulls_towards_the_score_and_leaves_order_groups_alone() -> None:
    predicted = torch.tensor([60.0, 90.0, 3.0], requires_grad=True)
    smooth_l1(predicted, torch.tensor([70.0, 80.0, 1.0]), beta=1.0, groups=torch.tensor([0, 0, 3])).backward()
    assert predicted.grad is not None
    assert predicted.grad.tolist() == [-0.5, 0.5, 0.0]
    predicted.grad = None
    nothing = smooth_l1(predicted, torch.tensor([2.0, 1.0, 0.0]), beta=1.0, groups=torch.tensor([3, 3, 3]))
    nothing.backward()
    assert nothing.item() == 0
    assert predicted.grad is not None
    assert predicted.grad.tolist() == [0.0, 0.0, 0.0]


MIXED_SCORES = torch.tensor([90.0, 90.0, 72.5, 51.0, 0.0, -1.0, -2.0], dtype=torch.float64)
MIXED_GROUPS = torch.tensor([0, 0, 0, 0, 3, 3, 5])
MIXED_RAW = torch.linspace(-1, 1, 7, dtype=torch.float64)


def test_the_absolute_term_is_added_by_its_weight_and_left_out_at_0() -> None:
    ranking = pairwise_logistic(MIXED_RAW, MIXED_SCORES, margin_per_point=0.2, order_margin=0.5, groups=MIXED_GROUPS)
    absolute = smooth_l1(75.0 + MIXED_RAW / 0.2, MIXED_SCORES, beta=3.0, groups=MIXED_GROUPS)
    both = Objective("pairwise", 0.2, 0.5, 0.7, 3.0)(MIXED_RAW, MIXED_SCORES, MIXED_GROUPS, 75.0)
    assert float(both) == pytest.approx(float(ranking + 0.7 * absolute))
    assert float(
        Objective("pairwise", 0.2, 0.5, 0.0, 3.0)(MIXED_RAW, MIXED_SCORES, MIXED_GROUPS, 0.0)
    ) == pytest.approx(float(ranking))


def test_list_mle_is_chosen_by_name() -> None:
    found = Objective("list_mle", 0.2, 0.5, 0.0, 3.0)(MIXED_RAW, MIXED_SCORES, MIXED_GROUPS, 0.0)
    assert float(found) == float(list_mle(MIXED_RAW, MIXED_SCORES, MIXED_GROUPS))


@given(st.lists(st.integers(50, 54), max_size=12))
def test_every_ordered_pair_is_there_once_better_first_and_no_tie(scores: list[int]) -> None:
    pairs = ordered_pairs(torch.tensor(scores, dtype=torch.float32))
    found = list(zip(pairs.better.tolist(), pairs.worse.tolist(), pairs.gap.tolist(), strict=True))
    wanted = [
        (i, j, float(scores[i] - scores[j]))
        for i in range(len(scores))
        for j in range(len(scores))
        if scores[i] > scores[j]
    ]
    assert sorted(found) == sorted(wanted)
