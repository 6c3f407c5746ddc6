from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from audioscore.errors import UsageError
from audioscore.muq_cpu import matmul as products
from audioscore.muq_cpu.matmul import FastDtype, optimize_module
from audioscore.scoring import head as songeval_head
from audioscore.scoring.fusion import frame_mask
from audioscore.scoring.head import SelfAttention, SongEvalHead

HEADS = 4


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


LENGTHS = [3, 40, 1, 17, 40, 8]


def random_head(dim: int = 16, *, layers: int = 4, dropout: float = 0.3) -> SongEvalHead:
    """In eval mode. Its norms are random too: initial values would hide a superfluous norm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        head = SongEvalHead(dim, 32, heads=HEADS, layers=layers, dropout=dropout).eval()
        for module in head.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    return head


def clips(dim: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [2 * torch.randn(length, dim, generator=generator) for length in LENGTHS]


def padded(parts: list[Tensor], filler: float = 0.0, extra: int = 0) -> tuple[Tensor, Tensor]:
    """Frames and their mask."""
    lengths = torch.tensor([len(part) for part in parts])
    frames = torch.full((len(parts), int(lengths.max()) + extra, parts[0].shape[1]), filler)
    for row, part in enumerate(parts):
        frames[row, : len(part)] = part
    return frames, frame_mask(lengths, frames.shape[1])


def alone(head: SongEvalHead, parts: list[Tensor]) -> Tensor:
    return torch.cat([head(part[None], torch.ones(1, len(part), dtype=torch.bool)) for part in parts])


@torch.inference_mode()
@pytest.mark.parametrize("filler", [0.0, 1e4, float("nan"), float("inf")])
@pytest.mark.parametrize("extra", [0, 60])
def test_the_batch_does_not_change_the_output_of_a_clip(filler: float, extra: int) -> None:
    head, parts = random_head(), clips()
    wanted = alone(head, parts)
    torch.testing.assert_close(head(*padded(parts, filler, extra)), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(head(*padded(parts[::-1], filler, extra)).flip(0), wanted, rtol=0, atol=1e-5)
    assert wanted.shape == (len(LENGTHS), head.representation_dim)
    assert (wanted.std(0) > 0.01).all()


def by_hand(head: SongEvalHead, frames: Tensor) -> np.ndarray:
    """The head for one clip in numpy, float64, one attention head at a time and without a mask."""
    state = {name: value.double().numpy() for name, value in head.state_dict().items()}

    def linear(name: str, values: np.ndarray) -> np.ndarray:
        return np.asarray(values @ state[f"{name}.weight"].T + state[f"{name}.bias"])

    def norm(name: str, values: np.ndarray) -> np.ndarray:
        scaled = (values - values.mean(-1, keepdims=True)) / np.sqrt(values.var(-1, keepdims=True) + 1e-5)
        return np.asarray(scaled * state[f"{name}.weight"] + state[f"{name}.bias"])

    values = linear("feed_forward.2", np.maximum(linear("feed_forward.0", frames.double().numpy()), 0))
    dim = values.shape[1]
    for layer in range(len(head.attentions)):
        inputs = linear(f"attentions.{layer}.inputs", norm(f"norms.{layer}", values))
        query, key, value = (np.split(part, HEADS, axis=1) for part in np.split(inputs, 3, axis=1))
        joined = []
        for q, k, v in zip(query, key, value, strict=True):
            weights = np.exp(q @ k.T / np.sqrt(dim / HEADS))
            joined.append(weights / weights.sum(1, keepdims=True) @ v)
        values = values + linear(f"attentions.{layer}.output", np.concatenate(joined, axis=1))
    values = norm("norm", values)
    return np.concatenate([values.mean(0), values.max(0)])


@torch.inference_mode()
def test_the_output_is_the_closed_form() -> None:
    head, parts = random_head(), clips()
    np.testing.assert_allclose(head(*padded(parts)), [by_hand(head, part) for part in parts], rtol=0, atol=1e-5)


@torch.inference_mode()
def test_attention_equals_torch_multihead_attention() -> None:
    ours = SelfAttention(16, 4).eval()
    reference = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    weights = {"in_proj_weight": ours.inputs.weight, "in_proj_bias": ours.inputs.bias}
    reference.load_state_dict(weights | {"out_proj.weight": ours.output.weight, "out_proj.bias": ours.output.bias})
    frames, mask = padded(clips())
    wanted, _ = reference(frames, frames, frames, key_padding_mask=~mask, need_weights=True)
    torch.testing.assert_close(ours(frames, mask)[mask], wanted[mask], rtol=0, atol=1e-6)


def test_every_parameter_of_every_layer_gets_a_gradient_and_padding_none() -> None:
    head = random_head(dropout=0.0).train()
    frames, mask = padded(clips())
    frames.requires_grad_()
    head(frames, mask).square().sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    assert (frames.grad[~mask] == 0).all()
    assert torch.isfinite(frames.grad).all()
    assert (frames.grad[mask].abs().amax(-1) > 0).all()


def test_dropout_acts_in_training_only() -> None:
    head, batch = random_head(), padded(clips())
    with torch.inference_mode():
        assert torch.equal(head(*batch), head(*batch))
        head.train()
        assert not torch.equal(head(*batch), head(*batch))


@torch.inference_mode()
def test_bfloat16_autocast_and_float64_are_close() -> None:
    head, batch = random_head(), padded(clips())
    wanted = head(*batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near = head(*batch)
    torch.testing.assert_close(near.float(), wanted, rtol=0, atol=0.05)
    exact = head.double()(batch[0].double(), batch[1])
    torch.testing.assert_close(exact.float(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("dim", "heads", "layers"), [(10, 4, 2), (8, 0, 2), (8, 2, 0)])
def test_invalid_sizes_are_refused(dim: int, heads: int, layers: int) -> None:
    with pytest.raises(UsageError, match=rf"\b{dim} channels, {heads} heads, {layers} layers"):
        SongEvalHead(dim, 16, heads=heads, layers=layers)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", ["float32", "int16"])
@pytest.mark.parametrize("held", [1 << 20, 3 * 4 * 60 * 16 // 2, 3 * 4 * 60 * 16 // 3, 1])
def test_groups_of_heads_give_the_same_result(held: int, dtype: FastDtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "MIN_WIDTH", 1)
    attention = optimize_module(SelfAttention(16, 4).eval(), dtype)
    values = torch.randn(2, 30, 16, generator=torch.Generator().manual_seed(0))
    mask = frame_mask(torch.tensor([30, 11]), 30)
    whole, given = attention(values, mask), values.clone()
    monkeypatch.setattr(songeval_head, "HELD_BYTES", held)
    torch.testing.assert_close(attention(values, mask), whole, rtol=0, atol=1e-6)
    assert torch.equal(values, given)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_a_clip_is_the_same_in_a_batch_with_any_dtype(dtype: FastDtype) -> None:
    head = optimize_module(SongEvalHead(256, 512).eval(), dtype)
    lengths = torch.tensor([40, 7, 33, 21])
    frames = torch.randn(4, 40, 256, generator=torch.Generator().manual_seed(0))
    together = head(frames, frame_mask(lengths, 40))
    for clip, length in enumerate(lengths.tolist()):
        alone = head(frames[clip : clip + 1, :length], frame_mask(lengths[clip : clip + 1], length))
        torch.testing.assert_close(together[clip], alone[0], rtol=0, atol=1e-5)
