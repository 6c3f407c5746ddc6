from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from audioscore.evaluation.metrics import within_source_spearman
from audioscore.scoring.network import raw_outputs
from audioscore.training.data import TrainingSplit, fit_statistics
from audioscore.training.loop import Fit, fit_network, validate


@pytest.fixture(scope="module")
def fitted(toys: Any) -> Fit:
    return toys.fit(toys.train, toys.val, seed=1)


def test_a_learnable_toy_is_learned_with_higher_scores_higher(toys: Any, fitted: Fit) -> None:
    assert spearmanr(toys.test.scores, raw_outputs(fitted.network, toys.test.features)).statistic > 0.7
    assert fitted.curve[-1]["train_loss"] < 0.8 * fitted.curve[0]["train_loss"]


def test_the_same_seed_gives_the_same_weights_bit_for_bit(toys: Any, fitted: Fit) -> None:
    again = toys.fit(toys.train, toys.val, seed=1)
    other = toys.fit(toys.train, toys.val, seed=2)
    weights = fitted.network.state_dict()
    assert all(torch.equal(again.network.state_dict()[name], value) for name, value in weights.items())
    assert any(not torch.equal(other.network.state_dict()[name], value) for name, value in weights.items())


def test_training_leaves_the_callers_generator_alone(toys: Any) -> None:
    before = torch.get_rng_state()
    toys.fit(toys.train, toys.val, seed=1, epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_best_epoch_is_kept(toys: Any, scripted: Callable[[list[float]], list[dict[str, torch.Tensor]]]) -> None:
    kept = scripted([0.1, 0.5, 0.4, 0.5, 0.3, 0.9])
    found = toys.fit(toys.train, toys.val, seed=1, epochs=6, patience=3)
    assert len(found.curve) == 5, "three epochs no better than the second, and an equal one is no better"
    assert found.best_epoch == 2
    assert (found.selection, found.validation_spearman) == (0.5, 0.25)
    assert all(torch.equal(value, kept[1][name]) for name, value in found.network.state_dict().items())
    assert not found.network.training


def test_the_first_of_equals_is_kept(
    toys: Any, scripted: Callable[[list[float]], list[dict[str, torch.Tensor]]]
) -> None:
    kept = scripted([0.0, -0.2, -0.1])
    found = toys.fit(toys.train, toys.val, seed=1, epochs=3, patience=9)
    assert (found.best_epoch, len(found.curve)) == (1, 3)
    assert all(torch.equal(value, kept[0][name]) for name, value in found.network.state_dict().items())


def test_the_statistics_are_those_of_training_and_do_not_move_with_it(toys: Any, fitted: Fit) -> None:
    norm = fitted.network.head.fusion.norms["campplus"]
    expected = np.stack([clip["campplus"].double().numpy() for clip in toys.train.features])
    np.testing.assert_allclose(norm.mean.numpy(), expected.mean(0), atol=1e-5)


def test_validation_is_scipys_spearman_and_its_mean_with_the_one_within_source(toys: Any, fitted: Fit) -> None:
    figures, raw = validate(fitted.network, toys.val), raw_outputs(fitted.network, toys.val.features)
    assert figures["val_spearman"] == pytest.approx(spearmanr(toys.val.scores, raw).statistic)
    within = within_source_spearman(toys.val.scores, raw, toys.val.sources)
    assert figures["val_spearman_within_source"] == pytest.approx(within)
    assert figures["selection"] == pytest.approx(within)
    assert fitted.selection == figures["selection"]


def test_constant_outputs_have_correlation_0(toys: Any) -> None:
    network = toys.network()
    for parameter in network.parameters():
        parameter.data.zero_()
    assert set(validate(network, toys.val).values()) == {0.0}


def test_equal_scores_leave_the_head_as_it_was_and_the_curve_finite(toys: Any) -> None:
    flat = TrainingSplit(toys.train.features, [80.0] * len(toys.train.scores), toys.train.sources, toys.train.keys)
    one, three = (toys.fit(flat, toys.val, seed=1, epochs=epochs) for epochs in (1, 3))
    assert all(torch.equal(three.network.state_dict()[name], value) for name, value in one.network.state_dict().items())
    assert [entry["train_loss"] for entry in three.curve] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", ["muq", "campplus"])
def test_one_branch_alone_learns_too(toys: Any, kind: str) -> None:
    train, val, test = (
        replace(split, features=[{kind: clip[kind]} for clip in split.features])
        for split in (toys.train, toys.val, toys.test)
    )
    found = toys.fit(train, val, seed=1)
    assert set(found.network.head.fusion.dims) == {kind}
    assert spearmanr(test.scores, raw_outputs(found.network, test.features)).statistic > 0.4


def test_every_parameter_moves(toys: Any, fitted: Fit) -> None:
    before = dict(toys.network().named_parameters())
    still = [name for name, value in fitted.network.named_parameters() if torch.equal(value, before[name])]
    # A constant changes neither a softmax nor a difference of outputs.
    assert set(still) <= {"head.attention.score.bias", "head.regressor.5.bias"}


def test_fewer_epochs_follow_the_schedule_of_all(toys: Any) -> None:
    """The outputs after two of six epochs are those of the whole fit at that time, and nothing is validated."""
    options = {"epochs": 6, "schedule": "cosine", "warmup_share": 0.2}

    def observed(stop_after: int) -> tuple[list[Any], Any]:
        network = toys.network(1, 0.0)
        fit_statistics(network, toys.train.features)
        seen: list[Any] = []
        fit = fit_network(
            network, toys.train, toys.val, toys.settings(**options), seed=1, device="cpu", stop_after=stop_after,
            observe=lambda epoch, one: seen.append(raw_outputs(one, toys.val.features)),
        )  # fmt: skip
        return seen, fit

    two, fit = observed(2)
    six, _ = observed(6)
    assert (len(two), len(six), len(fit.curve)) == (2, 6, 2)
    np.testing.assert_array_equal(two[1], six[1])
    np.testing.assert_array_equal(raw_outputs(fit.network, toys.val.features), two[1])
