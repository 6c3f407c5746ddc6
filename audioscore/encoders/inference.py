"""Run the encoders on recordings: many windows together, with the optimized CPU kernels where these are faster.

This is the only module that imports `audioscore.muq_cpu`. AUDIOSCORE_PLAIN=1 in the environment switches its kernels
off: everything then runs in plain torch.
"""

import os
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, TypeVar

from audioscore.encoders.compute import cores, precision_context, run_in_threads
from audioscore.encoders.features import WINDOWS, EncoderReference, Encoders, Features
from audioscore.encoders.muq import MuQEncoder
from audioscore.units import CAMPPLUS_RATE, MUQ_RATE

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor, nn

    from audioscore.data.audio import Recording
    from audioscore.encoders.features import Encoder
    from audioscore.encoders.speakers.targets import SpeakerTarget
    from audioscore.muq_cpu import FastDtype, OptimizedMuQ

PLAIN = "AUDIOSCORE_PLAIN"
MUQ_HOP = MUQ_RATE // 100  # samples from one frame of the spectrogram to the next
LONG_SECONDS = 300  # after more audio than this, the kernels' memory is freed for the head
BATCH_MEL = 3_000  # spectrogram frames in a pass, 30 s: more is no faster on a CPU, and a whole window fits

Network = TypeVar("Network", bound="nn.Module")


def _kernels() -> "ModuleType | None":
    """The package of optimized kernels; None where the environment switches it off."""
    if os.environ.get(PLAIN, "") not in ("", "0"):
        return None
    from audioscore import muq_cpu

    return muq_cpu


def fast_dtype(device: str) -> "FastDtype":
    """Return the dtype of products in fast mode: "int16" where the processor multiplies it faster, else "float32"."""
    kernels = _kernels()
    return "float32" if kernels is None else kernels.fast_dtype(device)


def optimize_network(network: Network, device: str, *, fast: bool = False) -> Network:
    """Copy a score network with faster linear layers; the network itself where none would be faster."""
    kernels = _kernels() if device == "cpu" else None
    if kernels is None:
        return network
    optimized: Network = kernels.optimize_module(network, fast_dtype(device) if fast else "float32")
    return optimized


def uses_int16(muq: "Encoder | None", network: "nn.Module", device: str) -> bool:
    """Whether fast mode changes anything: not on every CPU, nor for a small MuQ and a small head.

    `network` is the result of `optimize_network` with `fast`.
    """
    kernels = _kernels()
    if kernels is None or fast_dtype(device) != "int16":
        return False
    return bool((isinstance(muq, MuQEncoder) and kernels.can_optimize(muq)) or kernels.has_int16_layers(network))


class MuQInference:
    """Encodes many recordings with a MuQ, whose weights are those of the first call; the encoder is not changed.

    Frames equal the encoder's own but for rounding (relative error 6e-7). On a GPU, and for a small MuQ, only the
    batching differs.

    Args:
        fast: multiply in `fast_dtype`, with a relative error of 6e-4 (benchmarks/scoring.py).
        threads: on a CPU, encode windows in parallel; False where the caller's threads encode recordings in parallel.
    """

    def __init__(self, encoder: MuQEncoder, *, fast: bool = False, threads: bool = True) -> None:
        self.encoder = encoder
        self._in_threads = threads and encoder.device == "cpu"
        self._dtype: FastDtype = fast_dtype(encoder.device) if fast else "float32"
        self._preparing = threading.Lock()

    @cached_property
    def optimized(self) -> "OptimizedMuQ | None":
        """The encoder on optimized kernels; None where plain torch is as fast, or is asked for."""
        kernels = _kernels()
        return None if kernels is None else kernels.optimize(self.encoder, self._dtype)

    def encode(self, waves: "Sequence[Tensor]", layer: int | None = None) -> "list[Tensor]":
        """Encode recordings: MuQ's frames, or hidden state `layer` if given; windows are concatenated in time.

        Windows with spectrograms of equal length run in one forward pass, without padding.
        Shape: waves [T_i] at 24 kHz, float32 -> [F_i, dim], on the CPU.
        Raises: ModelError for a layer that was not loaded and for a wave that is too short.
        """
        import torch

        from audioscore.encoders.muq_layers import check_layer

        if layer is not None:
            check_layer(self.encoder, layer)
        for wave in waves:
            self.encoder.check_wave(wave)
        with self._preparing:  # once, by the first thread
            _ = self.optimized
        parts = [torch.tensor_split(wave, self.encoder.windows(len(wave))) for wave in waves]
        windows = [part for of_one in parts for part in of_one]
        groups = _equally_long(windows)
        tasks = [partial(self._encode, [windows[index] for index in group], layer) for group in groups]
        results = run_in_threads(tasks) if self._in_threads else [task() for task in tasks]
        frames: dict[int, Tensor] = {}
        for group, encoded in zip(groups, results, strict=True):
            frames.update(zip(group, encoded, strict=True))
        if self.optimized is not None and sum(map(len, waves)) > LONG_SECONDS * MUQ_RATE:
            self.optimized.release_memory()
        ordered = iter(range(len(windows)))
        return [torch.cat([frames[next(ordered)] for _ in of_one]) for of_one in parts]

    def _encode(self, windows: "list[Tensor]", layer: int | None) -> "Tensor":
        """Shape: B windows of equally long spectrograms -> [B, F, dim], on the CPU."""
        import torch

        from audioscore.encoders.muq_layers import mel_spectrogram, run_layers

        encoder, model = self.encoder, self.encoder.module.model
        depth = encoder.layer if layer is None else layer
        # Here and not in `encode`: both contexts are per thread.
        with torch.inference_mode(), precision_context(encoder.reference.precision, encoder.device):
            mel = torch.cat([mel_spectrogram(model, window[None].to(encoder.device)) for window in windows])
            if self.optimized is not None:
                states = self.optimized.hidden_state(mel, depth)
            else:
                states = run_layers(model.conformer, model.conv(mel), depth)
            if layer is None:  # the norm after the model's last layer, if that layer is the output
                states = model.conformer.layer_norm(states)
            return states.float().cpu()


