"""MuQ, a music conformer, truncated to the layers up to the one whose output is used.

Source: MuQ, arXiv 2501.01108; package `muq`. Weights OpenMuQ/MuQ-large-msd-iter: CC BY-NC 4.0.
"""

import contextlib
import copy
import io
import math
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audioscore.encoders.compute import Precision, as_fp32, precision_context, precision_on
from audioscore.encoders.features import WINDOW_SECONDS, EncoderReference, check_pin, copy_files, how_to_get, is_folder
from audioscore.errors import AudioscoreError, ModelError, UsageError, first_line
from audioscore.files import sha256_of
from audioscore.units import MUQ_FRAME_HZ, MUQ_RATE

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

MIN_SAMPLES = MUQ_RATE // 4  # shorter than this leaves too few frames for the convolutions
MIN_WINDOW_SECONDS = 2 * MIN_SAMPLES / MUQ_RATE  # equal windows of a recording may be half as long as the longest
SPARE_FRAMES = 8  # windows of one recording differ by one sample, and the convolutions round up
FILES = ("config.json", "model.safetensors")
COMMIT = re.compile("[0-9a-f]{40}")  # a commit on the hub never changes
_how_to_get = partial(how_to_get, "muq", "Hugging Face", "config.json and model.safetensors")


def window_count(samples: int, window: float | None = WINDOW_SECONDS) -> int:
    """Count the equal windows of at most `window` seconds in a wave at 24 kHz; None means the whole recording.

    >>> window_count(30 * 24_000), window_count(30 * 24_000 + 1), window_count(100 * 24_000)
    (1, 2, 4)
    >>> window_count(100 * 24_000, 20.0), window_count(100 * 24_000, None)
    (5, 1)
    """
    return 1 if window is None else -(-samples // int(window * MUQ_RATE))


class MuQEncoder:
    """A frozen MuQ up to one layer, loaded by `load_muq`.

    The module is in eval mode and has no gradients. Window and precision are those of the reference.
    """

    def __init__(self, model: Any, layer: int, reference: EncoderReference, folder: Path, device: str = "cpu") -> None:
        from torch import nn

        depth = len(model.model.conformer.layers)
        if not 1 <= layer <= depth:
            raise ModelError(f"MuQ layer {layer}: this model has layers 1 to {depth}. Set encoders.muq.layer.")
        conformer = model.model.conformer
        if layer < depth:
            # With fewer layers, the conformer would apply its final LayerNorm to the output layer;
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
        """Compute the layer's hidden state, 25 frames per second; windows (at most 30 s by default) are joined.

        Shape: wave [T] at 24 kHz, float32 -> [F, dim].
        """
        return self.by_window(wave, self._encode_window)

    def windows(self, samples: int) -> int:
        """Count the windows of a wave of `samples` samples at 24 kHz."""
        return window_count(samples, self.window)

    def by_window(self, wave: "Tensor", encode: "Callable[[Tensor], Tensor]") -> "Tensor":
        """Apply `encode` to each window of a wave and join the results in time.

        Shape: wave [T] at 24 kHz -> [F, dim], where `encode` maps a window [T_i] to [F_i, dim].
        """
        import torch

        self.check_wave(wave)
        precision = self.reference.precision
        with torch.inference_mode(), precision_context(precision, self.device):
            parts = [encode(part) for part in torch.tensor_split(wave, self.windows(len(wave)))]
        # Outside the block: tensors made in inference mode cannot be used in training.
        return as_fp32(torch.cat(parts), precision)

    def check_wave(self, wave: "Tensor") -> None:
        """Raise ModelError for a wave that is not [T], or too short for the convolutions."""
        if wave.ndim != 1 or len(wave) < MIN_SAMPLES:
            raise ModelError(
                f"MuQ: needs a wave [T] of at least {MIN_SAMPLES} samples at 24 kHz; got {list(wave.shape)}. Pass one."
            )

    def _encode_window(self, wave: "Tensor") -> "Tensor":
        # One window at a time, never padded: MuQ's convolutions are not masked, so padding would change the frames.
        state: Tensor = self.module(wave[None].to(self.device)).hidden_states[self.layer]
        return state[0].cpu()

    def save(self, target: Path) -> None:
        """Copy the full encoder, in the published layout, for a scorer that embeds it."""
        copy_files(encoder_files(self.folder), target)


def missing_files(folder: Path) -> list[str]:
    """List files that a folder lacks; loading detects invalid files."""
    return [name for name in FILES if not (folder / name).is_file()]


def encoder_files(folder: Path) -> list[Path]:
    """Return the files of the encoder; a hub's snapshot has more."""
    return [folder / name for name in FILES]


def _in_fp32(preprocessing: "Callable[..., dict[str, Tensor]]", waves: "Tensor", **settings: Any) -> Any:
    """Compute the spectrogram in fp32 at any precision: a loud wave's power exceeds fp16's maximum of 65 504.

    Shape: waves [B, T] -> the result of `preprocessing`.
    """
    import torch

    with torch.autocast(waves.device.type, enabled=False):
        return preprocessing(waves, **settings)


def _fix_positions(conformer: Any, dim: int, window: float | None) -> None:
    """Compute the position table once, for the longest window; each clip uses the beginning of it.

    The network itself caches a table for the last clip's length, which threads would overwrite for each other. Without
    windows there is no longest one, and each pass computes its own table.
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
    """Compute positions on a copy of the module, which would cache the table for all threads.

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

    Args:
        layer: the hidden state that is the output, from 1.
        sha256: expected hash, as in EncoderReference.
        precision: for GPUs; a CPU computes in fp32.
        window_seconds: None encodes whole recordings, in memory that grows with the square of their length.

    Raises: ModelError where the folder is incomplete, a weight is missing, the hub cannot be reached, or the hash
        differs; UsageError for an invalid window or precision.
    """
    if window_seconds is not None and not (math.isfinite(window_seconds) and window_seconds >= MIN_WINDOW_SECONDS):
        raise UsageError(
            f"windows of {window_seconds} s: MuQ needs at least {MIN_WINDOW_SECONDS:g}. Use longer ones, or null for "
            "whole recordings."
        )
    used = precision_on(device, precision)
    folder = _folder_of(source, revision)
    if missing := missing_files(folder):
        raise ModelError(f"{source}: not a MuQ folder; {' and '.join(missing)} missing. {_how_to_get(source)}")
    found = sha256_of(*(folder / name for name in FILES))
    check_pin(source, found, sha256)
    model = _read_checked(folder, source)
    own = None if is_folder(source) else source
    reference = EncoderReference("muq", own, revision, found, layer, used, window_seconds)
    return MuQEncoder(model, layer, reference, folder, device)


def _read_checked(folder: Path, source: str) -> Any:
    """Read the network. Raises: ModelError where its files are damaged or do not fit each other."""
    from safetensors import SafetensorError

    try:
        return _read(folder)
    except SafetensorError as error:
        raise ModelError(
            f"{source}: model.safetensors is damaged ({first_line(error)}). {_how_to_get(source)}"
        ) from error
    except (RuntimeError, KeyError, TypeError, AttributeError, ValueError, AssertionError, ArithmeticError) as error:
        raise ModelError(f"{source}: weights do not fit config.json ({first_line(error)}). Pull it again.") from error


def _read(folder: Path) -> Any:
    """Read all layers, strictly, in eval mode."""
    import random

    import torch

    from audioscore.encoders.compute import quiet_imports

    with quiet_imports():
        from muq import MuQ
    # Building MuQ seeds Python's `random` and draws from torch's generator, and the hub's mixin prints.
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
            model = MuQ.from_pretrained(str(folder), strict=True)
    finally:
        random.setstate(state)
    for feature in model.config.features:  # otherwise missing ones raise only when audio is encoded
        float(model.config.stat[f"{feature}_mean"]), float(model.config.stat[f"{feature}_std"])
    return model


def _folder_of(source: str, revision: str | None) -> Path:
    if is_folder(source):
        return Path(source).expanduser()
    from httpx import HTTPError  # the client's own library, whose errors it lets through
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    from audioscore.encoders.hubs import await_hub

    if revision is not None and COMMIT.fullmatch(revision):  # a commit never changes, so the cached files are valid
        with contextlib.suppress(LocalEntryNotFoundError, HTTPError, OSError, ValueError):
            cached = Path(snapshot_download(source, revision=revision, local_files_only=True))
            if not missing_files(cached):
                return cached
    unreachable: AudioscoreError | None = None
    try:
        await_hub("muq")
    except AudioscoreError as error:
        unreachable = error
    try:
        options = {"allow_patterns": list(FILES), "local_files_only": unreachable is not None}
        return Path(snapshot_download(source, revision=revision, **options))
    except (LocalEntryNotFoundError, HTTPError, OSError, ValueError) as error:
        reason = first_line(unreachable or error).rstrip(".")
        raise ModelError(f"{source}: download failed ({reason}). {_how_to_get(source)}") from error
