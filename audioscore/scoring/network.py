"""What is trained, and then scores: a head, and before it the layers of MuQ that are tuned or mixed with it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from audioscore.encoders.extract import Features
from audioscore.encoders.muq_layers import LayerMix, MuQSuffix
from audioscore.scoring.batch import Batch, collate, join_windows

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
