from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from audioscore.encoders.adapters import add_lora, merge, tune_layers
from audioscore.encoders.compute import Precision
from audioscore.encoders.muq import MIN_SAMPLES, MuQEncoder, load_muq, window_count
from audioscore.encoders.muq_layers import LayerMix, MuQSuffix, prefix_frames, prefix_reference, split_windows
from audioscore.errors import ModelError

DEPTH = 4
HiddenStates = Callable[[Tensor], tuple[Tensor, ...]]


def noise(samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def alone(suffix: nn.Module, frames: Tensor) -> Tensor:
    """Shape: [F, dim] -> [F, dim]."""
    made: Tensor = suffix(frames[None], torch.tensor([len(frames)]))[0]
    return made


def padded(clips: list[Tensor], filler: float) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(clip) for clip in clips])
    return nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=filler), lengths


def adapt(encoder: MuQEncoder, from_layer: int = 0, dropout: float = 0.0) -> list[nn.Parameter]:
    """Add adapters with random weights and return their parameters."""
    names = add_lora(encoder.module, rank=4, alpha=4, dropout=dropout, from_layer=from_layer)
    parameters, generator = dict(encoder.module.named_parameters()), torch.Generator().manual_seed(4)
    for name in names:
        nn.init.normal_(parameters[name], std=0.1 if "lora_B" in name else 0.2, generator=generator)
    return [parameters[name] for name in names]


@pytest.fixture
def encoder(dropout_muq: Path) -> MuQEncoder:
    return load_muq(str(dropout_muq), layer=3)


@pytest.mark.parametrize(("layer", "cut"), [(1, 0), (3, 0), (3, 1), (3, 2), (DEPTH, 0), (DEPTH, 3)])
def test_prefix_and_suffix_equal_the_full_model(
    dropout_muq: Path, full_muq: HiddenStates, layer: int, cut: int
) -> None:
    encoder, wave = load_muq(str(dropout_muq), layer=layer), noise(40_000)
    frames, states = prefix_frames(encoder, wave, cut), full_muq(wave)
    assert torch.equal(frames, states[cut])
    suffix = MuQSuffix(encoder, cut).eval()
    made = suffix.hidden_states(frames[None], torch.tensor([len(frames)]))
    assert len(made) == 1 + layer - cut
    assert all(torch.equal(state[0], wanted) for state, wanted in zip(made, states[cut:], strict=False))
    assert torch.equal(alone(suffix, frames), encoder.frames(wave))


@pytest.mark.parametrize("lengths", [(36_000,), (12_000, 36_000, 24_000)])
def test_training_uses_a_fused_kernel_with_the_same_gradients(encoder: MuQEncoder, lengths: tuple[int, ...]) -> None:
    parameters = adapt(encoder)
    batch, sizes = padded([prefix_frames(encoder, noise(samples, samples), 0) for samples in lengths], 5.0)
    found = []
    for mode in (True, False):  # False: as transformers computes it
        made = MuQSuffix(encoder, 0).train(mode)(batch, sizes)
        found.append((made.detach(), *torch.autograd.grad(made.square().mean(), parameters)))
    for ours, wanted in zip(*found, strict=True):
        assert torch.allclose(ours, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert not torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize("filler", [0.0, 7.0, float("nan")])
@pytest.mark.parametrize(("layer", "cut"), [(3, 1), (DEPTH, 0)])
def test_a_clip_in_a_batch_equals_the_clip_alone(dropout_muq: Path, layer: int, cut: int, filler: float) -> None:
    encoder = load_muq(str(dropout_muq), layer=layer)
    adapt(encoder, cut)
    suffix = MuQSuffix(encoder, cut)
    # Shorter and longer than the convolution's reach of 31 frames, and one of a single frame.
    clips = [prefix_frames(encoder, noise(samples, seed=samples), cut) for samples in (9_000, 60_000, 24_000, 30_000)]
    clips.append(clips[0][:1])
    batch, lengths = padded(clips, filler)
    with torch.no_grad():
        made, states = suffix(batch, lengths), suffix.hidden_states(batch, lengths)
        mixed = LayerMix(len(states))(states)
        assert torch.allclose(mixed, sum(states, torch.zeros(())) / len(states), atol=1e-6)
        assert mixed.shape == (5, max(lengths), encoder.dim)
        for clip, together, length in zip(clips, made, lengths, strict=True):
            assert torch.allclose(together[:length], alone(suffix, clip), rtol=0, atol=1e-5)
            assert torch.equal(together[length:], torch.zeros_like(together[length:]))
        assert not any(row[length:].any() for row, length in zip(mixed, lengths, strict=True))


def test_padding_has_no_gradient(encoder: MuQEncoder) -> None:
    parameters = adapt(encoder, 1)
    suffix = MuQSuffix(encoder, 1)
    clips = [prefix_frames(encoder, noise(samples), 1) for samples in (12_000, 36_000)]
    batch, lengths = padded(clips, 3.0)
    batch.requires_grad_()
    together = torch.autograd.grad(suffix(batch, lengths).square().sum(), [batch, *parameters])
    apart = [torch.autograd.grad(alone(suffix, clip).square().sum(), parameters) for clip in clips]
    assert torch.equal(together[0][0, len(clips[0]) :], torch.zeros(len(clips[1]) - len(clips[0]), encoder.dim))
    for gradient, *parts in zip(together[1:], *apart, strict=True):
        assert torch.allclose(gradient, sum(parts, torch.zeros(())), rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_gives_the_same_gradients(encoder: MuQEncoder, dropout: float) -> None:
    parameters = adapt(encoder, 1, dropout)
    clips = [prefix_frames(encoder, noise(samples), 1) for samples in (12_000, 24_000)]
    batch, lengths = padded(clips, 0.0)
    gradients = []
    for checkpointing in (False, True):
        suffix = MuQSuffix(encoder, 1, checkpointing=checkpointing).train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(8)
            loss = suffix(batch, lengths).square().mean()
            gradients.append((loss.detach(), *torch.autograd.grad(loss, parameters)))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])


