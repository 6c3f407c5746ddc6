"""Mel spectrograms as librosa computes them, of a few windows of a long recording."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@dataclass(frozen=True)
class MelBands:
    """Slaney's mel bands, each of equal area, over a Hann-windowed STFT.

    `fft`, `window` and `hop` in samples; `low` and `high` in Hz; `power` 1 for amplitudes, 2 for energies.
    """

    rate: int
    fft: int
    window: int
    hop: int
    count: int
    low: float
    high: float
    power: float

    def frames(self, samples: int) -> int:
        """Frames of a recording, centred on every `hop`-th sample from the first on.

        >>> MelBands(16_000, 400, 400, 160, 40, 0.0, 8_000.0, 2.0).frames(16_000)
        101
        """
        return 1 + samples // self.hop


def mel_windows(wave: "Tensor", starts: "Sequence[int]", frames: int, bands: MelBands, *, pad: str) -> "Tensor":
    """`frames` frames from each of the frames `starts` on; only these are computed.

    Frames are centred: beyond its ends the recording goes on as zeros (`pad` "constant") or mirrored ("reflect",
    which needs more than fft / 2 samples). Every window must end by the recording's last frame.

    Shape: wave [T], W starts -> [W, frames, count].
    Source: librosa 0.11, feature.melspectrogram.
    """
    import torch
    import torch.nn.functional as F
    from torchaudio.functional import melscale_fbanks

    half = bands.fft // 2
    padded = F.pad(wave[None, None], (half, half), mode=pad)[0, 0]
    size = (frames - 1) * bands.hop + bands.fft
    parts = torch.stack([padded[start * bands.hop :][:size] for start in starts])
    spectrum = torch.stft(
        parts,
        bands.fft,
        bands.hop,
        bands.window,
        torch.hann_window(bands.window, dtype=wave.dtype),
        center=False,
        return_complex=True,
    )
    matrix = melscale_fbanks(
        half + 1, bands.low, bands.high, bands.count, bands.rate, norm="slaney", mel_scale="slaney"
    ).to(wave.dtype)
    mel: Tensor = spectrum.abs().pow(bands.power).transpose(1, 2) @ matrix
    return mel
