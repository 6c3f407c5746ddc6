"""Common parts of the speaker encoders whose embeddings an adversary learns to predict.

All take audio at 16 kHz, as CAM++ does, and are never part of a scorer. CAM++ can be a target too; see `samoye` and
`ge2e` for the other two.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audioscore.encoders.features import EncoderReference, Kind
from audioscore.errors import AudioError, ModelError, first_line, shorten
from audioscore.files import sha256_of
from audioscore.units import CAMPPLUS_RATE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

MIN_SAMPLES = CAMPPLUS_RATE // 4


class SpeakerTarget:
    """A frozen speaker encoder: `embed(module, wave)` returns an embedding [dim] of any length but zero.

    Its reference has the hash of `files`, which together determine its embeddings.
    """

    def __init__(
        self,
        module: "nn.Module",
        dim: int,
        kind: Kind,
        files: tuple[Path, ...],
        embed: "Callable[[nn.Module, Tensor], Tensor]",
        device: str = "cpu",
    ) -> None:
        self.module = module.eval().requires_grad_(False).to(device)
        self.dim = dim
        self.reference = EncoderReference(kind, None, None, sha256_of(*files))
        self._embed = embed

    def embedding(self, wave: "Tensor") -> "Tensor":
        """Compute the singer's embedding, normalized to length 1.

        Shape: wave [T] at 16 kHz, float32 -> [dim], float32, on the CPU.
        Raises: ModelError for a wave of another shape or below 0.25 s, AudioError for one without a voice.
        """
        import torch
        import torch.nn.functional as F

        if wave.ndim != 1 or len(wave) < MIN_SAMPLES:
            raise ModelError(
                f"speaker encoder: needs a wave [T] of at least {MIN_SAMPLES} samples at 16 kHz; got "
                f"{list(wave.shape)}. Pass one."
            )
        if not (wave.isfinite().all() and wave.any()):
            raise AudioError("wave: silent or not finite, so it has no speaker embedding. Remove the recording.")
        with torch.inference_mode():
            voice = self._embed(self.module, wave.cpu().float()).float().cpu()
            if not (voice.isfinite().all() and voice.any()):
                raise AudioError("wave: the speaker encoder finds no voice in it. Remove the recording.")
            return F.normalize(voice, dim=0)


def read_checkpoint(source: Path, entry: str) -> "dict[str, Tensor]":
    """Read the named tensors under one entry of a torch checkpoint, on the CPU; other entries are ignored.

    Raises: ModelError where the file is missing, damaged, not a weights-only checkpoint, or has no such entry.
    """
    import torch

    try:
        checkpoint = torch.load(source, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelError(f"{source}: no such file. Give the published checkpoint.") from error
    except pickle.UnpicklingError as error:
        raise ModelError(f"{source}: not a weights-only checkpoint. Give the published checkpoint.") from error
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{source}: cannot be read ({first_line(error)}). Transfer it again.") from error
    state = checkpoint.get(entry) if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        found = shorten(sorted(map(str, checkpoint))) if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise ModelError(f"{source}: no named tensors under {entry!r}, but {found}. Give the published checkpoint.")
    return state


def check_names(state: "dict[str, Tensor]", wanted: list[str], source: Path) -> None:
    """Raise ModelError, naming the tensors, unless exactly the wanted ones are there."""
    missing, surplus = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    if missing or surplus:
        parts = [f"{word} {shorten(names)}" for word, names in (("lacks", missing), ("also has", surplus)) if names]
        raise ModelError(f"{source}: {' and '.join(parts)}. Give the published checkpoint.")


def fill(module: Any, state: "dict[str, Tensor]", source: Path) -> None:
    """Load weights strictly. Raises: ModelError where a shape does not fit or a weight is not finite."""
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()[:200]
        raise ModelError(f"{source}: {reason} Give the published checkpoint.") from error
    if bad := [name for name, value in state.items() if not value.isfinite().all()]:
        raise ModelError(f"{source}: {shorten(bad)} not finite. Transfer it again.")


@dataclass(frozen=True)
class MelBands:
    """Settings of a mel spectrogram: Slaney's bands of equal area over a Hann-windowed STFT.

    `fft`, `window` and `hop` in samples; `low` and `high` in Hz; `power` is 1 for amplitudes, 2 for energies.
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
        """Count the frames of a recording, centred on every `hop`-th sample from the first on.

        >>> MelBands(16_000, 400, 400, 160, 40, 0.0, 8_000.0, 2.0).frames(16_000)
        101
        """
        return 1 + samples // self.hop


def mel_windows(wave: "Tensor", starts: "Sequence[int]", frames: int, bands: MelBands, *, pad: str) -> "Tensor":
    """Compute windows of a mel spectrogram: `frames` frames from each frame in `starts` on.

    Frames are centred: beyond its ends the recording is padded with zeros (`pad` "constant") or mirrored ("reflect",
    which needs more than fft / 2 samples). Every window must end at the recording's last frame or before.

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
