"""The network that is trained: a head, and the layers of MuQ before it that are fine-tuned or mixed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from audioscore.encoders.features import WINDOWS, Features
from audioscore.encoders.muq_layers import LayerMix, MuQSuffix


@dataclass(frozen=True)
class Batch:
    """Padded features of B clips. A plan without MuQ has one frame per clip.

    `windows` is the number of rows of `frames` for each clip, if the frames still go through layers of MuQ, which run
    window by window; None means one row per clip. `lengths` stay on the CPU, where they are read.

    Shape: frames [W, F, D] or None, lengths [W], embedding [B, E] or None; W is B, or the sum of `windows`.
    """

    lengths: Tensor
    frames: Tensor | None = None
    embedding: Tensor | None = None
    windows: tuple[int, ...] | None = None

    def to(self, device: str | torch.device) -> "Batch":
        """Copy the tensors to another device."""
        frames = None if self.frames is None else self.frames.to(device, non_blocking=True)
        embedding = None if self.embedding is None else self.embedding.to(device, non_blocking=True)
        return Batch(self.lengths, frames, embedding, self.windows)


def collate(features: Sequence[Features], *, windowed: bool = False) -> Batch:
    """Pad clips, or their windows if `windowed`, to the longest one.

    Shape: B clips of "muq" [F_i, D] and/or "campplus" [E]; "windows" is the number of windows of a clip.
    """
    embedding = torch.stack([clip["campplus"] for clip in features]) if "campplus" in features[0] else None
    if "muq" not in features[0]:
        return Batch(torch.ones(len(features), dtype=torch.long), None, embedding)
    if not windowed:
        rows = [clip["muq"] for clip in features]
        return Batch(torch.tensor([len(row) for row in rows]), _stack(rows), embedding)
    # As the samples were split: windows differ by one sample at most, the longer ones first.
    parts = [torch.tensor_split(clip["muq"], int(clip[WINDOWS])) for clip in features]
    rows = [row for part in parts for row in part]
    windows = tuple(len(part) for part in parts)
    return Batch(torch.tensor([len(row) for row in rows]), _stack(rows), embedding, windows)


def join_windows(batch: Batch) -> Batch:
    """Concatenate the windows of each clip in time: one row per clip."""
    if batch.windows is None or batch.frames is None:
        return batch
    if max(batch.windows) == 1:
        return Batch(batch.lengths, batch.frames, batch.embedding)
    rows = [row[:length] for row, length in zip(batch.frames, batch.lengths.tolist(), strict=True)]
    clips, start = [], 0
    for count in batch.windows:
        clips.append(torch.cat(rows[start : start + count]))
        start += count
    lengths = torch.tensor([len(clip) for clip in clips])
    return Batch(lengths, _stack(clips), batch.embedding)


def _stack(rows: Sequence[Tensor]) -> Tensor:
    """Pad and stack; a single row is not copied. Shape: B rows [F_i, D] -> [B, F, D]."""
    return rows[0][None] if len(rows) == 1 else pad_sequence(list(rows), batch_first=True)


# Limits of one forward pass, which bound its memory: clips, and frames of all clips with padding.
BATCH_CLIPS, BATCH_FRAMES = 64, 16_384


class ScoreNetwork(nn.Module):
    """Map features to one raw output per clip.

    Without `suffix`, the features are the output of MuQ, and the network is only the head. With `suffix`, they are a
    hidden state of MuQ and first go through its remaining layers; with `mix`, the head gets a learned average of the
    hidden states of these layers.
    """

    def __init__(self, head: nn.Module, suffix: MuQSuffix | None = None, mix: LayerMix | None = None) -> None:
        super().__init__()
        if mix is not None and suffix is None:
            raise ValueError("a mix of layers needs the layers: pass the suffix too")
        self.head: Any = head
        self.suffix = suffix
        self.mix = mix

    @property
    def windowed(self) -> bool:
        """Whether `collate` must split clips into windows."""
        return self.suffix is not None

    def encode(self, batch: Batch) -> Batch:
        """Run the layers of MuQ, if there are any; returns the input of the head, one row of frames per clip."""
        if self.suffix is None:
            return batch
        assert batch.frames is not None
        if self.mix is None:
            frames = self.suffix(batch.frames, batch.lengths)
        else:
            frames = self.mix(self.suffix.hidden_states(batch.frames, batch.lengths))
        return join_windows(replace(batch, frames=frames))

    def represent(self, batch: Batch) -> Tensor:
        """Pool each clip to the input of `predict`. Shape: B clips -> [B, P]."""
        representation: Tensor = self.head.represent(self.encode(batch))
        return representation

    def predict(self, representation: Tensor) -> Tensor:
        """Shape: [B, P] -> raw outputs [B], float32 or wider."""
        raw: Tensor = self.head.predict(representation)
        return raw.to(torch.promote_types(raw.dtype, torch.float32))

    def forward(self, batch: Batch) -> Tensor:
        """Shape: B clips -> raw outputs [B]."""
        return self.predict(self.represent(batch))


def raw_outputs(
    network: ScoreNetwork, features: Sequence[Features], device: str | torch.device = "cpu"
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Predict the raw outputs of many clips, in eval mode.

    Shape: N clips -> [N], float64.
    """
    network.eval()
    parts = [np.zeros(0)]
    with torch.inference_mode():
        parts += [network(batch.to(device)).double().cpu().numpy() for batch in batches(network, features)]
    return np.concatenate(parts)


def representations(
    network: ScoreNetwork, features: Sequence[Features], device: str | torch.device = "cpu"
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Compute the representations of many clips, in eval mode.

    Shape: N clips -> [N, P], float64.
    """
    network.eval()
    with torch.inference_mode():
        parts = [network.represent(batch.to(device)).double().cpu() for batch in batches(network, features)]
    return torch.cat(parts).numpy()


def batches(network: ScoreNetwork, features: Sequence[Features]) -> Iterator[Batch]:
    """Split clips into batches within BATCH_CLIPS and BATCH_FRAMES, in order; features are read lazily."""
    waiting: list[Features] = []
    longest = 0  # length that the batch is padded to
    for index in range(len(features)):  # not an iterator: a stored sequence is read one clip at a time
        clip = features[index]
        own = len(clip["muq"]) if "muq" in clip else 1
        if waiting and (len(waiting) == BATCH_CLIPS or (len(waiting) + 1) * max(longest, own) > BATCH_FRAMES):
            yield collate(waiting, windowed=network.windowed)
            waiting, longest = [], 0
        waiting.append(clip)
        longest = max(longest, own)
    if waiting:
        yield collate(waiting, windowed=network.windowed)
