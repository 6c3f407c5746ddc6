import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from audioscore.encoders.ge2e import BATCH, ge2e_mel, load_ge2e, partials
from audioscore.encoders.quiet import quiet_imports
from audioscore.errors import AudioError, ModelError
from audioscore.files import sha256_of

with quiet_imports():
    import librosa

Checkpoint = dict[str, Any]


def noise(samples: int, seed: int = 0, level: float = 0.1) -> Tensor:
    return level * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def checkpoint(hidden: int = 16, dim: int = 24, layers: int = 3, bands: int = 40) -> Checkpoint:
    """Resemblyzer's published layout, with random weights and what lies beside them."""
    draw = torch.Generator().manual_seed(7)
    state = {"similarity_weight": torch.tensor([10.0]), "similarity_bias": torch.tensor([-5.0])}
    for layer in range(layers):
        for part, size in (("weight_ih", bands if layer == 0 else hidden), ("weight_hh", hidden)):
            state[f"lstm.{part}_l{layer}"] = 0.5 * torch.randn(4 * hidden, size, generator=draw)
        for part in ("bias_ih", "bias_hh"):
            state[f"lstm.{part}_l{layer}"] = 0.5 * torch.randn(4 * hidden, generator=draw)
    state["linear.weight"] = torch.randn(dim, hidden, generator=draw)
    state["linear.bias"] = 0.2 * torch.randn(dim, generator=draw)
    return {"step": 3, "model_state": state, "optimizer_state": {"state": {}, "param_groups": [{"lr": 1e-4}]}}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.save(checkpoint(), tmp_path / "pretrained.pt")
    return tmp_path / "pretrained.pt"


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-x))


