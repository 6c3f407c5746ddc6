"""Clips of unequal length side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from audioscore.encoders.extract import WINDOWS, Features


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
