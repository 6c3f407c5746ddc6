import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audioscore.data.clips import Clip
from audioscore.errors import DataError
from audioscore.evaluation.linear_probe import speaker_probe
from audioscore.evaluation.metrics import spearman
from audioscore.training.adversary import SpeakerAdversary, adversary_loss, ramp, reverse_gradient, run_singer_probe
from audioscore.training.losses import pairwise_logistic

SINGERS, CLIPS = 8, 240


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_features_are_unchanged_and_their_gradient_is_reversed(weight: float, dtype: torch.dtype) -> None:
    features = torch.randn(3, 4, generator=seeded()).to(dtype).requires_grad_()
    upstream = torch.randn(3, 4, generator=seeded(1)).to(dtype)
    passed = reverse_gradient(features, weight)
    assert torch.equal(passed, features)
    passed.backward(upstream)
    assert features.grad is not None
    assert torch.equal(features.grad, -weight * upstream)


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_only_the_gradient_of_the_features_is_reversed_and_once(weight: float) -> None:
    """The reference is the same loss without a reversal."""
    adversary = SpeakerAdversary(6, 8, 5)
    features = torch.randn(7, 6, generator=seeded()).requires_grad_()
    targets = torch.randn(7, 5, generator=seeded(1)).requires_grad_()
    adversary_loss(adversary, features, targets, weight=weight).backward()
    reversed_ = [parameter.grad.clone() for parameter in adversary.parameters() if parameter.grad is not None]
    straight = features.detach().clone().requires_grad_()
    adversary.zero_grad()
    predicted = adversary.discriminator(straight)
    (1 - nn.functional.cosine_similarity(predicted, targets.detach())).mean().backward()
    for one, parameter in zip(reversed_, adversary.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad)
        assert one.abs().sum() > 0
    assert features.grad is not None
    assert straight.grad is not None
    torch.testing.assert_close(features.grad, -weight * straight.grad)
    assert straight.grad.abs().sum() > 0
    assert targets.grad is None


def echo(prediction: Tensor) -> SpeakerAdversary:
    """An adversary that predicts its features."""
    adversary = SpeakerAdversary(prediction.shape[1], 1, prediction.shape[1])
    adversary.discriminator = nn.Sequential(nn.Identity())
    return adversary


@pytest.mark.parametrize(
    ("target", "wanted"), [([3.0, 4.0], 0.0), ([-6.0, -8.0], 2.0), ([-4.0, 3.0], 1.0), ([5.0, 0.0], 0.4)]
)
def test_the_loss_is_one_less_the_cosine(target: list[float], wanted: float) -> None:
    prediction = torch.tensor([[0.6, 0.8]])
    assert adversary_loss(echo(prediction), prediction, torch.tensor([target]), weight=1.0).item() == pytest.approx(
        wanted, abs=1e-6
    )


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e18])
def test_the_loss_is_bounded_however_large_the_features_grow(size: float) -> None:
    torch.manual_seed(0)
    adversary = SpeakerAdversary(4, 8, 3)
    features = size * torch.randn(50, 4, generator=seeded())
    loss = adversary_loss(adversary, features, torch.randn(50, 3, generator=seeded(1)), weight=1.0).item()
    assert 0.0 <= loss <= 2.0


def test_standardised_targets_cannot_be_predicted_by_a_constant() -> None:
    """Two similar voices: a constant predicts both as they are, and neither after centring."""
    targets = torch.tensor([[1.0, 0.1], [1.0, -0.1]]).repeat(4, 1)
    constant = torch.tensor([[1.0, 0.0]]).repeat(8, 1)
    adversary = echo(constant)
    assert adversary_loss(adversary, constant, targets, weight=1.0) < 0.01
    adversary.fit_targets(targets)
    assert adversary_loss(adversary, constant, targets, weight=1.0).item() == pytest.approx(1.0)


def test_the_loss_of_bfloat16_features_is_float32() -> None:
    adversary = SpeakerAdversary(4, 8, 3).bfloat16()
    features = torch.randn(5, 4, generator=seeded()).bfloat16().requires_grad_()
    loss = adversary_loss(adversary, features, torch.randn(5, 3, generator=seeded(1)), weight=1.0)
    assert loss.dtype == torch.float32
    loss.backward()
    assert features.grad is not None
    assert features.grad.dtype == torch.bfloat16


def test_the_targets_statistics_travel_with_the_weights() -> None:
    one, other = SpeakerAdversary(4, 8, 3), SpeakerAdversary(4, 8, 3)
    targets = torch.randn(20, 3, generator=seeded())
    one.fit_targets(targets)
    other.load_state_dict(one.state_dict())
    features = torch.randn(20, 4, generator=seeded(1))
    assert torch.equal(
        adversary_loss(one, features, targets, weight=1.0), adversary_loss(other, features, targets, weight=1.0)
    )


def test_the_ramp_is_that_of_ganin() -> None:
    for step in range(0, 101, 10):
        assert ramp(step, 100) == pytest.approx(2 / (1 + math.exp(-10 * step / 100)) - 1, abs=1e-12)
    values = [ramp(step, 50) for step in range(51)]
    assert values == sorted(values)
    assert values[0] == 0.0
    assert ramp(10**9, 50) == ramp(50, 50) < 1.0


