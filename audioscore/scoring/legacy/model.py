"""The legacy model: MuQ with adapters in its attention layers, and a head that predicts the tag of a recording.

Only the layers that are read are run. The module `folder` reads and writes its files.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from audioscore.data.audio import Wave, decode
from audioscore.data.audio_checks import AudioLimits, findings, measure_recording, scoring_notes
from audioscore.encoders.muq import MIN_SAMPLES, load_muq
from audioscore.errors import AudioError, ModelError, UsageError
from audioscore.scoring.fusion import frame_mask, framewise, masked_max, masked_mean, without_padding
from audioscore.scoring.head import SelfAttention
from audioscore.scoring.legacy.folder import (
    HEAD,
    MUQ,
    LegacyAdapter,
    LegacyWeights,
    Shape,
    TensorDict,
    check_factor,
    check_keys,
    read_files,
    split_muq,
    write_folder,
)
from audioscore.scoring.network import Batch
from audioscore.units import MUQ_RATE

log = logging.getLogger(__name__)

READ_LAYER = 6
HEADS, ATTENTIONS, CLASSES, READ_CLASS = 8, 4, 5, 1
DISCRIMINATOR = (512, 256)  # default hidden and output size
LAYERS, FINAL_NORM = "model.conformer.layers", "model.conformer.layer_norm"
# Attention over a whole file needs memory with the square of its length: 2.3 GB per matrix for 4 minutes, at 16 heads.
MAX_SECONDS = 900.0
REFUSED = ("too_short", "silent")  # of the rules of the data gate; legacy models score recordings that break others
DISCRIMINATOR_PREFIX = "speaker_discriminator."  # weights of the adversary, which tags do not depend on

# Legacy name of each weight, and its name in `LegacyScoreHead`.
NAMES = {
    f"{legacy}.{leaf}": f"{name}.{leaf}"
    for legacy, name in (("ffd.0", "feed_forward.0"), ("ffd.2", "feed_forward.2"), ("fc", "classes"))
    for leaf in ("weight", "bias")
} | {
    f"attn.{layer}.{legacy}": f"attentions.{layer}.{name}"
    for layer in range(ATTENTIONS)
    for legacy, name in (
        ("in_proj_weight", "inputs.weight"), ("in_proj_bias", "inputs.bias"),
        ("out_proj.weight", "output.weight"), ("out_proj.bias", "output.bias"),
    )
}  # fmt: skip


class LegacyHead(nn.Module):
    """The head with the names of legacy weights, which computes tags exactly as the legacy code does.

    Feed-forward layer; four chained self-attention layers without residual or norm; time-mean of the last attention
    output and time-maximum of the feed-forward output; linear layer; tanh.

    Args:
        discriminator: Hidden and output size of the adversary's layers, which tags do not depend on; None: no layers.
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
        """Predict tags from 1 to 5. Shape: frames [B, F, D] without padding -> [B]."""
        fed = self.ffd(frames)  # (B, F, D)
        states = fed
        for attention in self.attn:
            states, _ = attention(states, states, states, need_weights=False)
        pooled = torch.cat([states.mean(dim=1), fed.amax(dim=1)], dim=1)  # (B, 2 D)
        tags: Tensor = 2.0 * torch.tanh(self.fc(pooled)) + 3.0
        return tags[:, READ_CLASS]