def test_checkpointing_uses_less_memory(encoder: MuQEncoder) -> None:
    adapt(encoder, 0)
    frames, lengths = prefix_frames(encoder, noise(48_000), 0)[None], torch.tensor([50])
    bytes_kept = []
    for checkpointing in (False, True):
        kept: dict[int, int] = {}
        suffix = MuQSuffix(encoder, 0, checkpointing=checkpointing)

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            suffix(frames, lengths)
        bytes_kept.append(sum(kept.values()))
    assert bytes_kept[1] < bytes_kept[0] / 4


def test_only_the_adapters_are_trained(encoder: MuQEncoder) -> None:
    names = add_lora(encoder.module, rank=4, alpha=4, from_layer=1)
    suffix = MuQSuffix(encoder, 1).train()
    trained = {name: parameter for name, parameter in suffix.named_parameters() if parameter.requires_grad}
    assert {f"model.conformer.{name}" for name in trained} == set(names)
    frames = prefix_frames(encoder, noise(24_000), 1)
    before = {name: value.clone() for name, value in encoder.module.state_dict().items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        alone(suffix, frames)[:, 0].square().mean().backward()
        optimizer.step()
    after = encoder.module.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(names)
    assert torch.equal(prefix_frames(encoder, noise(24_000), 1), frames)
    suffix.eval()
    assert torch.equal(alone(suffix, frames), encoder.frames(noise(24_000)))


def test_whole_layers_are_tuned(encoder: MuQEncoder) -> None:
    names = tune_layers(encoder.module, from_layer=2)
    suffix = MuQSuffix(encoder, 2).train()
    alone(suffix, prefix_frames(encoder, noise(24_000), 2))[:, 0].square().mean().backward()
    tuned = {f"model.conformer.{name}" for name, part in suffix.named_parameters() if part.grad is not None}
    assert tuned == set(names)


def test_merged_adapters_are_in_the_suffix(encoder: MuQEncoder) -> None:
    adapt(encoder, 1)
    suffix, frames = MuQSuffix(encoder, 1), prefix_frames(encoder, noise(24_000), 1)
    before = alone(suffix, frames).detach()
    merge(encoder.module)
    assert (alone(suffix, frames) - before).norm() < 1e-6 * before.norm()
    assert not any("lora" in name for name, _ in suffix.named_parameters())


def test_bfloat16_autocast_is_close_and_masks(encoder: MuQEncoder) -> None:
    suffix = MuQSuffix(encoder, 0)
    clips = [prefix_frames(encoder, noise(samples), 0) for samples in (12_000, 36_000)]
    batch, lengths = padded(clips, 5.0)
    with torch.no_grad():
        exact = [alone(suffix, clip) for clip in clips]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            made = suffix(batch, lengths)
    for clip, together in zip(exact, made, strict=True):
        assert (together[: len(clip)] - clip).norm() < 0.05 * clip.norm()


@pytest.mark.parametrize("samples", [48_000, 48_001, 48_479, 48_480, 48_961, 96_001, 130_001, 191_999, 193_438])
def test_a_long_recording_is_split_into_its_windows(dropout_muq: Path, samples: int) -> None:
    encoder = load_muq(str(dropout_muq), layer=3, window_seconds=2.0)
    wave = noise(samples)
    windows = torch.tensor_split(wave, -(-samples // 48_000))
    parts = split_windows(prefix_frames(encoder, wave, 1), samples, encoder.window)
    assert len(parts) == len(windows)
    assert all(map(torch.equal, parts, [prefix_frames(encoder, window, 1) for window in windows]))
    suffix = MuQSuffix(encoder, 1)
    with torch.no_grad():
        assert torch.equal(torch.cat([alone(suffix, part) for part in parts]), encoder.frames(wave))


@pytest.mark.parametrize("cut", [0, 2])
def test_without_windows_any_length_is_encoded(dropout_muq: Path, full_muq: HiddenStates, cut: int) -> None:
    encoder, wave = load_muq(str(dropout_muq), layer=3, window_seconds=None), noise(35 * 24_000)
    frames = prefix_frames(encoder, wave, cut)
    (only,) = split_windows(frames, len(wave), encoder.window)
    suffix = MuQSuffix(encoder, cut)
    with torch.no_grad():
        assert torch.equal(alone(suffix, only), full_muq(wave)[3])
    assert suffix.state_dict().keys() == MuQSuffix(load_muq(str(dropout_muq), layer=3), cut).state_dict().keys()
    assert prefix_reference(encoder.reference, cut).key.endswith(f"-l{cut}-e1-whole")


def test_without_windows_a_batch_equals_its_clips_and_trains(dropout_muq: Path) -> None:
    encoder = load_muq(str(dropout_muq), layer=3, window_seconds=None)
    parameters = adapt(encoder, 1)
    suffix = MuQSuffix(encoder, 1, checkpointing=True)
    clips = [prefix_frames(encoder, noise(samples), 1) for samples in (12_000, 32 * 24_000)]
    made = suffix(*padded(clips, 9.0))
    for clip, row in zip(clips, made, strict=True):
        torch.testing.assert_close(row[: len(clip)], alone(suffix, clip), rtol=1e-4, atol=1e-5)
    made.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in parameters)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_prefix_uses_the_encoders_precision(dropout_muq: Path, encoder: MuQEncoder, precision: Precision) -> None:
    loaded = load_muq(str(dropout_muq), layer=3)
    lower = MuQEncoder(loaded.module, 3, replace(loaded.reference, precision=precision), dropout_muq)
    frames, wanted = prefix_frames(lower, noise(24_000), 2), prefix_frames(encoder, noise(24_000), 2)
    assert frames.dtype == torch.float32
    assert 0 < (frames - wanted).norm() < 0.05 * wanted.norm()
    assert prefix_reference(lower.reference, 2).key == f"{prefix_reference(encoder.reference, 2).key}-{precision}"
    shallow = load_muq(str(dropout_muq), layer=2)
    assert prefix_reference(encoder.reference, 2) == shallow.reference
    assert torch.equal(wanted, shallow.frames(noise(24_000)))
    assert prefix_reference(encoder.reference, 0).key.endswith("-l0-e1")


def test_windows_are_split_for_every_length() -> None:
    """n samples make ceil(floor(n / 240) / 4) frames, and windows differ by one sample at most."""
    for samples in range(720_000 - 2_000, 12 * 720_000, 997):
        windows = [len(part) for part in torch.tensor_split(torch.empty(samples, device="meta"), window_count(samples))]
        wanted = [-(-(window // 240) // 4) for window in windows]
        joined = torch.empty(sum(wanted), 1, device="meta")
        assert [len(part) for part in split_windows(joined, samples)] == wanted, samples


def test_a_mix_starts_even_and_learns_every_weight() -> None:
    states = [noise(12, seed).reshape(1, 4, 3) for seed in range(5)]
    mix = LayerMix(5)
    assert torch.allclose(mix(states), torch.stack(states).mean(dim=0), atol=1e-7)
    mix(states).square().sum().backward()
    assert mix.logits.grad is not None
    assert (mix.logits.grad.abs() > 1e-6).all()
    with torch.no_grad():
        mix.logits[3] = 100.0
    assert torch.allclose(mix(states), states[3], atol=1e-7)
    with pytest.raises(ValueError, match=r"\b5\b.*\b4$"):
        mix(states[:4])


def test_invalid_lengths_layers_and_positions_are_refused(encoder: MuQEncoder) -> None:
    suffix = MuQSuffix(encoder, 1)
    with pytest.raises(ModelError, match=r"\b758\b.*\b759\b"):
        alone(suffix, torch.zeros(759, encoder.dim))
    with pytest.raises(ModelError, match=r"\b6000\b.*\[5999\]"):
        prefix_frames(encoder, torch.zeros(MIN_SAMPLES - 1), 1)
    frames = torch.zeros(2, 5, encoder.dim)
    for lengths, shown in (([5, 6], "2 from 5 to 6"), ([0, 5], "2 from 0 to 5"), ([5], "1 from 5 to 5")):
        with pytest.raises(ValueError, match=rf"^2 clips .*\b5 frames .* 1 to 5; .*\b{shown}$"):
            suffix(frames, torch.tensor(lengths))
    for cut in (-1, 3):
        for make in (lambda cut: MuQSuffix(encoder, cut), lambda cut: prefix_frames(encoder, noise(24_000), cut)):
            with pytest.raises(ModelError, match=rf"layer {cut}: .*\b0 to 2\."):
                make(cut)
    encoder.module.model.conformer.config.position_embeddings_type = "relative"
    with pytest.raises(ModelError, match=r"relative.*rotary"):
        MuQSuffix(encoder, 0)
