"""The predecessor's head as one of ours: padding left out, trained in full, and higher is better."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from audioscore.errors import UsageError
from audioscore.scoring.batch import Batch
from audioscore.scoring.framewise import framewise
from audioscore.scoring.legacy.folder import check_keys
from audioscore.scoring.legacy.model import ATTENTIONS, CLASSES, HEADS, READ_CLASS
from audioscore.scoring.pooling import frame_mask, masked_max, masked_mean, without_padding
from audioscore.scoring.songeval_head import SelfAttention

DISCRIMINATOR_PREFIX = "speaker_discriminator."  # the adversary's weights beside the head's; no tag depends on them

# The predecessor's name of each weight, and ours.
NAMES = {
    f"{theirs}.{leaf}": f"{ours}.{leaf}"
    for theirs, ours in (("ffd.0", "feed_forward.0"), ("ffd.2", "feed_forward.2"), ("fc", "classes"))
    for leaf in ("weight", "bias")
} | {
    f"attn.{layer}.{theirs}": f"attentions.{layer}.{ours}"
    for layer in range(ATTENTIONS)
    for theirs, ours in (
        ("in_proj_weight", "inputs.weight"), ("in_proj_bias", "inputs.bias"),
        ("out_proj.weight", "output.weight"), ("out_proj.bias", "output.bias"),
    )
}  # fmt: skip


class PredecessorScoreHead(nn.Module):
    """Frames of MuQ to one raw output a clip; what a clip is padded with, or beside, never changes it.

    Feed-forward, four chained self-attentions without residual or norm; the mean over time of these beside the maximum
    of that; five classes of which one is read. The raw output is minus that class before its tanh: higher is better,
    and `generate_tag` is 2 + 2 tanh(raw). The other classes are kept so that the model can be written back.
    Source: SongEval, arXiv 2505.10793.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        if dim < 1 or hidden < 1 or dim % HEADS:
            raise UsageError(
                f"the predecessor's head of {dim} channels, hidden {hidden}: its {HEADS} attention heads must divide "
                f"the channels of MuQ. Use another MuQ or another head."
            )
        self.feed_forward = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.attentions = nn.ModuleList(SelfAttention(dim, HEADS) for _ in range(ATTENTIONS))
        self.classes = nn.Linear(2 * dim, CLASSES)
        self.representation_dim = 2 * dim

    def represent(self, batch: Batch) -> Tensor:
        """What the head knows of each clip before it judges. Shape: frames of B clips [B, F, dim] -> [B, 2 dim].

        Raises ValueError for a batch without frames.
        """
        if batch.frames is None:
            raise ValueError("the predecessor's head hears MuQ; this batch holds none of its frames")
        mask = frame_mask(batch.lengths.to(batch.frames.device), batch.frames.shape[1])
        states = framewise(self.feed_forward, without_padding(batch.frames, mask))  # (B, F, dim)
        highest = masked_max(states, mask)
        for attention in self.attentions:
            states = attention(states, mask)
        return torch.cat([masked_mean(states, mask), highest], dim=-1)

    def judge(self, representation: Tensor) -> Tensor:
        """Shape: [B, 2 dim] -> raw outputs [B]."""
        classes: Tensor = self.classes(representation)
        return -classes[:, READ_CLASS]

    def forward(self, batch: Batch) -> Tensor:
        """Shape: B clips -> raw outputs [B]."""
        return self.judge(self.represent(batch))


def load_predecessor_head(head: PredecessorScoreHead, state: Mapping[str, Tensor], source: str) -> None:
    """Put the weights of the predecessor's head, by its names, into one of ours; its discriminator is left behind.

    Raises ModelError naming `source` and the keys that are missing, too many, or of another shape.
    """
    own = {name: value for name, value in state.items() if not name.startswith(DISCRIMINATOR_PREFIX)}
    shapes = {name: tuple(value.shape) for name, value in predecessor_state(head).items()}
    check_keys(own, shapes, source, "Save the model again.")
    head.load_state_dict({ours: own[theirs] for theirs, ours in NAMES.items()})


def predecessor_state(head: PredecessorScoreHead) -> dict[str, Tensor]:
    """A copy of a head's weights, on the CPU, by the predecessor's names, for `predecessor_folder.write_folder`."""
    state = head.state_dict()
    return {theirs: state[ours].detach().cpu().clone() for theirs, ours in NAMES.items()}
