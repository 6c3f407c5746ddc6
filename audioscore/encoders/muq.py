"""MuQ: a music conformer. Only the layers up to the one that is read are kept and run.

Source: MuQ, arXiv 2501.01108; package `muq`. Weights OpenMuQ/MuQ-large-msd-iter: CC BY-NC 4.0.
"""

import contextlib
import copy
import io
import math
import re
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audioscore.encoders.compute import Precision, as_fp32, computing_in, precision_on
from audioscore.encoders.features import WINDOW_SECONDS, EncoderReference, check_pin, is_folder
from audioscore.errors import ModelError, UsageError
from audioscore.files import atomic_path, sha256_of
from audioscore.units import MUQ_FRAME_HZ, MUQ_RATE

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

MIN_SAMPLES = MUQ_RATE // 4  # shorter than this leaves too few frames for the convolutions
MIN_WINDOW_SECONDS = 2 * MIN_SAMPLES / MUQ_RATE  # equal windows of a recording may be half as long as the longest
SPARE_FRAMES = 8  # windows of one recording differ by a sample, and the convolutions round up
FILES = ("config.json", "model.safetensors")
COMMIT = re.compile("[0-9a-f]{40}")  # of a hub: what it names never changes


def window_count(samples: int, window: float | None = WINDOW_SECONDS) -> int:
    """How many equal windows of at most so many seconds a wave at 24 kHz is cut into; None: it is heard whole.

    >>> window_count(30 * 24_000), window_count(30 * 24_000 + 1), window_count(100 * 24_000)
    (1, 2, 4)
    >>> window_count(100 * 24_000, 20.0), window_count(100 * 24_000, None)
    (5, 1)
    """
    return 1 if window is None else -(-samples // int(window * MUQ_RATE))


class MuQEncoder:
    """A frozen MuQ up to one layer.

    `frames` and the loading below are the only ways in; the module is in eval mode and has no gradients. Its window
    and its precision are the reference's.
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
            _fix_positions(conformer, int(model.config.encoder_dim), reference.window)
        model.model.preprocessing = partial(_in_fp32, model.model.preprocessing)
        self.dim = int(model.config.encoder_dim)
        self.layer = layer
        self.window = reference.window  # seconds; None: whole recordings
        self.reference = reference
        self.folder = folder
        self.device = device
        self.module = model.eval().requires_grad_(False).to(device)

    def frames(self, wave: "Tensor") -> "Tensor":
        """Hidden state of the layer, 25 frames a second, windows (of at most 30 s unless loaded otherwise) joined.

        Shape: wave [T] at 24 kHz, float32 -> [F, dim].
        """
        return self.by_window(wave, self._window)

    def windows(self, samples: int) -> int:
        """How many windows a wave of so many samples at 24 kHz is heard in."""
        return window_count(samples, self.window)

    def by_window(self, wave: "Tensor", hear: "Callable[[Tensor], Tensor]") -> "Tensor":
        """What `hear` makes of each window of a wave, joined in time.

        Shape: wave [T] at 24 kHz -> [F, dim], where `hear` makes [F_i, dim] of a window [T_i].
        """
        import torch

        self.check_wave(wave)
        precision = self.reference.precision
        with torch.inference_mode(), computing_in(precision, self.device):
            parts = [hear(part) for part in torch.tensor_split(wave, self.windows(len(wave)))]
        # Outside the block: what inference mode makes cannot be trained on.
        return as_fp32(torch.cat(parts), precision)

    def check_wave(self, wave: "Tensor") -> None:
        """Raise ModelError for a wave that is none, or too short for the convolutions."""
        if wave.ndim != 1 or len(wave) < MIN_SAMPLES:
            raise ModelError(
                f"MuQ needs a wave [T] of at least {MIN_SAMPLES} samples at 24 kHz; got {list(wave.shape)}."
            )

    def _window(self, wave: "Tensor") -> "Tensor":
        # One window at a time and never padded: MuQ's convolutions are unmasked, so padding would change the frames.
        state: Tensor = self.module(wave[None].to(self.device)).hidden_states[self.layer]
        return state[0].cpu()

    def save(self, target: Path) -> None:
        """Copy the whole encoder, in the published layout, for a scorer that embeds it."""
        target.mkdir(parents=True, exist_ok=True)
        for source in encoder_files(self.folder):
            with atomic_path(target / source.name) as temporary:  # scorers may be linked to what is there
                shutil.copyfile(source, temporary)


def encoder_files(folder: Path) -> list[Path]:
    """All of a folder that is the encoder; a hub's snapshot holds more."""
    return [folder / name for name in FILES]


def _in_fp32(preprocessing: "Callable[..., dict[str, Tensor]]", waves: "Tensor", **settings: Any) -> Any:
    """The spectrogram as ever, whatever the rest is computed in: fp16 holds no power above 65 504, a loud wave's is.

    Shape: waves [B, T] -> as `preprocessing` gives them.
    """
    import torch

    with torch.autocast(waves.device.type, enabled=False):
        return preprocessing(waves, **settings)


def _fix_positions(conformer: Any, dim: int, window: float | None) -> None:
    """Compute the position table once, for the longest window; each clip uses as much of its start as it needs.

    The network's own cache of it holds the last clip's length, and threads that hear clips side by side would
    overwrite it for each other. Without windows there is no longest: each pass computes its own.
    """
    import torch

    positions = conformer.embed_positions
    if window is None:
        positions.forward = partial(_positions_of, positions)
        return
    frames = int(window * MUQ_FRAME_HZ) + SPARE_FRAMES
    with torch.inference_mode(False), torch.no_grad():
        table = positions(torch.zeros(1, frames, dim))
    positions.forward = lambda states: table.to(states)


def _positions_of(positions: Any, states: "Tensor") -> "Tensor":
    """Positions for the frames at hand, on a copy: the class keeps its last table on itself, where threads meet.

    Shape: states [B, F, dim] -> [2, F, 1, 1, head].
    """
    table: Tensor = type(positions).forward(copy.copy(positions), states)
    return table.to(states)


def load_muq(
    source: str,
    *,
    layer: int,
    revision: str | None = None,
    sha256: str | None = None,
    device: str = "cpu",
    precision: Precision = "fp32",
    window_seconds: float | None = WINDOW_SECONDS,
) -> MuQEncoder:
    """Load MuQ from a hub id or a folder with config.json and model.safetensors.

    `sha256` is the reference's that is expected. `precision` is for GPUs, see `precision`. `window_seconds` None hears
    recordings whole, in memory that grows with the square of their length.
    Raises ModelError where the folder is incomplete, a weight is missing, the hub cannot be reached, or the hash is
    another; UsageError for a window or a precision that cannot be.
    """
    if window_seconds is not None and not (math.isfinite(window_seconds) and window_seconds >= MIN_WINDOW_SECONDS):
        raise UsageError(
            f"windows of {window_seconds} s: MuQ needs at least {MIN_WINDOW_SECONDS:g}. Give more, or null for none."
        )
    used = precision_on(device, precision)
    folder = _folder_of(source, revision)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{source}: not a MuQ folder, {' and '.join(missing)} missing. {_how_to_get(source)}")
    found = sha256_of(*(folder / name for name in FILES))
    check_pin(source, found, sha256)
    model = _read_whole(folder, source)
    own = None if is_folder(source) else source
    reference = EncoderReference("muq", own, revision, found, layer, used, window_seconds)
    return MuQEncoder(model, layer, reference, folder, device)


def _read_whole(folder: Path, source: str) -> Any:
    """The network in the folder; ModelError where its files are damaged or do not fit each other."""
    from safetensors import SafetensorError

    try:
        return _read(folder)
    except SafetensorError as fault:
        raise ModelError(
            f"{source}: model.safetensors is damaged ({_first_line(fault)}). {_how_to_get(source)}"
        ) from fault
    except (RuntimeError, KeyError, TypeError, AttributeError, ValueError, AssertionError, ArithmeticError) as fault:
        raise ModelError(f"{source}: MuQ's weights do not fit its config.json ({_first_line(fault)}).") from fault


def _read(folder: Path) -> Any:
    """The whole network with its weights, strictly, in eval mode."""
    import random

    import torch

    from audioscore.encoders.compute import quiet_imports

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
    from httpx import HTTPError  # the client's own library, whose errors it lets through
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if revision is not None and COMMIT.fullmatch(revision):  # it cannot have moved: what is cached is it
        with contextlib.suppress(LocalEntryNotFoundError, HTTPError, OSError, ValueError):
            cached = Path(snapshot_download(source, revision=revision, local_files_only=True))
            if all((cached / name).is_file() for name in FILES):
                return cached
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(FILES)))
    except (LocalEntryNotFoundError, HTTPError, OSError, ValueError) as fault:
        raise ModelError(f"{source}: cannot be fetched ({_first_line(fault)}). {_how_to_get(source)}") from fault


def _how_to_get(source: str) -> str:
    if is_folder(source):
        return (
            "Give a folder with config.json and model.safetensors; for the shipped encoders run `audioscore data pull`."
        )
    return (
        "Run `audioscore encoders pull` where Hugging Face can be reached, or give encoders.muq.source a folder with "
        "config.json and model.safetensors."
    )


def _first_line(fault: Exception) -> str:
    lines = str(fault).strip().splitlines()
    return lines[0][:200] if lines else type(fault).__name__
