from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from audioscore.encoders.extract import Features
from audioscore.evaluation.metrics import within_source_spearman
from audioscore.scoring.head import ScoreHead, Standardize, raw_outputs
from audioscore.training import loop
from audioscore.training.loop import Fit, Fold, fit_head, fit_statistics, validate

SETTINGS: dict[str, Any] = {
    "width": 8, "hidden": 8, "dropout": 0.1, "epochs": 15, "patience": 15, "batch_clips": 16, "learning_rate": 3e-3,
    "weight_decay": 0.01, "margin_per_point": 0.1,
}  # fmt: skip


def toy(count: int, seed: int, *, strength: float = 1.0) -> Fold:
    """Clips whose score is one direction of their frames' mean and one of their embedding's, in noise.

    Everything else varies too, lengths included.
    """
    rng = np.random.default_rng(seed)
    quality = rng.normal(0, 1, count)
    features: list[Features] = []
    for value in quality:
        frames = rng.normal(0, 1, (int(rng.integers(5, 15)), 6))
        frames[:, 2] += strength * value
        embedding = rng.normal(0, 1, 5)
        embedding[1] += strength * value
        features.append({"muq": torch.tensor(frames).float(), "campplus": torch.tensor(embedding).float()})
    scores = [float(score) for score in np.round(np.clip(78 + 8 * quality, 50, 99), 1)]
    return Fold(features, scores, ["ktv" if index % 2 else "acapella" for index in range(count)])


TRAIN, VAL, TEST = toy(64, 1), toy(32, 2), toy(64, 3)


@pytest.fixture(scope="module")
def fitted() -> Fit:
    return fit_head(TRAIN, VAL, seed=1, **SETTINGS)


def test_a_learnable_toy_is_learned_with_higher_scores_higher(fitted: Fit) -> None:
    assert spearmanr(TEST.scores, raw_outputs(fitted.head, TEST.features)).statistic > 0.7
    assert fitted.curve[-1]["train_loss"] < 0.8 * fitted.curve[0]["train_loss"]


def test_scores_unrelated_to_the_features_are_not_learned() -> None:
    fit = fit_head(toy(64, 1, strength=0.0), VAL, seed=1, **{**SETTINGS, "epochs": 5})
    assert abs(spearmanr(TEST.scores, raw_outputs(fit.head, TEST.features)).statistic) < 0.4


def test_the_same_seed_gives_the_same_weights_bit_for_bit(fitted: Fit) -> None:
    again = fit_head(TRAIN, VAL, seed=1, **SETTINGS)
    other = fit_head(TRAIN, VAL, seed=2, **SETTINGS)
    weights = fitted.head.state_dict()
    assert all(torch.equal(again.head.state_dict()[name], value) for name, value in weights.items())
    assert any(not torch.equal(other.head.state_dict()[name], value) for name, value in weights.items())


def test_training_leaves_the_callers_chance_alone() -> None:
    torch.manual_seed(9)
    wanted = torch.rand(3)
    torch.manual_seed(9)
    fit_head(TRAIN, VAL, seed=1, **{**SETTINGS, "epochs": 1})
    assert torch.equal(torch.rand(3), wanted)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], list[dict[str, torch.Tensor]]]:
    """Let validation say what a test wants, and keep the weights of every epoch."""

    def script(figures: list[float]) -> list[dict[str, torch.Tensor]]:
        kept: list[dict[str, torch.Tensor]] = []

        def say(head: ScoreHead, *_: object) -> dict[str, float]:
            kept.append({name: value.clone() for name, value in head.state_dict().items()})
            figure = figures[len(kept) - 1]
            return {"val_spearman": figure / 2, "val_spearman_within_source": figure, "selection": figure}

        monkeypatch.setattr(loop, "validate", say)
        return kept

    return script


def test_early_stopping_keeps_the_best_epoch(scripted: Callable[[list[float]], list[dict[str, torch.Tensor]]]) -> None:
    kept = scripted([0.1, 0.5, 0.4, 0.5, 0.3, 0.9])
    fit = fit_head(TRAIN, VAL, seed=1, **{**SETTINGS, "epochs": 6, "patience": 3})
    assert len(fit.curve) == 5, "three epochs no better than the second, and an equal one is no better"
    assert fit.best_epoch == 2
    assert (fit.selection, fit.validation_spearman) == (0.5, 0.25)
    assert all(torch.equal(value, kept[1][name]) for name, value in fit.head.state_dict().items())
    assert not fit.head.training


