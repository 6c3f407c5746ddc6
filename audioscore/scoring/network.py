"""What is trained, and then scores: a head, and before it the layers of MuQ that are tuned or mixed with it."""

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
    """Padded features of B clips. A plan without MuQ has one frame a clip.

    `windows` says how many rows of `frames` each clip has, where its frames go through more layers of MuQ, which hears
    a window at a time; None is one row a clip. `lengths` stay on the CPU: they are read there.

    Shape: frames [W, F, D] or None, lengths [W], embedding [B, E] or None; W is B, or the sum of `windows`.
    """

    lengths: Tensor
    frames: Tensor | None = None
    embedding: Tensor | None = None
    windows: tuple[int, ...] | None = None

    def to(self, device: str | torch.device) -> "Batch":
        """The same on another device."""
        frames = None if self.frames is None else self.frames.to(device, non_blocking=True)
        embedding = None if self.embedding is None else self.embedding.to(device, non_blocking=True)
        return Batch(self.lengths, frames, embedding, self.windows)


def collate(features: Sequence[Features], *, windowed: bool = False) -> Batch:
    """Pad clips, or with `windowed` their windows, to the longest; `lengths` says what is real.

    Shape: B clips of "muq" [F_i, D] and/or "campplus" [E]; "windows" says how many a clip's frames were heard in.
    """
    embedding = torch.stack([clip["campplus"] for clip in features]) if "campplus" in features[0] else None
    if "muq" not in features[0]:
        return Batch(torch.ones(len(features), dtype=torch.long), None, embedding)
    if not windowed:
        rows = [clip["muq"] for clip in features]
        return Batch(torch.tensor([len(row) for row in rows]), _side_by_side(rows), embedding)
    # Each window's samples decide its frames, and windows differ by one sample at most, the longer ones first.
    parts = [torch.tensor_split(clip["muq"], int(clip[WINDOWS])) for clip in features]
    rows = [row for part in parts for row in part]
    windows = tuple(len(part) for part in parts)
    return Batch(torch.tensor([len(row) for row in rows]), _side_by_side(rows), embedding, windows)


def join_windows(batch: Batch) -> Batch:
    """Each clip's windows joined in time again: one row a clip."""
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
    return Batch(lengths, _side_by_side(clips), batch.embedding)


def _side_by_side(rows: Sequence[Tensor]) -> Tensor:
    """Shape: B rows [F_i, D] -> [B, F, D]; a single one is not copied."""
    return rows[0][None] if len(rows) == 1 else pad_sequence(list(rows), batch_first=True)


# What one forward pass may hold, so that no folder of recordings fills the memory: clips, and frames of all of them.
BATCH_CLIPS, BATCH_FRAMES = 64, 16_384


class ScoreNetwork(nn.Module):
    """Features to one raw output a clip.

    Without `suffix`, features are MuQ's output and the head is all there is. With it, they are a hidden state of MuQ
    and go through its remaining layers first; with `mix`, the head hears a learned mix of all these layers make.
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
        """Whether batches must come in windows."""
        return self.suffix is not None

    def hear(self, batch: Batch) -> Batch:
        """What the head is given: one row of frames a clip."""
        if self.suffix is None:
            return batch
        assert batch.frames is not None
        if self.mix is None:
            frames = self.suffix(batch.frames, batch.lengths)
        else:
            frames = self.mix(self.suffix.hidden_states(batch.frames, batch.lengths))
        return join_windows(replace(batch, frames=frames))

    def represent(self, batch: Batch) -> Tensor:
        """What is known of each clip before it is judged. Shape: B clips -> [B, P]."""
        representation: Tensor = self.head.represent(self.hear(batch))
        return representation

    def judge(self, representation: Tensor) -> Tensor:
        """Shape: [B, P] -> raw outputs [B], float32 or wider."""
        raw: Tensor = self.head.judge(representation)
        return raw.to(torch.promote_types(raw.dtype, torch.float32))

    def forward(self, batch: Batch) -> Tensor:
        """Shape: B clips -> raw outputs [B]."""
        return self.judge(self.represent(batch))


def raw_outputs(
    network: ScoreNetwork, features: Sequence[Features], device: str | torch.device = "cpu"
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Raw outputs of many clips, in eval mode.

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
    """What the network knows of many clips before it judges them, in eval mode. Shape: N clips -> [N, P], float64."""
    network.eval()
    with torch.inference_mode():
        parts = [network.represent(batch.to(device)).double().cpu() for batch in batches(network, features)]
    return torch.cat(parts).numpy()


def batches(network: ScoreNetwork, features: Sequence[Features]) -> Iterator[Batch]:
    """Clips in their order, as many at a time as memory is meant for; each is read when its turn comes."""
    waiting: list[Features] = []
    longest = 0  # what is held is padded to it
    for place in range(len(features)):
        clip = features[place]
        own = len(clip["muq"]) if "muq" in clip else 1
        if waiting and (len(waiting) == BATCH_CLIPS or (len(waiting) + 1) * max(longest, own) > BATCH_FRAMES):
            yield collate(waiting, windowed=network.windowed)
            waiting, longest = [], 0
        waiting.append(clip)
        longest = max(longest, own)
    if waiting:
        yield collate(waiting, windowed=network.windowed)
