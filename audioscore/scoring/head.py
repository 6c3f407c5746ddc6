"""Heads: what each plan's features become, one raw output a clip.

A raw output has no unit; higher is better. Calibration turns it into a score.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from audioscore.errors import ModelError
from audioscore.scoring.batch import Batch
from audioscore.scoring.fusion import Fusion
from audioscore.scoring.pooling import AttentionPool, masked_mean, masked_std
from audioscore.scoring.songeval_head import SongEvalHead


class ScoreHead(nn.Module):
    """Fuses the branches, pools them over real frames, and regresses one raw output.

    `kind` is what pools: "light" takes mean, deviation and attention-weighted mean, "attention" the last of these
    alone, "songeval" the SongEval-style head. What a clip is padded with, or beside, never changes its output.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        *,
        width: int,
        hidden: int,
        dropout: float,
        kind: str = "light",
        pooled: bool = False,
        heads: int = 8,
        layers: int = 4,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.fusion = Fusion(dims, width=width, pooled=pooled)
        frame_dim, voice_dim = self.fusion.frame_dim, self.fusion.voice_dim
        if kind == "songeval":
            self.songeval = SongEvalHead(frame_dim, hidden, heads=heads, layers=layers, dropout=dropout)
            self.representation_dim = self.songeval.representation_dim + voice_dim
            self.regressor = nn.Sequential(nn.Dropout(dropout), nn.Linear(self.representation_dim, 1))
            return
        if kind not in ("light", "attention"):
            raise ValueError(f"a head is light, attention or songeval; got {kind!r}")
        self.attention = AttentionPool(frame_dim)
        self.representation_dim = frame_dim * (3 if kind == "light" else 1) + voice_dim
        self.regressor = nn.Sequential(
            nn.LayerNorm(self.representation_dim), nn.Dropout(dropout), nn.Linear(self.representation_dim, hidden),
            nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, 1),
        )  # fmt: skip

    def represent(self, batch: Batch) -> Tensor:
        """What the head knows of each clip before it judges. Shape: B clips -> [B, representation_dim]."""
        joint, mask, voice = self.fusion(batch)
        if self.kind == "songeval":
            parts = [self.songeval(joint, mask)]
        elif self.kind == "light":
            parts = [masked_mean(joint, mask), masked_std(joint, mask), self.attention(joint, mask)]
        else:
            parts = [self.attention(joint, mask)]
        return torch.cat(parts if voice is None else [*parts, voice], dim=-1)

    def judge(self, representation: Tensor) -> Tensor:
        """Shape: [B, representation_dim] -> raw outputs [B]."""
        raw: Tensor = self.regressor(representation)[:, 0]
        return raw

    def forward(self, batch: Batch) -> Tensor:
        """Shape: B clips -> raw outputs [B]."""
        return self.judge(self.represent(batch))


def build_head(arguments: Mapping[str, Any]) -> Any:
    """A head from what a description says of it, with random weights. Raises ModelError where that cannot be."""
    try:
        if arguments.get("kind") == "predecessor":
            from audioscore.scoring.legacy.predecessor_head import PredecessorScoreHead

            return PredecessorScoreHead(**{name: value for name, value in arguments.items() if name != "kind"})
        return ScoreHead(**arguments)
    except (TypeError, ValueError, RuntimeError) as fault:
        raise ModelError(f"the description's head cannot be built ({fault}). Train the scorer again.") from fault
