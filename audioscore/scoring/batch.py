"""Clips of unequal length side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from audioscore.encoders.extract import Features


@dataclass(frozen=True)
class Batch:
    """Padded features. A plan without MuQ has one frame a clip.

    Shape: frames [B, F, D] or None, lengths [B], embedding [B, E] or None.
    """

    lengths: Tensor
    frames: Tensor | None = None
    embedding: Tensor | None = None

    def to(self, device: str) -> "Batch":
        move = [None if part is None else part.to(device) for part in (self.frames, self.embedding)]
        return Batch(self.lengths.to(device), *move)


def collate(features: Sequence[Features]) -> Batch:
    """Pad clips to the longest; `lengths` says what is real.

    Shape: B clips of "muq" [F_i, D] and/or "campplus" [E].
    """
    kinds = features[0].keys()
    frames = pad_sequence([clip["muq"] for clip in features], batch_first=True) if "muq" in kinds else None
    embedding = torch.stack([clip["campplus"] for clip in features]) if "campplus" in kinds else None
    lengths = torch.tensor([len(clip["muq"]) if "muq" in kinds else 1 for clip in features])
    return Batch(lengths, frames, embedding)
