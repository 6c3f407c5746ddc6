"""The predecessor's model: MuQ with adapters in its attention, its head, and the tag that it gives a recording.

Only the layers that are read are run. The folders it comes from: `predecessor_folder`.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from audioscore.data.audio import Wave, decode
from audioscore.data.audio_checks import ProbeLimits, findings, probe
from audioscore.encoders.muq import MIN_SAMPLES, load_muq
from audioscore.errors import AudioError, ModelError, UsageError
from audioscore.scoring.fusion import frame_mask, framewise, masked_max, masked_mean, without_padding
from audioscore.scoring.head import SelfAttention
from audioscore.scoring.legacy.folder import (
    HEAD,
    MUQ,
    Adapter,
    Shape,
    State,
    Weights,
    check_factor,
    check_keys,
    read_files,
    split_muq,
    write_folder,
)
from audioscore.scoring.network import Batch
from audioscore.units import MUQ_RATE

READ_LAYER = 6
HEADS, ATTENTIONS, CLASSES, READ_CLASS = 8, 4, 5, 1
DISCRIMINATOR = (512, 256)  # hidden and output size where the weights do not say
LAYERS, FINAL_NORM = "model.conformer.layers", "model.conformer.layer_norm"
# Attention over a whole file takes memory with the square of its length: at 16 heads 2.3 GB a matrix for 4 minutes.
MAX_SECONDS = 900.0
REFUSED = ("too_short", "silent")  # of the data gate's rules; the predecessor scores what breaks the others


class PredecessorHead(nn.Module):
    """Feed-forward, four chained self-attentions without residual or norm, mean of these and maximum of that, tanh.

    `discriminator` adds the adversary's layers, which no tag depends on: their hidden and output sizes.
    Source: SongEval, arXiv 2505.10793.
    """

    def __init__(self, dim: int, hidden: int, discriminator: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.attn = nn.ModuleList(nn.MultiheadAttention(dim, HEADS, batch_first=True) for _ in range(ATTENTIONS))
        self.ffd = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.fc = nn.Linear(2 * dim, CLASSES)
        if discriminator is not None:
            middle, out = discriminator
            self.speaker_discriminator = nn.Sequential(
                nn.Linear(2 * dim, middle), nn.ReLU(), nn.Dropout(0.3), nn.Linear(middle, out)
            )

    def forward(self, frames: Tensor) -> Tensor:
        """Tags from 1 to 5. Shape: frames [B, F, D], none of them padding -> [B]."""
        fed = self.ffd(frames)  # (B, F, D)
        states = fed
        for attention in self.attn:
            states, _ = attention(states, states, states, need_weights=False)
        pooled = torch.cat([states.mean(dim=1), fed.amax(dim=1)], dim=1)  # (B, 2 D)
        tags: Tensor = 2.0 * torch.tanh(self.fc(pooled)) + 3.0
        return tags[:, READ_CLASS]


class Predecessor:
    """A loaded model, in eval mode: the same recording gets the same tag, alone, again, and from several threads.

    `module` is MuQ up to the layer that is read, adapters merged; `weights` is all that its folder held, for saving.
    """

    def __init__(self, weights: Weights, module: nn.Module, head: PredecessorHead, source: str, depth: int) -> None:
        self.weights = weights
        self.module = module
        self.head = head
        self.source = source
        self.depth = depth
        self.device = "cpu"

    def to(self, device: str) -> None:
        """Move what is run; what is only kept for saving stays in the machine's memory."""
        self.module.to(device)
        self.head.to(device)
        self.device = device

    def tag(self, wave: Wave, *, half: bool = False) -> float:
        """The tag of a whole recording, from 1 (best) to 5, in one pass. `half`: MuQ in float16, but not on a CPU.

        Shape: wave [T] at 24 kHz, float32.
        """
        samples = torch.from_numpy(wave)[None].to(self.device)
        kind = torch.device(self.device).type
        with torch.inference_mode():
            with torch.autocast(kind, dtype=torch.float16, enabled=half and kind != "cpu"):
                frames: Tensor = self.module(samples).hidden_states[READ_LAYER]
            value = float(self.head(frames.float())[0])
        if not math.isfinite(value):
            seconds = len(wave) / MUQ_RATE
            raise ModelError(f"the model gives {value} for a recording of {seconds:.1f} s. Its weights are of no use.")
        return value

    def save(self, folder: Path, *, rank: int, alpha: float, full: bool | None = None) -> None:
        """Write the model's folder. `full`: with MuQ's weights; None writes what was read.

        Raises ModelError where `full` would lose the factor of the adapters, which must then be `alpha / rank`.
        """
        base = None if full is False else self.weights.base
        if full and base is None:
            base = load_muq(self.source, layer=self.depth).module.state_dict()
        if base is not None:
            check_factor(self.weights.adapters, rank, alpha)
        write_folder(self.weights, folder, base=base)


