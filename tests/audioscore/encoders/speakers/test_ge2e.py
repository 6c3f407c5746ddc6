import importlib.util
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from audioscore.demo.pretrain import pretraining_clips
from audioscore.encoders.compute import quiet_imports
from audioscore.encoders.speakers.ge2e import BATCH, ge2e_mel, load_ge2e, partials
from audioscore.errors import AudioError, ModelError
from audioscore.files import sha256_of

with quiet_imports():
    import librosa
    import soxr

Checkpoint = dict[str, Any]


def noise(samples: int, seed: int = 0, level: float = 0.1) -> Tensor:
    return level * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def checkpoint(hidden: int = 16, dim: int = 24, layers: int = 3, bands: int = 40) -> Checkpoint:
    """Resemblyzer's published layout with random weights."""
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
    """Resemblyzer's computation on librosa's features."""
    w = {name: value.double().numpy() for name, value in state.items()}
    wave = wave * max(1.0, 10 ** (-30 / 20) / np.sqrt(np.mean(wave**2)))
    wave = np.pad(wave, (0, max(0, (starts[-1] + 160) * 160 - len(wave))))
    mel = librosa.feature.melspectrogram(
        y=wave, sr=16_000, n_fft=400, hop_length=160, n_mels=w["lstm.weight_ih_l0"].shape[1]
    ).T
    parts = []
    for start in starts:
        frames = mel[start : start + 160]
        for layer in range(sum("weight_hh" in name for name in w)):
            names = [f"lstm.{part}_l{layer}" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            frames = slow_lstm(frames, [w[name] for name in names])
        out = np.maximum(w["linear.weight"] @ frames[-1] + w["linear.bias"], 0)
        parts.append(out / np.linalg.norm(out))
    mean = np.mean(parts, axis=0)
    return np.asarray(mean / np.linalg.norm(mean))


@pytest.mark.parametrize(
    ("samples", "level", "starts", "sizes"),
    [
        (8_000, 0.1, [0], {}), (31_000, 0.1, [0], {}), (32_000, 0.001, [0, 77], {}), (48_000, 0.4, [0, 77, 154], {}),
        (16_000, 0.1, [0], {"hidden": 8, "dim": 10, "layers": 2, "bands": 20}),
    ],
)  # fmt: skip
def test_an_embedding_equals_resemblyzers(
    source: Path, samples: int, level: float, starts: list[int], sizes: dict[str, int]
) -> None:
    wave = noise(samples, level=level)
    torch.save(checkpoint(**sizes), source)
    assert partials(samples) == starts
    wanted = slow_embedding(checkpoint(**sizes)["model_state"], wave.double().numpy(), starts)
    encoder = load_ge2e(source)
    embedding = encoder.embedding(wave)
    assert embedding.dtype == torch.float32
    np.testing.assert_allclose(embedding.numpy(), wanted, atol=2e-6)
    assert (encoder.dim, embedding.norm().item()) == (sizes.get("dim", 24), pytest.approx(1.0, abs=1e-6))
    assert embedding.min() >= 0
    # A quiet recording is amplified, a loud one is not.
    torch.testing.assert_close(encoder.embedding(0.02 * wave), encoder.embedding(0.002 * wave))
    assert level < 0.1 or sizes or (embedding - encoder.embedding(4 * wave)).abs().max() > 1e-3


def test_a_long_recording_is_encoded_in_batches(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wave, encoder = noise(80_000), load_ge2e(source)
    assert 2 < len(partials(len(wave))) < BATCH
    wanted = encoder.embedding(wave)
    monkeypatch.setattr("audioscore.encoders.speakers.ge2e.BATCH", 2)
    torch.testing.assert_close(encoder.embedding(wave), wanted)


def test_loading_is_frozen_hashed_and_deterministic(source: Path, global_rng: Callable[[], object]) -> None:
    before = global_rng()
    encoder = load_ge2e(source)
    assert global_rng() == before
    assert not any(parameter.requires_grad for parameter in encoder.module.parameters())
    assert not encoder.module.training
    assert encoder.reference.sha256 == sha256_of(source)
    assert torch.equal(encoder.embedding(noise(9_000)), load_ge2e(source).embedding(noise(9_000)))


def test_partials_cover_a_recording() -> None:
    for samples in range(4_000, 100_000, 997):
        starts = partials(samples)
        assert starts == list(range(0, starts[-1] + 1, 77))
        assert starts[-1] == 0 or samples - starts[-1] * 160 >= 0.75 * 25_600
    assert ge2e_mel(noise(8_000), [0]).shape == (1, 160, 40)


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("lstm.bias_hh_l1", None, r"pretrained\.pt: .*lstm\.bias_hh_l1\."),
        ("more", torch.zeros(1), r"pretrained\.pt: .* more\."),
        ("lstm.weight_ih_l1", torch.zeros(64, 3), r"lstm\.weight_ih_l1"),
        ("linear.weight", torch.zeros(3), "matrices"),
        ("linear.bias", torch.full((24,), math.nan), r"linear\.bias .*finite"),
    ],
)
def test_weights_that_do_not_fit_are_named(source: Path, name: str, value: Tensor | None, shown: str) -> None:
    state = {**checkpoint()["model_state"], name: value}
    torch.save({"model_state": {key: old for key, old in state.items() if old is not None}}, source)
    with pytest.raises(ModelError, match=shown):
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
def test_a_wrong_checkpoint_is_refused(source: Path, value: object, found: str) -> None:
    torch.save(value, source)
    with pytest.raises(ModelError, match=rf"'model_state', but {found}"):
        load_ge2e(source)
    for content in (source.read_bytes()[:100], None):
        source.write_bytes(content) if content else source.unlink()
        with pytest.raises(ModelError, match=r"pretrained\.pt"):
            load_ge2e(source)


def test_a_checkpoint_with_instructions_is_not_run(source: Path, harmful: Any) -> None:
    torch.save({**checkpoint(), "more": harmful}, source)
    with pytest.raises(ModelError, match="weights-only"):
        load_ge2e(source)
    assert not harmful.target.exists()


@pytest.mark.parametrize("shape", [(3_999,), (0,), (1, 16_000)])
def test_an_invalid_wave_is_refused(source: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=rf"\b4000\b.*{re.escape(str(list(shape)))}"):
        load_ge2e(source).embedding(torch.zeros(shape))
    for value in (0.0, math.nan, math.inf):
        with pytest.raises(AudioError, match="finite"):
            load_ge2e(source).embedding(torch.full((8_000,), value))


@pytest.mark.services
def test_the_published_weights_separate_singers() -> None:
    found = importlib.util.find_spec("resemblyzer")
    assert found is not None
    assert found.origin is not None
    encoder, voices, singers = load_ge2e(Path(found.origin).parent / "pretrained.pt"), [], []
    for sung in pretraining_clips(8, 4, 5.0, seed=3):
        voices.append(encoder.embedding(torch.from_numpy(soxr.resample(sung.wave, 24_000, 16_000))).numpy())
        singers.append(sung.singer.singer_id)
    who, alike = np.array(singers), np.array(voices) @ np.array(voices).T
    same = (who[:, None] == who) & ~np.eye(len(who), dtype=bool)
    assert encoder.dim == 256
    assert alike[same].mean() > alike[who[:, None] != who].mean() + 0.03
