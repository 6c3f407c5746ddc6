import numpy as np
import pytest
import torch

from audioscore.encoders.compute import quiet_imports
from audioscore.encoders.speakers.targets import MelBands, mel_windows

with quiet_imports():
    import librosa

ENERGIES = MelBands(16_000, 400, 400, 160, 40, 0.0, 8_000.0, 2.0)
AMPLITUDES = MelBands(16_000, 1024, 800, 256, 80, 50.0, 7_000.0, 1.0)


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bands", [ENERGIES, AMPLITUDES])
@pytest.mark.parametrize("pad", ["constant", "reflect"])
@pytest.mark.parametrize("samples", [4_000, 16_000, 16_001, 23_999])
def test_frames_equal_librosas(bands: MelBands, pad: str, samples: int) -> None:
    wave = noise(samples)
    wanted = librosa.feature.melspectrogram(
        y=wave.numpy(), sr=bands.rate, n_fft=bands.fft, hop_length=bands.hop, win_length=bands.window,
        n_mels=bands.count, fmin=bands.low, fmax=bands.high, power=bands.power, pad_mode=pad,
    ).T  # fmt: skip
    assert bands.frames(samples) == len(wanted)
    made = mel_windows(wave, [0], len(wanted), bands, pad=pad)
    assert made.shape == (1, *wanted.shape)
    np.testing.assert_allclose(made[0].numpy(), wanted, rtol=1e-4, atol=1e-6)


def test_windows_and_bands() -> None:
    wave = noise(16_000)
    whole = mel_windows(wave, [0], 101, ENERGIES, pad="constant")[0]
    parts = mel_windows(wave, [0, 7, 81], 20, ENERGIES, pad="constant")
    torch.testing.assert_close(parts, torch.stack([whole[0:20], whole[7:27], whole[81:101]]))
    tone = torch.sin(2 * torch.pi * 1_000 * torch.arange(16_000) / 16_000)
    centres = librosa.mel_frequencies(n_mels=42, fmin=0.0, fmax=8_000.0)[1:-1]
    loudest = mel_windows(tone, [0], 101, ENERGIES, pad="constant")[0].mean(0).argmax()
    assert abs(centres[int(loudest)] - 1_000) < 70
