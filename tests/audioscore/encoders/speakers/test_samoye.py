import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
from torch import Tensor, nn

from audioscore.encoders.compute import quiet_imports
from audioscore.encoders.speakers.samoye import load_samoye, read_settings, samoye_mel, window_starts
from audioscore.errors import AudioError, ModelError
from audioscore.files import sha256_of

with quiet_imports():
    import librosa

AUDIO = {
    "num_mels": 80, "fft_size": 1024, "sample_rate": 16_000, "win_length": 1024, "hop_length": 256,
    "frame_length_ms": None, "preemphasis": 0.98, "min_level_db": -100, "ref_level_db": 20, "signal_norm": True,
    "symmetric_norm": True, "max_norm": 4.0, "clip_norm": True, "mel_fmin": 0.0, "mel_fmax": 8000.0,
    "do_trim_silence": True, "trim_db": 60,
}  # fmt: skip


def state_of(hidden: int = 12, dim: int = 8, layers: int = 3, bands: int = 80) -> dict[str, Tensor]:
    draw, state = torch.Generator().manual_seed(9), {}
    for layer in range(layers):
        size = bands if layer == 0 else dim
        state[f"layers.{layer}.lstm.weight_ih_l0"] = 0.3 * torch.randn(4 * hidden, size, generator=draw)
        state[f"layers.{layer}.lstm.weight_hh_l0"] = 0.3 * torch.randn(4 * hidden, hidden, generator=draw)
        state[f"layers.{layer}.lstm.bias_ih_l0"] = 0.3 * torch.randn(4 * hidden, generator=draw)
        state[f"layers.{layer}.lstm.bias_hh_l0"] = 0.3 * torch.randn(4 * hidden, generator=draw)
        state[f"layers.{layer}.linear.weight"] = torch.randn(dim, hidden, generator=draw)
    return state


def write(folder: Path, state: dict[str, Tensor] | None = None, **audio: Any) -> Path:
    """Write the published layout, with comments."""
    folder.mkdir(exist_ok=True)
    text = json.dumps({"model_name": "lstm", "audio": AUDIO | audio, "output_path": "../..//x"}, indent=4)
    text = text.replace('"fft_size"', '// the "size" of a frame\n        "fft_size"').replace(
        "0.98,", "0.98, // to sharpen"
    )
    (folder / "config.json").write_text(text, encoding="utf-8")
    beside = {"optimizer": {"state": {}}, "step": 5, "loss": 0.1, "date": "March 01, 2021"}
    torch.save({"model": state or state_of(), **beside}, folder / "best_model.pth.tar")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "speaker_pretrain")


