"""The Python class of the legacy code base (QwenFeat-Vocal-Score), for programs that were written for it.

import audioscore.model

model = audioscore.model.SongEvalGenerator_audio_lora()
model.load_model("ckpts/SongEvalGenerator/step_2_al_audio/best_model_step_132000")
score = model.generate_tag("recording.m4a")
"""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Self

from audioscore.errors import ModelError, UsageError

if TYPE_CHECKING:
    import torch

    from audioscore.scoring.legacy.model import LegacyModel

PathLike = str | os.PathLike[str]

TOP = 5.0  # the inverted tag is TOP minus the tag


class SongEvalGenerator_audio_lora:  # noqa: N801 - the name that its callers import
    """The legacy model: MuQ with LoRA adapters in its attention, read at layer 6, and the SongEval head.

    Weights are loaded by `load_model`. The model is always in eval mode, so scores are deterministic.

    Args:
        use_grl: the folder's head contains the discriminator of the adversary.
        lora_r: rank of the adapters. Folders that contain only adapters store rank and alpha.
        lora_alpha: scale of the adapters, as for `lora_r`.
        muq: a hub id, or a folder with config.json and model.safetensors.
    """

    def __init__(
        self,
        use_grl: bool = False,
        lora_r: int = 128,
        lora_alpha: float = 48,
        muq: PathLike = "OpenMuQ/MuQ-large-msd-iter",
    ) -> None:
        if lora_r < 1 or lora_alpha <= 0:
            raise UsageError(f"lora_r and lora_alpha: must be above 0; got {lora_r} and {lora_alpha}. Correct them.")
        self.use_grl = use_grl
        self.lora_r = lora_r
        self.lora_alpha = lora_alpha
        self.muq = os.fspath(muq)
        self._device = "cpu"
        self._half = False
        self._loaded: LegacyModel | None = None

    def load_model(self, path: PathLike) -> None:
        """Load a model folder.

        Raises ModelError if the folder or MuQ is incomplete, or a tensor is missing, unexpected or of another shape.
        """
        from audioscore.scoring.legacy.model import load_legacy_model

        loaded = load_legacy_model(Path(path), self.muq, use_grl=self.use_grl, rank=self.lora_r, alpha=self.lora_alpha)
        loaded.to(self._device)
        self._loaded = loaded

    def save_model(self, path: PathLike, full: bool | None = None) -> None:
        """Write the model folder atomically, including the adapters of layers that are not used.

        Args:
            full: True also writes MuQ's weights; False writes the adapters only, which is the format that the legacy
                code reads. Default: the format of the loaded folder.
        """
        self._model().save(Path(path), rank=self.lora_r, alpha=self.lora_alpha, full=full)

    def generate_tag(self, path: PathLike, inverse: bool = True) -> float:
        """Score one recording in a single forward pass.

        The file is decoded to mono float32 at 24 kHz and resampled by soxr HQ, as librosa.load does. For compressed
        files, the legacy decoder may round or cut samples differently.

        Returns:
            5 minus the tag, from 0 to 4, where higher is better; with `inverse` False the tag, from 1 to 5.

        Raises:
            AudioError: the file cannot be decoded, is shorter than 0.25 s, longer than 15 min, or silent.
        """
        from audioscore.scoring.legacy.model import decode_legacy

        model = self._model()
        tag = model.tag(decode_legacy(os.fspath(path)), half=self._half)
        return TOP - tag if inverse else tag

    def half(self) -> Self:
        """Run MuQ in half precision on a GPU. On a CPU the model stays in float32, with a warning."""
        self._half = True
        if self._device == "cpu":
            warnings.warn("half(): the model stays in float32 on a CPU; half precision is used on a GPU", stacklevel=2)
        return self

    def cuda(self) -> Self:
        """Move to the current GPU. Raises ModelError if torch finds no GPU."""
        return self.to("cuda")

    def to(self, device: "str | torch.device") -> Self:
        """Move to a device, now or when loaded.

        Raises UsageError for an invalid device name, and ModelError if the device is not available.
        """
        import torch

        try:
            kind = torch.device(device).type
        except RuntimeError as error:
            raise UsageError(f"device {device!r}: invalid torch device. Pass 'cpu' or 'cuda'.") from error
        if kind == "cuda" and not torch.cuda.is_available():
            raise ModelError(f"device {device}: torch finds no GPU. Use the CPU, which is the default.")
        if self._loaded is not None:
            self._loaded.to(str(device))
        self._device = str(device)
        return self

    def eval(self) -> Self:
        """Do nothing: the model is always in eval mode."""
        return self

    def _model(self) -> "LegacyModel":
        if self._loaded is None:
            raise ModelError("model: has no weights. Call load_model(folder) first.")
        return self._loaded