@pytest.mark.parametrize(("step", "steps"), [(-1, 10), (0, 0), (3, -2)])
def test_a_ramp_without_steps_is_refused(step: int, steps: int) -> None:
    with pytest.raises(ValueError, match=f"{step} of {steps}"):
        ramp(step, steps)


@pytest.mark.parametrize("weight", [-0.1, math.inf, math.nan])
def test_a_weight_that_would_reverse_the_sign_again_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=f"0 or more.* {weight}"):
        reverse_gradient(torch.zeros(2), weight)


def test_targets_that_are_not_finite_are_refused() -> None:
    adversary, targets = SpeakerAdversary(2, 2, 2), torch.zeros(4, 2)
    targets[1, 0], targets[3, 1] = math.nan, math.inf
    with pytest.raises(DataError, match="2 of 4"):
        adversary_loss(adversary, torch.zeros(4, 2), targets, weight=1.0)
    with pytest.raises(DataError, match="2 of 4"):
        adversary.fit_targets(targets)


@pytest.mark.parametrize(
    ("features", "targets", "wrong"),
    [((3, 2), (4, 2), "4.*[3, 2]"), ((3,), (3, 2), "[3]"), ((0, 2), (0, 2), "[0, 2]"), ((3, 2), (3, 1), "[3, 1]")],
)
def test_wrong_shapes_are_refused(features: tuple[int, ...], targets: tuple[int, ...], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong.replace("[", r"\[")):
        adversary_loss(SpeakerAdversary(2, 2, 2), torch.zeros(features), torch.zeros(targets), weight=1.0)


def train(weight: float, seed: int) -> tuple[float, float, float]:
    """Rank mixtures of quality, voice and noise; return singer accuracy before and after training, and Spearman."""
    draw = seeded(seed)
    voices = nn.functional.normalize(torch.randn(SINGERS, 4, generator=draw), dim=1)
    mix = torch.linalg.qr(torch.randn(12, 12, generator=draw))[0]
    who, quality = torch.arange(CLIPS) % SINGERS, torch.randn(CLIPS, generator=draw)
    noise = 0.3 * torch.randn(CLIPS, 7, generator=draw)
    clips = torch.cat([quality[:, None], 2 * voices[who], noise], dim=1) @ mix
    torch.manual_seed(seed)
    encoder, head, adversary = nn.Linear(12, 6), nn.Linear(6, 1), SpeakerAdversary(6, 32, 4)
    adversary.fit_targets(voices[who])
    groups = [{"params": [*encoder.parameters(), *head.parameters()], "lr": 3e-3}, {"params": adversary.parameters()}]
    optimizer = torch.optim.Adam(groups, lr=1e-2, betas=(0.0, 0.9))  # with momentum the two would oscillate
    names = [f"singer{int(one)}" for one in who]
    before = speaker_probe(encoder(clips).detach().numpy(), names, folds=4)
    for step in range(200):
        features = encoder(clips)
        loss = pairwise_logistic(head(features)[:, 0], quality, margin_per_point=0.5)
        loss = loss + adversary_loss(adversary, features, voices[who], weight=weight * ramp(step, 200))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    features = encoder(clips).detach()
    ranked = spearman(quality.numpy(), head(features)[:, 0].detach().numpy())
    return before, speaker_probe(features.numpy(), names, folds=4), ranked


@pytest.mark.parametrize("seed", [0, 1])
def test_the_adversary_lowers_the_linear_probe_accuracy_but_not_spearman(seed: int) -> None:
    before, after, ranked = train(1.0, seed)
    assert before > 0.7
    assert after < 0.5, "chance is 0.125"
    assert ranked > 0.97
    _, without, ranked_without = train(0.0, seed)
    assert without > before - 0.1
    assert ranked_without > 0.97


def clips(singers: list[str | None]) -> list[Clip]:
    return [Clip(f"{row}.wav", 80.0, singer) for row, singer in enumerate(singers)]


def test_distinct_singers_are_identified(toys: Any) -> None:
    split, voices = toys.split(12, 5), torch.randn(3, 5, generator=torch.Generator().manual_seed(1)) * 5
    features = [{**clip, "campplus": voices[row % 3]} for row, clip in enumerate(split.features)]
    found = run_singer_probe(toys.network(), clips([f"s{row % 3}" for row in range(12)]), features)
    assert found is not None
    assert found.accuracy > 0.9
    assert found.singers == 3


def test_clips_without_a_singer_and_singers_with_one_clip_are_left_out(toys: Any) -> None:
    split = toys.split(6, 5)
    found = run_singer_probe(toys.network(), clips(["a", "a", "b", "b", None, "c"]), split.features)
    assert found is not None
    assert found.singers == 2
    assert run_singer_probe(toys.network(), clips(["a", "a", "b", None, None, "c"]), split.features) is None
    assert run_singer_probe(toys.network(), clips([None] * 6), split.features) is None