def _equally_long(windows: "Sequence[Tensor]") -> list[list[int]]:
    """Indices of the windows that share a pass: at most BATCH_MEL frames, and enough passes for all cores."""
    by_length: defaultdict[int, list[int]] = defaultdict(list)
    for index, window in enumerate(windows):
        by_length[len(window) // MUQ_HOP].append(index)
    groups = []
    for length, indices in by_length.items():
        size = max(1, min(BATCH_MEL // max(1, length), -(-len(indices) // cores())))
        groups += [indices[first : first + size] for first in range(0, len(indices), size)]
    return sorted(groups, key=lambda group: -len(group) * len(windows[group[0]]))  # long ones first: none ends last


def optimized_encoder(encoder: "Encoder | SpeakerTarget") -> MuQInference | None:
    """Return a MuQ on optimized kernels, for threads that each encode a recording; None where this is not faster.

    Use it for many recordings: preparing the weights takes a second, and 300 MB, at the published size.
    """
    kernels = _kernels() if isinstance(encoder, MuQEncoder) else None
    if kernels is None or not isinstance(encoder, MuQEncoder) or not kernels.can_optimize(encoder):
        return None
    return MuQInference(encoder, threads=False)


@dataclass(frozen=True)
class EncoderOutput:
    """One feature of a recording: an encoder's output or, with `from_layer`, that hidden state of MuQ.

    With `inference`, MuQ runs on its optimized kernels; frames are equal but for rounding.
    """

    encoder: "Encoder | SpeakerTarget"
    from_layer: int | None = None
    inference: MuQInference | None = None

    @property
    def reference(self) -> EncoderReference:
        """The reference that names this feature in the store."""
        if self.from_layer is None:
            return self.encoder.reference
        from audioscore.encoders.muq_layers import prefix_reference

        return prefix_reference(self.encoder.reference, self.from_layer)

    def encode(self, recording: "Recording") -> "tuple[Tensor, int]":
        """Compute the feature. Returns it with the number of windows that MuQ ran on (1 for other encoders)."""
        import torch

        if not isinstance(self.encoder, MuQEncoder):
            return self.encoder.embedding(torch.from_numpy(recording.at(CAMPPLUS_RATE))), 1
        # Legacy models run on whole recordings, with the length that librosa gives them.
        windowed = self.encoder.window is not None
        wave = torch.from_numpy(recording.at(MUQ_RATE) if windowed else recording.resample_rounded_up(MUQ_RATE))
        count = self.encoder.windows(len(wave))
        if self.inference is not None:
            return self.inference.encode([wave], self.from_layer)[0], count
        if self.from_layer is None:
            return self.encoder.frames(wave), count
        from audioscore.encoders.muq_layers import prefix_frames

        return prefix_frames(self.encoder, wave, self.from_layer), count


def encode_recording(recording: "Recording", encoders: Encoders, prefix_layer: int | None = None) -> Features:
    """Encode one recording with the given encoders; with `prefix_layer`, "muq" is that hidden state of MuQ.

    Shape: "muq" -> frames [F, D], "campplus" -> embedding [E].
    """
    import torch

    features: dict[str, Tensor] = {}
    for kind, encoder in encoders.items():
        output = EncoderOutput(encoder, prefix_layer if kind == "muq" else None)
        features[kind], windows = output.encode(recording)
        if output.from_layer is not None:
            features[WINDOWS] = torch.tensor(windows)
    return features
