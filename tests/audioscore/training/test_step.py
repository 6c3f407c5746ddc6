import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audioscore.errors import ModelError
from audioscore.scoring.network import collate, raw_outputs
from audioscore.training.data import TrainingSplit, fit_statistics
from audioscore.training.distributed import start
from audioscore.training.losses import Objective, pairwise_logistic
from audioscore.training.step import Stepper, rate_factor


def new_stepper(
    toys: Any, split: TrainingSplit, *, dropout: float = 0.0, adversary: Any = None, **changed: Any
) -> Stepper:
    network = toys.network(dropout=dropout, kinds=tuple(split.features[0]))
    fit_statistics(network, split.features)
    return Stepper(start("cpu"), network, adversary, split, toys.settings(**changed), seed=1)


def watched(stepper: Stepper, monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, list[float]]]:
    """Record gradient norm and learning rates at each step of the optimizer, and skip the step."""
    seen: list[tuple[float, list[float]]] = []

    def look() -> None:
        gradients = [parameter.grad for parameter in stepper.parameters if parameter.grad is not None]
        length = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
        seen.append((length, [group["lr"] for group in stepper.optimizer.param_groups]))

    monkeypatch.setattr(stepper.optimizer, "step", look)
    return seen


# Neither the order of clips nor a softmax depends on a constant: their gradients are rounding errors, which AdamW
# scales up to whole steps.
IDLE = ("head.attention.score.bias", "head.regressor.5.bias")


def alone(split: TrainingSplit) -> TrainingSplit:
    """MuQ's frames only: attention weights of a constant voice embedding would have zero gradients too."""
    return replace(split, features=[{"muq": clip["muq"]} for clip in split.features])


def weights(network: Any) -> dict[str, Tensor]:
    return {name: value for name, value in network.named_parameters() if name not in IDLE}


@pytest.fixture(scope="module")
def in_one_pass(toys: Any) -> dict[str, Any]:
    """64 clips in batches of 13: four of 13 and a last one of 12."""
    options = {"dropout": 0.0, "epochs": 3, "batch_clips": 13}
    return {
        "muq": toys.fit(alone(toys.train), alone(toys.val), **options),
        "both": toys.fit(toys.train, toys.val, **options),
    }


@pytest.mark.parametrize("micro_clips", [1, 3, 5, 13, 99])
def test_micro_batches_give_the_step_of_the_batch(toys: Any, in_one_pass: dict[str, Any], micro_clips: int) -> None:
    options = {"dropout": 0.0, "epochs": 3, "batch_clips": 13, "micro_clips": micro_clips}
    muq = toys.fit(alone(toys.train), alone(toys.val), **options)
    both = toys.fit(toys.train, toys.val, **options)
    for found, expected in ((muq, in_one_pass["muq"]), (both, in_one_pass["both"])):
        for ours, wanted in zip(found.curve, expected.curve, strict=True):
            assert ours["train_loss"] == pytest.approx(wanted["train_loss"], abs=1e-5)
    for name, value in weights(in_one_pass["muq"].network).items():
        torch.testing.assert_close(weights(muq.network)[name], value, rtol=0, atol=1e-5)
    outputs = [raw_outputs(one.network, toys.test.features) for one in (both, in_one_pass["both"])]
    np.testing.assert_allclose(*(one - one.mean() for one in outputs), rtol=0, atol=1e-5)


def test_a_step_equals_torch_adamw_on_the_loss_of_the_batch(toys: Any) -> None:
    split, rows = alone(toys.split(9, 5)), np.arange(9)
    stepper = new_stepper(toys, split, micro_clips=2, clip_norm=0.05, weight_decay=0.1)
    expected = toys.network(dropout=0.0, kinds=("muq",))
    fit_statistics(expected, split.features)
    optimizer = torch.optim.AdamW(expected.parameters(), lr=3e-3, weight_decay=0.1)
    for step in range(3):
        expected.train()
        raw, scores = expected(collate(split.features)), torch.tensor(split.scores)
        loss = pairwise_logistic(raw, scores, margin_per_point=0.1, order_margin=0.5)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(expected.parameters(), 0.05)
        optimizer.step()
        assert stepper.step(rows, step, "epoch 1") == pytest.approx(float(loss.detach()), abs=1e-6)
    for name, value in weights(expected).items():
        torch.testing.assert_close(weights(stepper.network)[name], value, rtol=0, atol=1e-6)


def test_dropout_depends_only_on_seed_step_and_pass(toys: Any) -> None:
    split, rows = toys.split(8, 5), np.arange(8)
    losses = []
    for disturbance in (0, 1):
        torch.manual_seed(disturbance)
        stepper = new_stepper(toys, split, dropout=0.5, micro_clips=3)
        losses.append([stepper.step(rows, step, "epoch 1") for step in (0, 0, 1)])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 3