def slow_lstm(frames: NDArray[np.float64], weights: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """One layer, frame by frame. Shape: [F, D] -> [F, H]."""
    into, again, bias, more = weights
    h = c = np.zeros(again.shape[1])
    out = []
    for frame in frames:
        i, f, g, o = np.split(into @ frame + bias + again @ h + more, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        out.append(h)
    return np.array(out)


def slow_embedding(state: dict[str, Tensor], wave: NDArray[np.float64], starts: list[int]) -> NDArray[np.float64]:
    """Resemblyzer's computation, spelled out on librosa's features."""
    w = {name: value.double().numpy() for name, value in state.items()}
    wave = wave * max(1.0, 10 ** (-30 / 20) / np.sqrt(np.mean(wave**2)))
    wave = np.pad(wave, (0, max(0, (starts[-1] + 160) * 160 - len(wave))))
    mel = librosa.feature.melspectrogram(
        y=wave, sr=16_000, n_fft=400, hop_length=160, n_mels=w["lstm.weight_ih_l0"].shape[1]
    ).T
    heard = []
    for start in starts:
        frames = mel[start : start + 160]
        for layer in range(sum("weight_hh" in name for name in w)):
            names = [f"lstm.{part}_l{layer}" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            frames = slow_lstm(frames, [w[name] for name in names])
        out = np.maximum(w["linear.weight"] @ frames[-1] + w["linear.bias"], 0)
        heard.append(out / np.linalg.norm(out))
    mean = np.mean(heard, axis=0)
    return np.asarray(mean / np.linalg.norm(mean))


@pytest.mark.parametrize(
    ("samples", "level", "starts"),
    [(8_000, 0.1, [0]), (31_000, 0.1, [0]), (32_000, 0.001, [0, 77]), (48_000, 0.4, [0, 77, 154])],
)
def test_an_embedding_is_resemblyzers(source: Path, samples: int, level: float, starts: list[int]) -> None:
    wave = noise(samples, level=level)
    assert partials(samples) == starts
    wanted = slow_embedding(checkpoint()["model_state"], wave.double().numpy(), starts)
    embedding = load_ge2e(source).embedding(wave)
    assert embedding.dtype == torch.float32
    np.testing.assert_allclose(embedding.numpy(), wanted, atol=2e-6)
    assert embedding.norm().item() == pytest.approx(1.0, abs=1e-6)
    assert embedding.min() >= 0


def test_a_quiet_recording_is_raised_and_a_loud_one_left(source: Path) -> None:
    encoder, wave = load_ge2e(source), noise(20_000)
    torch.testing.assert_close(encoder.embedding(0.02 * wave), encoder.embedding(0.002 * wave))
    assert (encoder.embedding(wave) - encoder.embedding(4 * wave)).abs().max() > 1e-3


def test_sizes_are_read_from_the_weights(tmp_path: Path) -> None:
    torch.save(checkpoint(hidden=8, dim=10, layers=2, bands=20), tmp_path / "small.pt")
    encoder = load_ge2e(tmp_path / "small.pt")
    wave = noise(16_000)
    wanted = slow_embedding(checkpoint(8, 10, 2, 20)["model_state"], wave.double().numpy(), [0])
    assert encoder.dim == 10
    np.testing.assert_allclose(encoder.embedding(wave).numpy(), wanted, atol=2e-6)


def test_partials_of_a_long_recording_are_heard_in_several_passes(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave, encoder = noise(80_000), load_ge2e(source)
    assert 2 < len(partials(len(wave))) < BATCH
    wanted = encoder.embedding(wave)
    monkeypatch.setattr("audioscore.encoders.ge2e.BATCH", 2)
    torch.testing.assert_close(encoder.embedding(wave), wanted)


def test_frozen_hashed_and_the_same_twice(source: Path) -> None:
    encoder = load_ge2e(source)
    assert not any(parameter.requires_grad for parameter in encoder.module.parameters())
    assert not encoder.module.training
    assert encoder.reference.sha256 == sha256_of(source)
    assert torch.equal(encoder.embedding(noise(9_000)), load_ge2e(source).embedding(noise(9_000)))


def test_loading_leaves_the_callers_chance_alone(source: Path) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    load_ge2e(source)
    assert torch.equal(torch.rand(3), wanted)


def test_partials_cover_a_recording() -> None:
    for samples in range(4_000, 100_000, 997):
        starts = partials(samples)
        assert starts == list(range(0, starts[-1] + 1, 77))
        assert starts[-1] == 0 or samples - starts[-1] * 160 >= 0.75 * 25_600
    assert ge2e_mel(noise(8_000), [0]).shape == (1, 160, 40)


def test_a_missing_a_surplus_and_a_misshapen_weight_are_named(source: Path) -> None:
    state = checkpoint()["model_state"]
    torch.save({"model_state": {k: v for k, v in state.items() if k != "lstm.bias_hh_l1"}}, source)
    with pytest.raises(ModelError, match=r"pretrained\.pt: lacks lstm\.bias_hh_l1\. Give the published checkpoint\.$"):
        load_ge2e(source)
    torch.save({"model_state": {**state, "more": torch.zeros(1)}}, source)
    with pytest.raises(ModelError, match=r"pretrained\.pt: also has more\."):
        load_ge2e(source)
    torch.save({"model_state": {**state, "lstm.weight_ih_l1": torch.zeros(64, 3)}}, source)
    with pytest.raises(ModelError, match=r"size mismatch for lstm\.weight_ih_l1"):
        load_ge2e(source)
    torch.save({"model_state": {**state, "linear.weight": torch.zeros(3)}}, source)
    with pytest.raises(ModelError, match="its weights are no matrices"):
        load_ge2e(source)
    torch.save({"model_state": {**state, "linear.bias": torch.full((24,), math.nan)}}, source)
    with pytest.raises(ModelError, match=r"linear\.bias not finite"):
        load_ge2e(source)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"state": {}}, "state"),
        ({"model_state": 3}, "model_state"),
        ([1], "list"),
        ({"model_state": {"a": 1}}, "model"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(source: Path, value: object, found: str) -> None:
    torch.save(value, source)
    with pytest.raises(ModelError, match=rf"has no named tensors under 'model_state', but {found}"):
        load_ge2e(source)


class Harmful:
    """What a pickle may hold: an instruction."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_a_checkpoint_with_instructions_is_refused_and_not_run(source: Path, tmp_path: Path) -> None:
    torch.save({**checkpoint(), "more": Harmful(tmp_path / "was-run")}, source)
    with pytest.raises(ModelError, match="is not a weights-only checkpoint, and is not opened"):
        load_ge2e(source)
    assert not (tmp_path / "was-run").exists()


def test_a_missing_and_a_cut_file_are_refused(source: Path) -> None:
    source.write_bytes(source.read_bytes()[:500])
    with pytest.raises(ModelError, match=r"pretrained\.pt"):
        load_ge2e(source)
    source.unlink()
    with pytest.raises(ModelError, match=r"pretrained\.pt: no such file"):
        load_ge2e(source)


@pytest.mark.parametrize("shape", [(3_999,), (0,), (1, 16_000)])
def test_a_wave_too_short_or_of_two_dimensions_is_refused(source: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"at least 4000 samples at 16 kHz; got \[.*\]\.$"):
        load_ge2e(source).embedding(torch.zeros(shape))


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_silent_or_broken_wave_has_no_speaker(source: Path, value: float) -> None:
    with pytest.raises(AudioError, match="silent or not finite has no speaker"):
        load_ge2e(source).embedding(torch.full((8_000,), value))


@pytest.mark.services
def test_the_published_weights_tell_singers_apart() -> None:
    """Resemblyzer's own file; installed without its dependencies, none of which is needed."""
    found = importlib.util.find_spec("resemblyzer")
    assert found is not None, "`make test-services` installs requirements/services.txt first"
    assert found.origin is not None
    from audioscore.data.synthesis.exercises import exercises

    with quiet_imports():
        import soxr

    encoder, voices, singers = load_ge2e(Path(found.origin).parent / "pretrained.pt"), [], []
    for sung in exercises(8, 4, 5.0, seed=3):
        voices.append(encoder.embedding(torch.from_numpy(soxr.resample(sung.wave, 24_000, 16_000))).numpy())
        singers.append(sung.singer.singer_id)
    who, alike = np.array(singers), np.array(voices) @ np.array(voices).T
    same = (who[:, None] == who) & ~np.eye(len(who), dtype=bool)
    assert encoder.dim == 256
    assert alike[same].mean() > alike[who[:, None] != who].mean() + 0.03
