"""The predecessor's door: what was written for its Python class goes on working.

import audioscore.model

model = audioscore.model.SongEvalGenerator_audio_lora()
model.load_model("ckpts/SongEvalGenerator/step_2_al_audio/best_model_step_132000")
score = model.generate_tag("take.m4a")
"""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Self

from audioscore.errors import ModelError, UsageError

if TYPE_CHECKING:
    import torch

    from audioscore.scoring.legacy.model import Predecessor

PathLike = str | os.PathLike[str]

TOP = 5.0  # an inverted tag is this less the tag


class SongEvalGenerator_audio_lora:  # noqa: N801 - the name that its callers import
    """MuQ with LoRA adapters in its attention, read at layer 6, and the SongEval head. Nothing is loaded yet.

    `use_grl`: the folder's head carries the adversary's discriminator. `lora_r`, `lora_alpha`: what the adapters were
    made with; adapter-only folders say it themselves. `muq`: a hub id or a folder with config.json and
    model.safetensors.

    Always in eval mode: the same recording gets the same score twice.
    """

    def __init__(
        self,
        use_grl: bool = False,
        lora_r: int = 128,
        lora_alpha: float = 48,
        muq: PathLike = "OpenMuQ/MuQ-large-msd-iter",
    ) -> None:
        if lora_r < 1 or lora_alpha <= 0:
            raise UsageError(f"lora_r and lora_alpha must be above 0; got {lora_r} and {lora_alpha}.")
        self.use_grl = use_grl
        self.lora_r = lora_r
        self.lora_alpha = lora_alpha
        self.muq = os.fspath(muq)
        self._device = "cpu"
        self._half = False
        self._loaded: Predecessor | None = None

    def load_model(self, path: PathLike) -> None:
        """Read a model folder, strictly.

        Raises ModelError where the folder or MuQ is incomplete, or a key is missing, too many or of another shape.
        """
        from audioscore.scoring.legacy.model import load_predecessor

        loaded = load_predecessor(Path(path), self.muq, use_grl=self.use_grl, rank=self.lora_r, alpha=self.lora_alpha)
        loaded.to(self._device)
        self._loaded = loaded

    def save_model(self, path: PathLike, full: bool | None = None) -> None:
        """Write the model as a folder, whole or not at all; the adapters of layers that are not read are among it.

        `full` True writes MuQ's weights too, False the adapters alone; by default the folder is of the kind that was
        read, tensor for tensor. Only adapters and head are ever trained here, so that the adapters alone lose nothing
        as long as MuQ can be had; the predecessor itself reads only those.
        """
        self._model().save(Path(path), rank=self.lora_r, alpha=self.lora_alpha, full=full)

    def generate_tag(self, path: PathLike, inverse: bool = True) -> float:
        """Score one recording: 5 less the tag, from 0 to 4, higher is better; with `inverse` False the tag, 1 to 5.

        The whole file is heard at once, as mono float32 at 24 kHz. Files at other rates are resampled by soxr HQ, as
        librosa.load does; compressed ones the predecessor's decoder may round or cut differently.
        Raises AudioError where the file cannot be decoded, is shorter than 0.25 s, longer than 15 min, or silent.
        """
        from audioscore.scoring.legacy.model import hear

        model = self._model()
        tag = model.tag(hear(os.fspath(path)), half=self._half)
        return TOP - tag if inverse else tag

    def half(self) -> Self:
        """Run MuQ in half precision on a GPU; on a CPU it stays in float32, with a warning."""
        self._half = True
        if self._device == "cpu":
            warnings.warn("half(): on a CPU the model stays in float32; on a GPU it will be halved", stacklevel=2)
        return self

    def cuda(self) -> Self:
        """Move to the current GPU. Raises ModelError where there is none."""
        return self.to("cuda")

    def to(self, device: "str | torch.device") -> Self:
        """Move to a device, now or once loaded. Raises UsageError for a name that torch does not know, ModelError for a
        device that is not there.
        """
        import torch

        try:
            kind = torch.device(device).type
        except RuntimeError as fault:
            raise UsageError(f"device {device!r}: torch does not know it. Pass 'cpu' or 'cuda'.") from fault
        if kind == "cuda" and not torch.cuda.is_available():
            raise ModelError(f"device {device}: torch finds no GPU here. Leave it out to score on the CPU.")
        if self._loaded is not None:
            self._loaded.to(str(device))
        self._device = str(device)
        return self

    def eval(self) -> Self:
        """Nothing to do: it always is."""
        return self

    def _model(self) -> "Predecessor":
        if self._loaded is None:
            raise ModelError("the model has no weights yet. Call load_model(folder) first.")
        return self._loaded
