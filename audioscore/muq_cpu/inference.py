"""MuQ as scoring runs it: windows of many recordings together, front-end and conformer in their quick forms on a CPU.

The frames are the encoder's own but for rounding: 1e-5 of their deviation.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from audioscore.encoders.compute import computing_in, cores, side_by_side
from audioscore.encoders.muq_layers import check_layer, mel_of, through_layers
from audioscore.muq_cpu.conformer import Conformer
from audioscore.muq_cpu.front_end import FrontEnd
from audioscore.muq_cpu.matmul import quick_numbers
from audioscore.units import MUQ_RATE

if TYPE_CHECKING:
    from audioscore.encoders.muq import MuQEncoder

MUQ_HOP = MUQ_RATE // 100  # samples from one frame of the spectrogram to the next
# After more than this, one long recording, the front-end's memory makes room for the head's; it is soon taken anew.
LONG_SECONDS = 300
BATCH_MEL = 3_000  # spectrogram frames heard together, 30 s: more fill a CPU no better, and a whole window is one


class MuQInference:
    """A MuQ encoder with its weights as they are when this first hears; the encoder itself is not changed.

    `fast`: products are of what numbers a CPU is quickest with, and the frames no longer the encoder's own.
    `threads`: on a CPU, windows are heard side by side; not where a caller's threads hear recordings side by side.
    """

    def __init__(self, encoder: "MuQEncoder", *, fast: bool = False, threads: bool = True) -> None:
        self.encoder = encoder
        self._in_threads = threads and torch.device(encoder.device).type == "cpu"
        self._numbers = quick_numbers(encoder.device) if fast else "float32"
        self._preparing = threading.Lock()

    @staticmethod
    def suits(encoder: "MuQEncoder") -> bool:
        """Whether it is quicker than the encoder itself: on a CPU, for many channels."""
        model, device = encoder.module.model, encoder.device
        return FrontEnd.suits(model.conv, device) or Conformer.suits(model.conformer, device)

    @cached_property
    def front(self) -> Callable[[Tensor], Tensor]:
        """From a spectrogram to the frames that the conformer is given. Shape: [B, bands, M] -> [B, F, dim]."""
        conv: Callable[[Tensor], Tensor] = self.encoder.module.model.conv
        return FrontEnd(conv, self._numbers) if FrontEnd.suits(conv, self.encoder.device) else conv

    @cached_property
    def through(self) -> Callable[[Tensor, int], Tensor]:
        """The hidden state that the layers below a number make of the frames. Shape: [B, F, dim] -> the same."""
        conformer = self.encoder.module.model.conformer
        if Conformer.suits(conformer, self.encoder.device):
            return Conformer(conformer, self._numbers)
        return partial(through_layers, conformer)

    def hear(self, waves: Sequence[Tensor], layer: int | None = None) -> list[Tensor]:
        """Frames of recordings, each in its windows joined in time; with `layer`, that hidden state of MuQ.

        Windows whose spectrograms are equally long are heard together; nothing is ever padded.
        Shape: waves [T_i] at 24 kHz, float32 -> [F_i, dim], on the CPU.
        Raises ModelError for a layer that is not kept and a wave that is too short.
        """
        if layer is not None:
            check_layer(self.encoder, layer)
        for wave in waves:
            self.encoder.check_wave(wave)
        with self._preparing:  # once, by whichever thread comes first
            _ = self.front, self.through
        parts = [torch.tensor_split(wave, self.encoder.windows(len(wave))) for wave in waves]
        windows = [part for of_one in parts for part in of_one]
        groups = _equally_long(windows)
        tasks = [partial(self._hear, [windows[place] for place in group], layer) for group in groups]
        frames: dict[int, Tensor] = {}
        for group, heard in zip(groups, self._run(tasks), strict=True):
            frames.update(zip(group, heard, strict=True))
        if isinstance(self.front, FrontEnd) and sum(map(len, waves)) > LONG_SECONDS * MUQ_RATE:
            self.front.forget()
        ordered = iter(range(len(windows)))
        return [torch.cat([frames[next(ordered)] for _ in of_one]) for of_one in parts]

    def _run(self, tasks: "list[partial[Tensor]]") -> list[Tensor]:
        return side_by_side(tasks) if self._in_threads else [task() for task in tasks]

    def _hear(self, windows: list[Tensor], layer: int | None) -> Tensor:
        """Shape: B windows of equally long spectrograms -> [B, F, dim], on the CPU."""
        encoder, model = self.encoder, self.encoder.module.model
        # Both are a thread's own, and this runs in many.
        with torch.inference_mode(), computing_in(encoder.reference.precision, encoder.device):
            mel = torch.cat([mel_of(model, window[None].to(encoder.device)) for window in windows])
            return self._hidden(mel, layer).float().cpu()

    def _hidden(self, mel: Tensor, layer: int | None) -> Tensor:
        """Shape: mel [B, bands, M] -> [B, F, dim]."""
        if layer is not None:
            return self.through(self.front(mel), layer)
        norm = self.encoder.module.model.conformer.layer_norm
        output: Tensor = norm(self.through(self.front(mel), self.encoder.layer))
        return output


def _equally_long(windows: Sequence[Tensor]) -> list[list[int]]:
    """Places of windows that are heard together, as many as BATCH_MEL allows and as leave none of the cores idle."""
    by_length: defaultdict[int, list[int]] = defaultdict(list)
    for place, window in enumerate(windows):
        by_length[len(window) // MUQ_HOP].append(place)
    groups = []
    for length, places in by_length.items():
        size = max(1, min(BATCH_MEL // max(1, length), -(-len(places) // cores())))
        groups += [places[first : first + size] for first in range(0, len(places), size)]
    return sorted(groups, key=lambda group: -len(group) * len(windows[group[0]]))  # long ones first: none is left last
