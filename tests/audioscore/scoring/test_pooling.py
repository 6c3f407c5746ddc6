import numpy as np
import pytest
import torch

from audioscore.scoring.fusion import AttentionPool, frame_mask, masked_max, masked_mean, masked_std, without_padding

LENGTHS = [3, 7, 1]


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0))


def test_the_mask_is_true_for_real_frames_only() -> None:
    assert frame_mask(torch.tensor(LENGTHS), 7).sum(1).tolist() == LENGTHS
    assert frame_mask(torch.tensor([2]), 3).tolist() == [[True, True, False]]


def test_padding_becomes_zero_and_full_batches_are_not_copied(frames: torch.Tensor) -> None:
    mask = frame_mask(torch.tensor(LENGTHS), 7)
    kept = without_padding(frames.masked_fill(~mask[..., None], float("nan")), mask)
    assert torch.equal(kept, frames * mask[..., None])
    with torch.no_grad():
        assert without_padding(frames, torch.ones_like(mask)) is frames


def test_mean_and_deviation_are_numpys_over_the_real_frames(frames: torch.Tensor) -> None:
    mask = frame_mask(torch.tensor(LENGTHS), 7)
    means, deviations = masked_mean(frames, mask).numpy(), masked_std(frames, mask).numpy()
    for row, length in enumerate(LENGTHS):
        real = frames[row, :length].double().numpy()
        np.testing.assert_allclose(means[row], real.mean(0), atol=1e-6)
        np.testing.assert_allclose(deviations[row], np.sqrt(real.var(0) + 1e-6), atol=1e-5)


def test_the_maximum_is_numpys_over_the_real_frames_negative_ones_too(frames: torch.Tensor) -> None:
    largest = masked_max(frames - 10, frame_mask(torch.tensor(LENGTHS), 7)).numpy()
    for row, length in enumerate(LENGTHS):
        np.testing.assert_array_equal(largest[row], (frames[row, :length] - 10).numpy().max(0))


def test_attention_is_the_closed_form_softmax_mean(frames: torch.Tensor) -> None:
    pool = AttentionPool(4)
    pooled = pool(frames, frame_mask(torch.tensor(LENGTHS), 7)).detach().double().numpy()
    weight, bias = pool.score.weight.detach().double().numpy()[0], float(pool.score.bias.detach())
    for row, length in enumerate(LENGTHS):
        real = frames[row, :length].double().numpy()
        weights = np.exp(real @ weight + bias)
        np.testing.assert_allclose(pooled[row], (weights / weights.sum()) @ real, atol=1e-5)


def test_constant_channels_have_a_finite_gradient() -> None:
    for pooled in (masked_std, masked_max):
        values = torch.ones(2, 5, 3, requires_grad=True)
        pooled(values, frame_mask(torch.tensor([5, 2]), 5)).sum().backward()
        assert torch.isfinite(values.grad).all()