class LegacyModel:
    """A loaded legacy model in eval mode; a recording always gets the same tag. Thread-safe.

    `module` is MuQ up to the layer that is read, with merged adapters; `weights` is the content of the folder, for
    saving.
    """

    def __init__(self, weights: LegacyWeights, module: nn.Module, head: LegacyHead, source: str, depth: int) -> None:
        self.weights = weights
        self.module = module
        self.head = head
        self.source = source
        self.depth = depth
        self.device = "cpu"

    def to(self, device: str) -> None:
        """Move the modules to a device; the weights for saving stay on the CPU."""
        self.module.to(device)
        self.head.to(device)
        self.device = device

    def tag(self, wave: Wave, *, half: bool = False) -> float:
        """Predict the tag of a whole recording, from 1 (best) to 5. `half`: MuQ in float16, ignored on a CPU.

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
            raise ModelError(f"recording of {seconds:.1f} s: the model output is {value}. Use another model.")
        return value

    def save(self, folder: Path, *, rank: int, alpha: float, full: bool | None = None) -> None:
        """Write the model folder. `full`: with MuQ's weights; None: the variant that was read.

        Raises ModelError if MuQ is included and the scale of the adapters is not `alpha / rank`.
        """
        base = None if full is False else self.weights.base
        if full and base is None:
            base = load_muq(self.source, layer=self.depth).module.state_dict()
        if base is not None:
            check_factor(self.weights.adapters, rank, alpha)
        write_folder(self.weights, folder, base=base)


def load_legacy_model(folder: Path, muq: str, *, use_grl: bool, rank: int, alpha: float) -> LegacyModel:
    """Load a legacy folder, strictly. Layer sizes are read from the weights.

    Args:
        muq: Hub id or folder.
        rank, alpha: Only used for a folder with a full MuQ.
    Raises: ModelError if a file is missing or damaged, with the keys that are missing, too many or of another shape.
    """
    head_state, stored = read_files(folder)
    head = _build_head(head_state, str(folder / HEAD), use_grl)
    encoder = load_muq(muq, layer=READ_LAYER, window_seconds=None)
    depth, module = int(encoder.module.config.encoder_depth), encoder.module
    if head.fc.in_features != 2 * encoder.dim:
        raise ModelError(
            f"{folder / HEAD}: needs frames of {head.fc.in_features // 2} channels; {muq} has {encoder.dim}. "
            f"Pass the MuQ that the folder was trained with."
        )
    shapes = _muq_shapes(module, depth, encoder.dim)
    adapters, base = split_muq(stored, shapes, str(folder / MUQ), rank=rank, alpha=alpha)
    if base is not None:
        module.load_state_dict({name: base[name] for name in module.state_dict()})
    _merge(module, adapters)
    return LegacyModel(LegacyWeights(head_state, adapters, base), module, head, muq, depth)


def decode_legacy(path: str) -> Wave:
    """Decode a file as the legacy code does: average the channels, resample to 24 kHz (soxr HQ), round the length up.

    librosa.load does the same, and gives the same samples for 16-bit wav. For compressed files, the legacy decoder
    first rounds each channel to 16 bit and may cut the encoder delay differently; this is not reproduced.

    Notes (see `scoring_notes`) are logged as warnings.

    Shape: -> [ceil(T * 24 000 / rate)].
    Raises: AudioError if the file cannot be decoded, is too short, too long or silent.
    """
    recording = decode(path, max_seconds=MAX_SECONDS)
    measured = measure_recording(recording)
    for found in findings(measured, AudioLimits(min_seconds=MIN_SAMPLES / MUQ_RATE)):
        if found.rule in REFUSED:
            raise AudioError(f"{path}: {found.reason}")
    for note in scoring_notes(measured):
        log.warning("%s: %s", path, note)
    return recording.resample_rounded_up(MUQ_RATE)


def _build_head(state: TensorDict, source: str, use_grl: bool) -> LegacyHead:
    """The head with its weights, in eval mode; its sizes are those of the weights."""

    def rows(name: str, default: int) -> int:
        return len(state[name]) if name in state and state[name].ndim else default

    dim, hidden = rows("ffd.2.weight", HEADS), rows("ffd.0.weight", 1)
    if dim % HEADS:
        raise ModelError(f"{source}: has {dim} channels, not a multiple of its {HEADS} heads. Save the model again.")
    speaker = "speaker_discriminator"
    sizes = rows(f"{speaker}.0.weight", DISCRIMINATOR[0]), rows(f"{speaker}.3.weight", DISCRIMINATOR[1])
    head = LegacyHead(dim, hidden, sizes if use_grl else None)
    adversarial = any(name.startswith(speaker) for name in state)
    hint = "Save the model again." if adversarial == use_grl else f"Pass use_grl={adversarial}."
    check_keys(state, {name: tuple(value.shape) for name, value in head.state_dict().items()}, source, hint)
    head.load_state_dict(state)
    return head.eval().requires_grad_(False)


def _muq_shapes(module: nn.Module, depth: int, dim: int) -> dict[str, Shape]:
    """Shapes of all tensors of a full MuQ, from one with only the layers that are read: all layers are alike."""
    shapes: dict[str, Shape] = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    first = {name.removeprefix(f"{LAYERS}.0."): shape for name, shape in shapes.items() if f"{LAYERS}.0." in name}
    for layer in range(READ_LAYER, depth):
        shapes |= {f"{LAYERS}.{layer}.{name}": shape for name, shape in first.items()}
    return shapes | {f"{FINAL_NORM}.{name}": (dim,) for name in ("weight", "bias")}


def _merge(module: nn.Module, adapters: Mapping[str, LegacyAdapter]) -> None:
    """Merge each adapter into its weight, with a single rounding, so that adapters need no extra computation."""
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for path, adapter in adapters.items():
            weight = parameters.get(f"{path}.weight")
            if weight is not None:  # in a layer that is read
                weight.copy_(weight.double() + adapter.scaling * (adapter.b.double() @ adapter.a.double()))


class LegacyScoreHead(nn.Module):
    """The legacy head for padded batches, with one raw output per clip; padding and other clips do not change it.

    The layers are those of `LegacyHead`. The raw output is minus the logit of the class that is read, so that higher
    is better and `generate_tag` is 2 + 2 tanh(raw). The other classes are kept to write the model back.
    Source: SongEval, arXiv 2505.10793.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        if dim < 1 or hidden < 1 or dim % HEADS:
            raise UsageError(
                f"legacy head with {dim} channels, hidden {hidden}: the channels of MuQ must be a multiple of the "
                f"{HEADS} attention heads. Use another MuQ or another head."
            )
        self.feed_forward = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.attentions = nn.ModuleList(SelfAttention(dim, HEADS) for _ in range(ATTENTIONS))
        self.classes = nn.Linear(2 * dim, CLASSES)
        self.representation_dim = 2 * dim

    def represent(self, batch: Batch) -> Tensor:
        """Pool each clip to the input of `predict`. Shape: frames [B, F, dim] -> [B, 2 dim].

        Raises ValueError for a batch without frames.
        """
        if batch.frames is None:
            raise ValueError("the legacy head needs frames of MuQ; the batch has none")
        mask = frame_mask(batch.lengths.to(batch.frames.device), batch.frames.shape[1])
        states = framewise(self.feed_forward, without_padding(batch.frames, mask))  # (B, F, dim)
        highest = masked_max(states, mask)
        for attention in self.attentions:
            states = attention(states, mask)
        return torch.cat([masked_mean(states, mask), highest], dim=-1)

    def predict(self, representation: Tensor) -> Tensor:
        """Shape: [B, 2 dim] -> raw outputs [B]."""
        classes: Tensor = self.classes(representation)
        return -classes[:, READ_CLASS]

    def forward(self, batch: Batch) -> Tensor:
        """Shape: B clips -> raw outputs [B]."""
        return self.predict(self.represent(batch))


def load_legacy_head(head: LegacyScoreHead, state: Mapping[str, Tensor], source: str) -> None:
    """Load legacy head weights (`weights.pt`) into `head`; the discriminator is ignored.

    Raises ModelError with `source` and the keys that are missing, too many, or of another shape.
    """
    own = {name: value for name, value in state.items() if not name.startswith(DISCRIMINATOR_PREFIX)}
    shapes = {name: tuple(value.shape) for name, value in legacy_state(head).items()}
    check_keys(own, shapes, source, "Save the model again.")
    head.load_state_dict({name: own[legacy] for legacy, name in NAMES.items()})


def legacy_state(head: LegacyScoreHead) -> dict[str, Tensor]:
    """Copy a head's weights to the CPU, with their legacy names, for `write_folder`."""
    state = head.state_dict()
    return {legacy: state[name].detach().cpu().clone() for legacy, name in NAMES.items()}