def test_without_a_better_epoch_the_first_is_kept(
    scripted: Callable[[list[float]], list[dict[str, torch.Tensor]]],
) -> None:
    kept = scripted([0.0, -0.2, -0.1])
    fit = fit_head(TRAIN, VAL, seed=1, **{**SETTINGS, "epochs": 3, "patience": 9})
    assert (fit.best_epoch, len(fit.curve)) == (1, 3)
    assert all(torch.equal(value, kept[0][name]) for name, value in fit.head.state_dict().items())


def test_statistics_are_numpys_over_every_frame_of_every_training_clip() -> None:
    head = ScoreHead({"muq": 6, "campplus": 5}, width=4, hidden=4, dropout=0.0)
    fit_statistics(head, TRAIN.features)
    frames = np.concatenate([clip["muq"].double().numpy() for clip in TRAIN.features])
    voices = np.stack([clip["campplus"].double().numpy() for clip in TRAIN.features])
    for kind, judge in (("muq", frames), ("campplus", voices)):
        norm = head.norms[kind]
        assert isinstance(norm, Standardize)
        np.testing.assert_allclose(norm.mean.numpy(), judge.mean(0), atol=1e-5)
        np.testing.assert_allclose(norm.std.numpy(), judge.std(0), atol=1e-5)


def test_the_statistics_are_those_of_training_and_do_not_move_with_it(fitted: Fit) -> None:
    norm = fitted.head.norms["campplus"]
    assert isinstance(norm, Standardize)
    judge = np.stack([clip["campplus"].double().numpy() for clip in TRAIN.features])
    np.testing.assert_allclose(norm.mean.numpy(), judge.mean(0), atol=1e-5)


def test_validation_is_scipys_spearman_and_its_mean_with_the_one_within_source(fitted: Fit) -> None:
    figures, raw = validate(fitted.head, VAL), raw_outputs(fitted.head, VAL.features)
    assert figures["val_spearman"] == pytest.approx(spearmanr(VAL.scores, raw).statistic)
    within = within_source_spearman(VAL.scores, raw, VAL.sources)
    assert figures["val_spearman_within_source"] == pytest.approx(within)
    assert figures["selection"] == pytest.approx((figures["val_spearman"] + within) / 2)
    assert fitted.selection == figures["selection"]


def test_outputs_that_rank_nothing_are_worth_nothing() -> None:
    head = ScoreHead({"muq": 6, "campplus": 5}, width=4, hidden=4, dropout=0.0)
    for parameter in head.parameters():
        parameter.data.zero_()
    assert set(validate(head, VAL).values()) == {0.0}


def test_equal_scores_leave_the_head_as_it_was_and_the_curve_finite() -> None:
    flat = Fold(TRAIN.features, [80.0] * len(TRAIN.scores), TRAIN.sources)
    one, three = (fit_head(flat, VAL, seed=1, **{**SETTINGS, "epochs": epochs}) for epochs in (1, 3))
    assert all(torch.equal(three.head.state_dict()[name], value) for name, value in one.head.state_dict().items())
    assert [entry["train_loss"] for entry in three.curve] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", ["muq", "campplus"])
def test_one_branch_alone_learns_too(kind: str) -> None:
    train, val, test = (
        Fold([{name: clip[name] for name in clip if name == kind} for clip in fold.features], fold.scores, fold.sources)
        for fold in (TRAIN, VAL, TEST)
    )
    fit = fit_head(train, val, seed=1, **SETTINGS)
    assert set(fit.head.dims) == {kind}
    assert spearmanr(test.scores, raw_outputs(fit.head, test.features)).statistic > 0.4


def test_every_parameter_moves(fitted: Fit) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        start = ScoreHead(fitted.head.dims, width=8, hidden=8, dropout=0.1)
    before = dict(start.named_parameters())
    still = [name for name, value in fitted.head.named_parameters() if torch.equal(value, before[name])]
    # Softmax takes no notice of a constant, and a difference of outputs takes none of the last bias.
    assert set(still) <= {"attention.score.bias", "mlp.5.bias"}
