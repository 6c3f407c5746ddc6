import numpy as np
import pytest
import torch

from audioscore.scoring.fusion import Fusion, Standardize
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


def test_standardize_is_numpys_and_constant_channels_do_not_blow_up() -> None:
    values = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 3 + 7
    values[:, 2] = 0.1
    norm = Standardize(4)
    norm.fit(values)
    out, reference = norm(values).numpy(), values[:, [0, 1, 3]].double().numpy()
    np.testing.assert_allclose(out[:, [0, 1, 3]], (reference - reference.mean(0)) / reference.std(0), atol=1e-5)
    np.testing.assert_allclose(out[:, 2], 0, atol=1e-6)
    moved = norm(torch.full((1, 4), 0.2)).numpy()
    assert abs(moved[0, 2] - 0.1) < 1e-6


def test_statistics_that_are_known_are_set_as_fitted_ones_are() -> None:
    values = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 3 + 7
    values[:, 2] = 0.1
    fitted, known = Standardize(4), Standardize(4)
    fitted.fit(values)
    known.set(values.mean(0), values.std(0, unbiased=False))
    assert torch.equal(known.mean, fitted.mean)
    assert torch.equal(known.std, fitted.std)
    assert known.std[2] == 1


def test_statistics_travel_with_the_weights_and_are_not_trained() -> None:
    fusion = make(DIMS)
    assert {"norms.muq.mean", "norms.muq.std", "norms.campplus.mean"} <= set(fusion.state_dict())
    assert {name.split(".")[0] for name, _ in fusion.named_parameters()} == {"projections"}
    other = Fusion(DIMS, width=7)
    other.load_state_dict(fusion.state_dict())
    assert torch.equal(other(batch())[0], fusion(batch())[0])
