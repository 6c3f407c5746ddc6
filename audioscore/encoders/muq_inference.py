"""MuQ as scoring runs it: windows of many recordings together, front-end and conformer in their quick forms on a CPU.

The frames are the encoder's own but for rounding: 1e-5 of their deviation.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from audioscore.encoders.muq_conformer import Conformer
from audioscore.encoders.muq_front import FrontEnd
from audioscore.encoders.muq_layers import mel_of, through_layers
from audioscore.encoders.precision import computing_in
from audioscore.encoders.products import quick_numbers
from audioscore.encoders.threads import cores, side_by_side
from audioscore.units import MUQ_RATE

if TYPE_CHECKING:
    from audioscore.encoders.muq import MuQEncoder

MUQ_HOP = MUQ_RATE // 100  # samples from one frame of the spectrogram to the next
# After more than this, one long recording, the front-end's memory makes room for the head's; it is soon taken anew.
LONG_SECONDS = 300
BATCH_MEL = 3_000  # spectrogram frames heard together, 30 s: more fill a CPU no better, and a whole window is one


class MuQInference:
    """A MuQ encoder with its weights as they are when this is made; the encoder itself is not changed.

    `fast`: products are of what numbers a CPU is quickest with, and the frames no longer the encoder's own.
    """

    def __init__(self, encoder: "MuQEncoder", *, fast: bool = False) -> None:
        self.encoder = encoder
        self._on_cpu = torch.device(encoder.device).type == "cpu"
        model = encoder.module.model
        numbers = quick_numbers(encoder.device) if fast else "float32"
        self.front: Callable[[Tensor], Tensor] = model.conv
        if FrontEnd.suits(model.conv, encoder.device):
            self.front = FrontEnd(model.conv, numbers)
        self.through: Callable[[Tensor, int], Tensor] = partial(through_layers, model.conformer)
        if Conformer.suits(model.conformer, encoder.device):
            self.through = Conformer(model.conformer, numbers)

    def hear(self, waves: Sequence[Tensor], layer: int | None = None) -> list[Tensor]:
        """Frames of recordings, each in its windows joined in time; with `layer`, that hidden state of MuQ.

        Windows whose spectrograms are equally long are heard together; nothing is ever padded.
        Shape: waves [T_i] at 24 kHz, float32 -> [F_i, dim], on the CPU.
        """
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
        return side_by_side(tasks) if self._on_cpu else [task() for task in tasks]

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
