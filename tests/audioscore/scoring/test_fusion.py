from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from audioscore.scoring import fusion as fusion_module
from audioscore.scoring.fusion import (
    AttentionPool,
    Fusion,
    Standardize,
    frame_mask,
    framewise,
    masked_max,
    masked_mean,
    masked_std,
    without_padding,
)
from audioscore.scoring.head import SongEvalHead
from audioscore.scoring.legacy.model import CLASSES, LegacyScoreHead
from audioscore.scoring.network import Batch

DIMS = {"muq": 6, "campplus": 5}
LENGTHS = torch.tensor([4, 9, 1])


def batch(*, muq: bool = True, campplus: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(0)
    frames, embedding = torch.randn(3, 9, 6, generator=generator), torch.randn(3, 5, generator=generator)
    lengths = LENGTHS if muq else torch.ones(3, dtype=torch.long)
    return Batch(lengths, frames if muq else None, embedding if campplus else None)


def make(dims: dict[str, int], *, pooled: bool = False) -> Fusion:
    """A fusion with random statistics, so that a missing normalisation changes the output."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        fusion = Fusion(dims, width=7, pooled=pooled)
        for name, dim in dims.items():
            norm = fusion.norms[name]
            assert isinstance(norm, Standardize)
            norm.set(torch.randn(dim), 0.5 + torch.rand(dim))
    return fusion


def by_hand(fusion: Fusion, name: str, values: torch.Tensor) -> np.ndarray:
    """A branch in numpy, float64: standardised, then projected."""
    state = {key: value.double().numpy() for key, value in fusion.state_dict().items()}
    scaled = (values.double().numpy() - state[f"norms.{name}.mean"]) / state[f"norms.{name}.std"]
    return np.asarray(scaled @ state[f"projections.{name}.weight"].T + state[f"projections.{name}.bias"])


@torch.inference_mode()
def test_the_voice_is_concatenated_to_every_frame() -> None:
    fusion, given = make(DIMS), batch()
    joint, mask, voice = fusion(given)
    assert (fusion.frame_dim, fusion.voice_dim, voice) == (14, 0, None)
    assert joint.shape == (3, 9, 14)
    np.testing.assert_allclose(joint[..., :7], by_hand(fusion, "muq", given.frames), atol=1e-5)
    wanted = np.repeat(by_hand(fusion, "campplus", given.embedding)[:, None], 9, axis=1)
    np.testing.assert_allclose(joint[..., 7:], wanted, atol=1e-5)
    assert (mask.sum(1).tolist(), mask[0].tolist()) == (LENGTHS.tolist(), [True] * 4 + [False] * 5)


@torch.inference_mode()
def test_pooled_the_voice_is_separate() -> None:
    fusion, given = make(DIMS, pooled=True), batch()
    joint, mask, voice = fusion(given)
    assert (fusion.frame_dim, fusion.voice_dim) == (7, 7)
    np.testing.assert_allclose(joint, by_hand(fusion, "muq", given.frames), atol=1e-5)
    np.testing.assert_allclose(voice, by_hand(fusion, "campplus", given.embedding), atol=1e-5)
    assert mask.sum(1).tolist() == LENGTHS.tolist()


@torch.inference_mode()
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("name", ["muq", "campplus"])
def test_one_branch_is_never_pooled(name: str, pooled: bool) -> None:
    fusion, given = make({name: DIMS[name]}, pooled=pooled), batch(muq=name == "muq", campplus=name == "campplus")
    joint, mask, voice = fusion(given)
    assert (fusion.frame_dim, fusion.voice_dim, voice) == (7, 0, None)
    values = given.frames if given.frames is not None else given.embedding
    wanted = by_hand(fusion, name, values)
    np.testing.assert_allclose(joint, wanted if name == "muq" else wanted[:, None], atol=1e-5)
    assert mask.sum(1).tolist() == (LENGTHS.tolist() if name == "muq" else [1, 1, 1])


@torch.inference_mode()
def test_a_batch_without_frames() -> None:
    fusion = make({"campplus": 5})
    joint, _, _ = fusion(Batch(torch.ones(3, dtype=torch.long), None, batch().embedding))
    assert torch.equal(joint, fusion(batch(muq=False))[0])


@pytest.mark.parametrize("dims", [{}, {"wav2vec": 4}, {"muq": 4, "pitch": 1}])
def test_unknown_branches_are_refused_by_name(dims: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=rf"muq .*campplus.*\[{str(sorted(dims))[1:-1]}\]"):
        Fusion(dims, width=8)


def test_standardize_equals_numpy_and_constant_channels_stay_finite() -> None:
    values = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 3 + 7
    values[:, 2] = 0.1
    norm = Standardize(4)
    norm.fit(values)
    out, reference = norm(values).numpy(), values[:, [0, 1, 3]].double().numpy()
    np.testing.assert_allclose(out[:, [0, 1, 3]], (reference - reference.mean(0)) / reference.std(0), atol=1e-5)
    np.testing.assert_allclose(out[:, 2], 0, atol=1e-6)
    moved = norm(torch.full((1, 4), 0.2)).numpy()
    assert abs(moved[0, 2] - 0.1) < 1e-6


def test_set_statistics_equal_fitted_statistics() -> None:
    values = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 3 + 7
    values[:, 2] = 0.1
    fitted, known = Standardize(4), Standardize(4)
    fitted.fit(values)
    known.set(values.mean(0), values.std(0, unbiased=False))
    assert torch.equal(known.mean, fitted.mean)
    assert torch.equal(known.std, fitted.std)
    assert known.std[2] == 1


def test_statistics_are_saved_with_the_weights_and_not_trained() -> None:
    fusion = make(DIMS)
    assert {"norms.muq.mean", "norms.muq.std", "norms.campplus.mean"} <= set(fusion.state_dict())
    assert {name.split(".")[0] for name, _ in fusion.named_parameters()} == {"projections"}
    other = Fusion(DIMS, width=7)
    other.load_state_dict(fusion.state_dict())
    assert torch.equal(other(batch())[0], fusion(batch())[0])


COUNTS = [3, 7, 1]


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0))


def test_the_mask_is_true_for_real_frames_only() -> None:
    assert frame_mask(torch.tensor(COUNTS), 7).sum(1).tolist() == COUNTS
    assert frame_mask(torch.tensor([2]), 3).tolist() == [[True, True, False]]


def test_padding_becomes_zero_and_full_batches_are_not_copied(frames: torch.Tensor) -> None:
    mask = frame_mask(torch.tensor(COUNTS), 7)
    kept = without_padding(frames.masked_fill(~mask[..., None], float("nan")), mask)
    assert torch.equal(kept, frames * mask[..., None])
    with torch.no_grad():
        assert without_padding(frames, torch.ones_like(mask)) is frames


def test_mean_and_deviation_equal_numpy_over_real_frames(frames: torch.Tensor) -> None:
    mask = frame_mask(torch.tensor(COUNTS), 7)
    means, deviations = masked_mean(frames, mask).numpy(), masked_std(frames, mask).numpy()
    for row, length in enumerate(COUNTS):
        real = frames[row, :length].double().numpy()
        np.testing.assert_allclose(means[row], real.mean(0), atol=1e-6)
        np.testing.assert_allclose(deviations[row], np.sqrt(real.var(0) + 1e-6), atol=1e-5)


def test_the_maximum_equals_numpy_over_real_frames(frames: torch.Tensor) -> None:
    largest = masked_max(frames - 10, frame_mask(torch.tensor(COUNTS), 7)).numpy()
    for row, length in enumerate(COUNTS):
        np.testing.assert_array_equal(largest[row], (frames[row, :length] - 10).numpy().max(0))


def test_attention_is_the_closed_form_softmax_mean(frames: torch.Tensor) -> None:
    pool = AttentionPool(4)
    pooled = pool(frames, frame_mask(torch.tensor(COUNTS), 7)).detach().double().numpy()
    weight, bias = pool.score.weight.detach().double().numpy()[0], float(pool.score.bias.detach())
    for row, length in enumerate(COUNTS):
        real = frames[row, :length].double().numpy()
        weights = np.exp(real @ weight + bias)
        np.testing.assert_allclose(pooled[row], (weights / weights.sum()) @ real, atol=1e-5)


def test_constant_channels_have_a_finite_gradient() -> None:
    for pooled in (masked_std, masked_max):
        values = torch.ones(2, 5, 3, requires_grad=True)
        pooled(values, frame_mask(torch.tensor([5, 2]), 5)).sum().backward()
        assert torch.isfinite(values.grad).all()


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def widths(head: nn.Module) -> list[int]:
    """A list that records the frames in each call of its linear layers, except the last one."""
    seen: list[int] = []
    for part in head.modules():
        if isinstance(part, nn.Linear) and part.out_features != CLASSES:
            part.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[0]))
    return seen


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 7, 8, 9, 24, 31])
@pytest.mark.parametrize("clips", [1, 3])
def test_pieces_give_the_same_result_as_the_whole(frames: int, clips: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion_module, "PIECE_FRAMES", 8)
    layer, seen = nn.Linear(4, 6), list[int]()
    values = random(clips, frames, 2, 2).transpose(2, 3)

    def counted(piece: Tensor) -> Tensor:
        seen.append(piece.numel() // 4)
        made: Tensor = layer(piece.flatten(-2))
        return made

    torch.testing.assert_close(framewise(counted, values), layer(values.flatten(-2)))
    assert sum(seen) == clips * frames
    assert max(seen) <= 8


@torch.no_grad()
@pytest.mark.parametrize("frames", [3, 8, 21])
def test_in_place_the_values_are_overwritten(frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion_module, "PIECE_FRAMES", 8)
    layer, values = nn.Linear(4, 4), random(2, frames, 4)
    whole = layer(values)
    made = framewise(layer, values, in_place=True)
    torch.testing.assert_close(made, whole)
    assert (made.data_ptr() == values.data_ptr()) == (2 * frames > 8)


def test_in_place_needs_equal_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion_module, "PIECE_FRAMES", 8)
    with torch.no_grad(), pytest.raises(ValueError, match=r"\(4,\) .*\(2,\)"):
        framewise(nn.Linear(4, 2), torch.zeros(1, 24, 4), in_place=True)


def test_gradients_are_those_of_a_single_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion_module, "PIECE_FRAMES", 2)
    layer, values = nn.Linear(4, 6), torch.ones(1, 5, 4, requires_grad=True)
    framewise(layer, values).sum().backward()
    torch.testing.assert_close(values.grad[0], layer.weight.sum(0).expand(5, 4))


@torch.inference_mode()
def test_the_legacy_head_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    head = LegacyScoreHead(16, 32).eval()
    batch = Batch(torch.tensor([50, 31]), random(2, 50, 16))
    whole = head(batch)
    monkeypatch.setattr(fusion_module, "PIECE_FRAMES", 8)
    seen = widths(head)
    torch.testing.assert_close(head(batch), whole, rtol=0, atol=1e-6)
    assert max(seen) == 8


@torch.inference_mode()
def test_the_songeval_head_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    head = SongEvalHead(16, 32, heads=4).eval()
    frames, mask = random(2, 50, 16), frame_mask(torch.tensor([50, 31]), 50)
    whole = head(frames, mask)
    monkeypatch.setattr(fusion_module, "PIECE_FRAMES", 8)
    seen = widths(head)
    torch.testing.assert_close(head(frames, mask), whole, rtol=0, atol=1e-5)
    assert max(seen) == 8