def song(seconds: float, seed: int = 0) -> Tensor:
    """Noise of varying level, with silence at both ends."""
    size = round(seconds * 16_000)
    swell = torch.sin(torch.linspace(0, 9, size)).abs() * 0.2
    wave = swell * torch.randn(size, generator=torch.Generator().manual_seed(seed))
    wave[: size // 8] = 0
    wave[-size // 10 :] *= 1e-5
    return wave


def upstream_mel(wave: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Trim, scale to a peak of 0.95, pre-emphasise, map decibels to -4..4. Shape: [T] -> [F, 80]."""
    wave, _ = librosa.effects.trim(wave[160:-160], top_db=60, frame_length=1024, hop_length=256)
    wave = scipy.signal.lfilter([1, -0.98], [1], wave / abs(wave).max() * 0.95)
    amplitudes = abs(librosa.stft(wave, n_fft=1024, hop_length=256, pad_mode="reflect"))
    mel = librosa.filters.mel(sr=16_000, n_fft=1024, n_mels=80, fmin=0, fmax=8000) @ amplitudes
    decibels = 20 * np.log10(np.maximum(1e-5, mel)) - 20
    return np.asarray(np.clip(8 * (decibels + 100) / 100 - 4, -4, 4).T)


@pytest.mark.parametrize("seconds", [1.0, 4.5, 9.3])
def test_features_equal_coquis(folder: Path, seconds: float) -> None:
    wave = song(seconds)
    whole = upstream_mel(wave.numpy())
    assert len(whole) < seconds * 62.5 * 0.95
    made = samoye_mel(read_settings(folder / "config.json"), wave).numpy()
    frames = min(len(whole), 250)
    assert made.shape == (10, frames, 80)
    for number, start in enumerate(np.linspace(0, len(whole) - frames, 10).astype(int)):
        np.testing.assert_allclose(made[number], whole[start : start + frames], atol=1e-4)
    assert whole.min() < -1 < 1 < whole.max()


def test_an_embedding_is_the_mean_of_the_last_projections(folder: Path) -> None:
    wave, state = song(7.0), {name: value.double() for name, value in state_of().items()}
    whole = torch.from_numpy(upstream_mel(wave.numpy()))
    frames = torch.stack([whole[start : start + 250] for start in window_starts(len(whole))]).double()
    for layer in range(3):
        lstm = nn.LSTM(frames.shape[2], 12, batch_first=True).double()
        own = {name.split(".")[-1]: value for name, value in state.items() if name.startswith(f"layers.{layer}.lstm.")}
        lstm.load_state_dict(own)
        frames = lstm(frames)[0] @ state[f"layers.{layer}.linear.weight"].T
    mean = nn.functional.normalize(frames[:, -1], dim=1).mean(0)
    embedding = load_samoye(folder).embedding(wave)
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding.double(), mean / mean.norm(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("hidden", "dim", "layers", "bands"), [(5, 6, 2, 40), (768, 256, 3, 80)])
def test_sizes_are_read_from_the_weights(tmp_path: Path, hidden: int, dim: int, layers: int, bands: int) -> None:
    encoder = load_samoye(write(tmp_path / "a", state_of(hidden, dim, layers, bands), num_mels=bands))
    embedding = encoder.embedding(song(1.0))
    assert (encoder.dim, embedding.shape) == (dim, (dim,))
    assert embedding.norm().item() == pytest.approx(1.0, abs=1e-6)


def test_an_embedding_is_deterministic_at_any_level(folder: Path) -> None:
    encoder, wave = load_samoye(folder), song(5.0)
    embedding = encoder.embedding(wave)
    assert torch.equal(embedding, load_samoye(folder).embedding(wave))
    torch.testing.assert_close(encoder.embedding(0.5 * wave), embedding, rtol=0, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in encoder.module.parameters())


def test_windows_are_evenly_spaced() -> None:
    for frames in (250, 251, 259, 1000, 12_345):
        starts = window_starts(frames)
        assert (len(starts), starts[0], starts[-1]) == (10, 0, frames - 250)
        assert max(np.diff(starts)) - min(np.diff(starts)) <= 1


def test_both_files_are_hashed_and_needed(folder: Path) -> None:
    before = load_samoye(folder).reference.sha256
    assert before == sha256_of(folder / "config.json", folder / "best_model.pth.tar")
    assert load_samoye(write(folder, trim_db=50)).reference.sha256 != before
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"speaker_pretrain: config\.json missing"):
        load_samoye(folder)
    (folder / "best_model.pth.tar").unlink()
    with pytest.raises(ModelError, match=r"best_model\.pth\.tar and config\.json missing"):
        load_samoye(folder)


@pytest.mark.parametrize(
    ("name", "value", "audio", "shown"),
    [
        ("layers.1.lstm.bias_hh_l0", None, {}, r"layers\.1\.lstm\.bias_hh_l0\."),
        ("instancenorm.weight", torch.ones(80), {}, r"instancenorm\.weight\."),
        ("layers.2.lstm.weight_hh_l0", torch.zeros(48, 11), {}, r"layers\.2\.lstm\.weight_hh_l0"),
        ("layers.2.linear.weight", torch.zeros(48), {}, "matrices"),
        ("instancenorm.weight", None, {"num_mels": 40}, r"num_mels 40\b.*\b80\b"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    folder: Path, name: str, value: Tensor | None, audio: dict[str, int], shown: str
) -> None:
    state = {key: old for key, old in {**state_of(), name: value}.items() if old is not None}
    with pytest.raises(ModelError, match=shown):
        load_samoye(write(folder, state, **audio))


@pytest.mark.parametrize(
    "audio",
    [
        {"sample_rate": 22_050}, {"signal_norm": False}, {"symmetric_norm": False}, {"clip_norm": False},
        {"log_func": "np.log"}, {"spec_gain": 1}, {"stft_pad_mode": "constant"}, {"stats_path": "scale_stats.npy"},
        {"hop_length": 0}, {"win_length": 2048}, {"mel_fmax": 9000.0}, {"min_level_db": 0}, {"max_norm": "x"},
        {"trim_db": None}, "{", "[]", "{}", '{"audio": null}', '{"audio": {}}', "// nothing",
    ],
)  # fmt: skip
def test_an_unsupported_or_invalid_configuration_is_refused(folder: Path, audio: dict[str, object] | str) -> None:
    shown = r"config\.json: .+\(.+\)"
    if isinstance(audio, str):
        (folder / "config.json").write_text(audio)
    else:
        write(folder, **audio)
        ((name, value),) = audio.items()
        if name not in ("hop_length", "win_length", "mel_fmax", "min_level_db", "max_norm", "trim_db"):
            shown = rf"config\.json: {name} is {value!r};"
    with pytest.raises(ModelError, match=shown):
        load_samoye(folder)


def test_a_wave_without_enough_sound_is_refused(folder: Path) -> None:
    encoder, wave = load_samoye(folder), torch.zeros(16_000)
    wave[15_830] = 1.0
    with pytest.raises(AudioError, match=r"\b320\b.*\b512\b"):
        encoder.embedding(wave)
    wave[15_830], wave[100] = 0.0, 1.0  # within the margin that is cut
    with pytest.raises(AudioError) as caught:
        encoder.embedding(wave)
    assert not re.search(r"\d|finite", str(caught.value))
    wave[8_000] = math.nan
    with pytest.raises(AudioError, match="finite"):
        encoder.embedding(wave)