def load_predecessor(folder: Path, muq: str, *, use_grl: bool, rank: int, alpha: float) -> Predecessor:
    """Read a folder, strictly. Widths come from the weights; `rank` and `alpha` matter for a whole MuQ only.

    `muq` is a hub id or a folder. Raises ModelError where a file is missing or damaged, naming every key that is
    missing or too many, and tensors of another shape than the rest asks for.
    """
    head_state, stored = read_files(folder)
    head = _build_head(head_state, str(folder / HEAD), use_grl)
    encoder = load_muq(muq, layer=READ_LAYER, window_seconds=None)
    depth, module = int(encoder.module.config.encoder_depth), encoder.module
    if head.fc.in_features != 2 * encoder.dim:
        raise ModelError(
            f"{folder / HEAD}: reads frames of {head.fc.in_features // 2} channels; {muq} gives {encoder.dim}. "
            f"Name the MuQ that the folder was trained with."
        )
    shapes = _muq_shapes(module, depth, encoder.dim)
    adapters, base = split_muq(stored, shapes, str(folder / MUQ), rank=rank, alpha=alpha)
    if base is not None:
        module.load_state_dict({name: base[name] for name in module.state_dict()})
    _merge(module, adapters)
    return Predecessor(Weights(head_state, adapters, base), module, head, muq, depth)


def hear(path: str) -> Wave:
    """A whole file as the predecessor hears it: channels averaged, then soxr HQ to 24 kHz, its length rounded up.

    That is librosa.load's way, and for 16-bit wav the same samples. From compressed files the predecessor's decoder
    rounds each channel to 16 bit first, which is not imitated; it may also cut encoder delay differently.

    Shape: -> [ceil(T * 24 000 / rate)]. Raises AudioError where the file cannot be decoded, is too short, too long or
    silent.
    """
    recording = decode(path, max_seconds=MAX_SECONDS)
    for found in findings(probe(recording), ProbeLimits(min_seconds=MIN_SAMPLES / MUQ_RATE)):
        if found.rule in REFUSED:
            raise AudioError(f"{path}: {found.reason}")
    return recording.rounded_up(MUQ_RATE)


def _build_head(state: State, source: str, use_grl: bool) -> PredecessorHead:
    """The head with its weights, in eval mode; its widths are those of the weights."""

    def rows(name: str, otherwise: int) -> int:
        return len(state[name]) if name in state and state[name].ndim else otherwise

    dim, hidden = rows("ffd.2.weight", HEADS), rows("ffd.0.weight", 1)
    if dim % HEADS:
        raise ModelError(f"{source}: is {dim} channels wide, which its {HEADS} heads cannot share. Save it again.")
    speaker = "speaker_discriminator"
    sizes = rows(f"{speaker}.0.weight", DISCRIMINATOR[0]), rows(f"{speaker}.3.weight", DISCRIMINATOR[1])
    head = PredecessorHead(dim, hidden, sizes if use_grl else None)
    adversarial = any(name.startswith(speaker) for name in state)
    hint = "Save the model again." if adversarial == use_grl else f"Pass use_grl={adversarial}."
    check_keys(state, {name: tuple(value.shape) for name, value in head.state_dict().items()}, source, hint)
    head.load_state_dict(state)
    return head.eval().requires_grad_(False)


def _muq_shapes(module: nn.Module, depth: int, dim: int) -> dict[str, Shape]:
    """Shapes of a whole MuQ's tensors by name, from one that keeps the layers that are read: all layers are alike."""
    shapes: dict[str, Shape] = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    first = {name.removeprefix(f"{LAYERS}.0."): shape for name, shape in shapes.items() if f"{LAYERS}.0." in name}
    for layer in range(READ_LAYER, depth):
        shapes |= {f"{LAYERS}.{layer}.{name}": shape for name, shape in first.items()}
    return shapes | {f"{FINAL_NORM}.{name}": (dim,) for name in ("weight", "bias")}


def _merge(module: nn.Module, adapters: Mapping[str, Adapter]) -> None:
    """Add each adapter to the weight it adapts, rounded once: a pass then costs what it costs without adapters."""
    run = dict(module.named_parameters())
    with torch.no_grad():
        for path, adapter in adapters.items():
            weight = run.get(f"{path}.weight")
            if weight is not None:  # in a layer that is read
                weight.copy_(weight.double() + adapter.scaling * (adapter.b.double() @ adapter.a.double()))


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