@pytest.mark.parametrize(("clip_norm", "length"), [(1e-3, 1e-3), (1e9, None)])
def test_gradients_clipped(toys: Any, monkeypatch: pytest.MonkeyPatch, clip_norm: float, length: float | None) -> None:
    stepper = new_stepper(toys, toys.split(8, 5), clip_norm=clip_norm)
    seen = watched(stepper, monkeypatch)
    stepper.step(np.arange(8), 0, "epoch 1")
    ((found, _),) = seen
    assert found == pytest.approx(length, rel=1e-3) if length else 1e-3 < found < 1e9


def test_rates_of_all_parts_follow_warm_up_and_cosine(toys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    split = toys.split(20, 5)
    split, adversary = toys.adversary(split, toys.network().head.representation_dim)
    changed = {"epochs": 4, "batch_clips": 8, "schedule": "cosine", "warmup_share": 0.25, "learning_rate": 0.01}
    stepper = new_stepper(toys, split, adversary=adversary, adversary_weight=1.0, **changed)
    seen = watched(stepper, monkeypatch)
    assert stepper.steps == 12, "three batches of at most 8 per epoch"
    for step in range(12):
        stepper.step(np.arange(8), step, "epoch")
    up = [1 / 3, 2 / 3, 1.0]
    down = [0.5 + 0.5 * math.cos(math.pi * step / 9) for step in range(9)]
    for (_, rates), factor in zip(seen, up + down, strict=True):
        assert rates == pytest.approx([0.01 * factor, 0.03 * factor])
    assert stepper.rate(12) == pytest.approx(0.0)


def test_relative_groups_train_the_model_and_are_not_compared_with_scores(toys: Any) -> None:
    scored, order = toys.split(6, 5), toys.split(3, 6)
    both = TrainingSplit(
        [*scored.features, *order.features], [*scored.scores, 0.0, -1.0, -2.0], [*scored.sources, "", "", ""],
        [*scored.keys, "x", "y", "z"], [0] * 6 + [1] * 3,
    )  # fmt: skip
    alone = new_stepper(toys, both)
    before = {name: value.clone() for name, value in alone.network.named_parameters()}
    assert alone.step(np.array([6, 7, 8]), 0, "epoch 1") > 0
    assert any(not torch.equal(value, before[name]) for name, value in alone.network.named_parameters())
    mixed = new_stepper(toys, both)
    assert mixed.step(np.array([0, 6]), 0, "epoch 1") == 0.0, "a score and a rank are not compared"


def test_ranks_far_from_the_scores_change_neither_loss_nor_centre(toys: Any) -> None:
    scored, order = toys.split(6, 5), toys.split(3, 6)
    losses = []
    for shift in (0.0, 1000.0):
        both = TrainingSplit(
            [*scored.features, *order.features], [*scored.scores, shift, shift - 1, shift - 2],
            [*scored.sources, "", "", ""], [*scored.keys, "x", "y", "z"], [0] * 6 + [1] * 3,
        )  # fmt: skip
        objective = Objective("pairwise", 0.1, 0.5, 0.3, 2.0)
        stepper = new_stepper(toys, both, objective=objective)
        assert stepper.centre == pytest.approx(np.mean(scored.scores))
        losses.append(stepper.step(np.arange(9), 0, "epoch 1"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("scores", [[80.0, 80.0, 80.0], [80.0]])
def test_a_batch_without_pairs_changes_no_weight(toys: Any, scores: list[float]) -> None:
    split = replace(toys.split(len(scores), 5), scores=scores)
    stepper = new_stepper(toys, split, weight_decay=1.0)
    before = {name: value.clone() for name, value in stepper.network.named_parameters()}
    assert stepper.step(np.arange(len(scores)), 0, "epoch 1") == 0.0
    assert all(torch.equal(value, before[name]) for name, value in stepper.network.named_parameters())


def test_an_adversary_at_weight_0_learns_but_does_not_change_the_network(toys: Any) -> None:
    split, adversary = toys.adversary(toys.split(12, 5), toys.network().head.representation_dim)
    plain = new_stepper(toys, replace(split, targets=None), dropout=0.2, clip_norm=1e9)
    beside = new_stepper(toys, split, dropout=0.2, clip_norm=1e9, adversary=adversary, adversary_weight=0.0)
    before = adversary.discriminator[0].weight.detach().clone()
    for step in range(3):
        assert plain.step(np.arange(12), step, "e") == beside.step(np.arange(12), step, "e")
    for name, value in plain.network.state_dict().items():
        torch.testing.assert_close(beside.network.state_dict()[name], value, rtol=0, atol=1e-7)
    assert not torch.equal(adversary.discriminator[0].weight, before)


def test_the_adversary_gradient_grows_with_its_ramp(toys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    for step in (0, 1, 7):
        split, adversary = toys.adversary(toys.split(12, 5), toys.network().head.representation_dim)
        stepper = new_stepper(toys, split, adversary=adversary, adversary_weight=1e3, clip_norm=1e9, batch_clips=12)
        head = list(stepper.network.parameters())
        monkeypatch.setattr(
            stepper.optimizer, "step",
            lambda head=head: lengths.append(sum(float(p.grad.norm()) for p in head if p.grad is not None)),
        )  # fmt: skip
        stepper.step(np.arange(12), step, "e")
    assert lengths[0] < lengths[1] < lengths[2]


def broken(split: TrainingSplit, row: int) -> TrainingSplit:
    features = list(split.features)
    features[row] = {**features[row], "campplus": torch.full_like(features[row]["campplus"], math.nan)}
    return replace(split, features=features)


@pytest.mark.parametrize("micro_clips", [None, 2])
def test_a_loss_that_is_not_finite_names_the_batch_and_the_clip(toys: Any, micro_clips: int | None) -> None:
    split = toys.split(6, 5)
    stepper = new_stepper(toys, split, micro_clips=micro_clips)
    stepper.train = broken(split, 4)
    expected = r"^seed 1, epoch 3, step 8: .*\bnan\b.* 1 of its 5 .*\(004\.wav\).*training\.learning_rate"
    before = {name: value.clone() for name, value in stepper.network.named_parameters()}
    with pytest.raises(ModelError, match=expected):
        stepper.step(np.array([1, 2, 3, 4, 5]), 7, "epoch 3")
    assert all(torch.equal(value, before[name]) for name, value in stepper.network.named_parameters())


def test_a_gradient_that_is_not_finite_names_the_batch(toys: Any) -> None:
    split = toys.split(3, 5)
    stepper = new_stepper(toys, split)
    stepper.network.head.regressor[-1].weight.register_hook(lambda gradient: gradient * math.inf)
    before = {name: value.clone() for name, value in stepper.network.named_parameters()}
    with pytest.raises(ModelError, match=r"^seed 1, epoch 1, step 1: .*gradient.*\(000\.wav, "):
        stepper.step(np.arange(3), 0, "epoch 1")
    assert all(torch.equal(value, before[name]) for name, value in stepper.network.named_parameters())


def test_statistics_of_a_recording_with_a_nan_are_refused(toys: Any) -> None:
    split = broken(toys.split(6, 5), 2)
    with pytest.raises(ModelError, match=r"features of 002\.wav"):
        fit_statistics(toys.network(), split.features, names=split.names)
    with pytest.raises(ModelError, match=r"features of clip 2: "):
        fit_statistics(toys.network(), split.features)


def test_validation_outputs_that_are_not_finite_are_refused(toys: Any) -> None:
    with pytest.raises(ModelError, match=r"^validation: .* 1 of 32 .*\(007\.wav\)"):
        toys.fit(toys.train, broken(toys.val, 7), epochs=1)


def test_an_infinite_learning_rate_is_stopped(toys: Any) -> None:
    with pytest.raises(ModelError, match=r"^seed 1, epoch 1, step 2: .*\bnan\b.* 16 "):
        toys.fit(toys.train, toys.val, learning_rate=math.inf)
    with pytest.raises(ModelError, match=r"^validation: .* 32 of 32 "):
        toys.fit(toys.train, toys.val, learning_rate=math.inf, batch_clips=64, epochs=1)


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup_share", [0.0, 0.05, 0.3, 1.0])
def test_the_closed_form_at_every_step(steps: int, warmup_share: float) -> None:
    warmup = round(steps * warmup_share)
    for step in range(steps + 3):
        if step < warmup:
            rising = (step + 1) / warmup
            wanted = {"constant": rising, "cosine": rising}
        else:
            done = min(1.0, (step - warmup) / max(1, steps - warmup))
            wanted = {"constant": 1.0, "cosine": 0.5 + 0.5 * math.cos(math.pi * done)}
        for schedule, factor in wanted.items():
            assert rate_factor(step, steps, schedule=schedule, warmup_share=warmup_share) == pytest.approx(factor)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_rate_is_0_only_after_the_last_step(schedule: str) -> None:
    factors = [rate_factor(step, 40, schedule=schedule, warmup_share=0.1) for step in range(40)]
    assert min(factors) > 0
    assert max(factors) == 1.0
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rate_factor(40, 40, schedule="cosine", warmup_share=0.1) == pytest.approx(0.0)
