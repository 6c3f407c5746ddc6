"""MuQ: a music conformer. Only the layers up to the one that is read are kept and run.

Source: MuQ, arXiv 2501.01108; package `muq`. Weights OpenMuQ/MuQ-large-msd-iter: CC BY-NC 4.0.
"""

import contextlib
import io
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audioscore.encoders.reference import EncoderReference, is_folder
from audioscore.errors import ModelError
from audioscore.files import sha256_of
from audioscore.units import MUQ_FRAME_HZ, MUQ_RATE

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

WINDOW_SECONDS = 30.0  # MuQ was trained on 30 s segments; longer recordings are cut into equal windows
MIN_SAMPLES = MUQ_RATE // 4  # shorter than this leaves too few frames for the convolutions
SPARE_FRAMES = 8  # windows of one recording differ by a sample, and the convolutions round up
FILES = ("config.json", "model.safetensors")


def window_count(samples: int) -> int:
    """How many equal windows a wave of so many samples at 24 kHz is cut into.

    >>> window_count(30 * 24_000), window_count(30 * 24_000 + 1), window_count(100 * 24_000)
    (1, 2, 4)
    """
    return -(-samples // int(WINDOW_SECONDS * MUQ_RATE))


class MuQEncoder:
    """A frozen MuQ up to one layer.

    `frames` and the loading below are the only ways in; the module is in eval mode and has no gradients.
    """

    def __init__(self, model: Any, layer: int, reference: EncoderReference, folder: Path, device: str = "cpu") -> None:
        from torch import nn

        depth = len(model.model.conformer.layers)
        if not 1 <= layer <= depth:
            raise ModelError(f"MuQ layer {layer}: this model has layers 1 to {depth}. Set encoders.muq.layer.")
        conformer = model.model.conformer
        if layer < depth:
            # With fewer layers, the conformer would apply its final LayerNorm to the layer that is read:
            # hidden_states[layer] of the full model has no such norm.
            conformer.layers = conformer.layers[:layer]
            conformer.layer_norm = nn.Identity()
        if conformer.embed_positions is not None:
            _fix_positions(conformer, int(model.config.encoder_dim))
        self.dim = int(model.config.encoder_dim)
        self.layer = layer
        self.reference = reference
        self.folder = folder
        self.device = device
        self.module = model.eval().requires_grad_(False).to(device)

    def frames(self, wave: "Tensor") -> "Tensor":
        """Hidden state of the layer, 25 frames a second, windows of at most 30 s joined in time.

        Shape: wave [T] at 24 kHz, float32 -> [F, dim].
        """
        return self.by_window(wave, self._window)

    def by_window(self, wave: "Tensor", hear: "Callable[[Tensor], Tensor]") -> "Tensor":
        """What `hear` makes of each window of a wave, joined in time.

        Shape: wave [T] at 24 kHz -> [F, dim], where `hear` makes [F_i, dim] of a window [T_i].
        """
        import torch

        if wave.ndim != 1 or len(wave) < MIN_SAMPLES:
            raise ModelError(
                f"MuQ needs a wave [T] of at least {MIN_SAMPLES} samples at 24 kHz; got {list(wave.shape)}."
            )
        with torch.inference_mode():
            parts = [hear(part) for part in torch.tensor_split(wave, window_count(len(wave)))]
        return torch.cat(parts)

    def _window(self, wave: "Tensor") -> "Tensor":
        # One window at a time and never padded: MuQ's convolutions are unmasked, so padding would change the frames.
        state: Tensor = self.module(wave[None].to(self.device)).hidden_states[self.layer]
        return state[0].cpu()

    def save(self, target: Path) -> None:
        """Copy the whole encoder, in the published layout, for a scorer that embeds it."""
        target.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copyfile(self.folder / name, target / name)


def _fix_positions(conformer: Any, dim: int) -> None:
    """Compute the position table once, for the longest window; each clip uses as much of its start as it needs.

    The network's own cache of it holds the last clip's length, and threads that hear clips side by side would
    overwrite it for each other.
    """
    import torch

    frames = int(WINDOW_SECONDS * MUQ_FRAME_HZ) + SPARE_FRAMES
    with torch.inference_mode(False), torch.no_grad():
        table = conformer.embed_positions(torch.zeros(1, frames, dim))
    conformer.embed_positions.forward = lambda states: table.to(states)


def load_muq(source: str, *, layer: int, revision: str | None = None, device: str = "cpu") -> MuQEncoder:
    """Load MuQ from a hub id or a folder with config.json and model.safetensors.

    Raises ModelError where the folder is incomplete, a weight is missing, or the hub cannot be reached.
    """
    folder = _folder_of(source, revision)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{source}: not a MuQ folder, {' and '.join(missing)} missing. {_how_to_get(source)}")
    from safetensors import SafetensorError

    try:
        model = _read(folder)
    except SafetensorError as fault:
        raise ModelError(
            f"{source}: model.safetensors is damaged ({_first_line(fault)}). {_how_to_get(source)}"
        ) from fault
    except (RuntimeError, KeyError, TypeError, AttributeError, ValueError, AssertionError, ArithmeticError) as fault:
        raise ModelError(f"{source}: MuQ's weights do not fit its config.json ({_first_line(fault)}).") from fault
    own = None if is_folder(source) else source
    reference = EncoderReference("muq", own, revision, sha256_of(*(folder / name for name in FILES)), layer)
    return MuQEncoder(model, layer, reference, folder, device)


def _read(folder: Path) -> Any:
    """The whole network with its weights, strictly, in eval mode."""
    import random

    import torch

    from audioscore.encoders.quiet import quiet_imports

    with quiet_imports():
        from muq import MuQ
    # Building MuQ seeds Python's `random` and draws from torch's, and the hub's mixin prints: none of it may leak.
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
            model = MuQ.from_pretrained(str(folder), strict=True)
    finally:
        random.setstate(state)
    for feature in model.config.features:  # else they are missed only once there is audio
        float(model.config.stat[f"{feature}_mean"]), float(model.config.stat[f"{feature}_std"])
    return model


def _folder_of(source: str, revision: str | None) -> Path:
    if is_folder(source):
        return Path(source).expanduser()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(FILES)))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as fault:
        raise ModelError(f"{source}: cannot be fetched ({_first_line(fault)}). {_how_to_get(source)}") from fault


def _how_to_get(source: str) -> str:
    if is_folder(source):
        return (
            "Give a folder with config.json and model.safetensors; for the shipped encoders run `audioscore data pull`."
        )
    return "Go online once, or give encoders.muq.source a folder with config.json and model.safetensors."


def _first_line(fault: Exception) -> str:
    lines = str(fault).strip().splitlines()
    return lines[0][:200] if lines else type(fault).__name__
