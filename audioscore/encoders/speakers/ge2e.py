"""Resemblyzer's speaker encoder (GE2E), from its published `pretrained.pt` alone.

Three LSTM layers over energies in 40 mel bands (not their logarithm), a linear layer and a ReLU, so no element of an
embedding is negative. It was trained on speech.

Unlike the package, this keeps silences: the package's voice-activity detector is for speech, and drops held notes.

Source: Wan et al. 2018, Generalized End-to-End Loss for Speaker Verification, arXiv 1710.10467; package Resemblyzer
0.1.4, weights and code Apache-2.0.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from audioscore.encoders.speakers.targets import (
    MelBands,
    SpeakerTarget,
    check_names,
    fill,
    mel_windows,
    read_checkpoint,
)
from audioscore.errors import ModelError
from audioscore.units import CAMPPLUS_RATE

if TYPE_CHECKING:
    from torch import Tensor, nn

HOP = CAMPPLUS_RATE // 100  # 10 ms
FFT = CAMPPLUS_RATE // 40  # 25 ms
PARTIAL = 160  # frames of a partial, the encoder's input: 1.6 s
STEP = 77  # frames from one partial to the next: 100 frames/s / 1.3 partials/s
COVERAGE = 0.75  # share of the last partial that must be recording rather than padding
LEVEL_DB = -30.0  # relative to full scale: quieter recordings are amplified to this, since energies are not logarithms
LOSS = ("similarity_weight", "similarity_bias")  # parameters of the training loss
BATCH = 64  # partials per forward pass, which bounds memory


def load_ge2e(source: Path, *, device: str = "cpu") -> SpeakerTarget:
    """Load a checkpoint in the layout of Resemblyzer's `pretrained.pt`; sizes are read from its weights.

    Raises: ModelError where it is missing, damaged, or does not have exactly the weights of such an encoder.
    """
    import torch
    from torch import nn

    source = Path(source).expanduser()
    state = {name: value for name, value in read_checkpoint(source, "model_state").items() if name not in LOSS}
    layers = sum(name.startswith("lstm.weight_hh_l") for name in state)
    parts = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    names = [f"lstm.{part}_l{layer}" for layer in range(max(layers, 1)) for part in parts]
    check_names(state, [*names, "linear.weight", "linear.bias"], source)
    try:
        bands, (dim, hidden) = state["lstm.weight_ih_l0"].shape[1], state["linear.weight"].shape
    except (IndexError, ValueError) as error:
        raise ModelError(f"{source}: its weights are not matrices. Give the published checkpoint.") from error
    with torch.random.fork_rng(devices=[]):  # keeps the caller's random state; the random weights are replaced
        module = nn.ModuleDict(
            {"lstm": nn.LSTM(bands, hidden, layers, batch_first=True), "linear": nn.Linear(hidden, dim)}
        )
    fill(module, state, source)
    return SpeakerTarget(module, dim, "ge2e", (source,), _embed, device)


def partials(samples: int) -> list[int]:
    """Compute the first frames of a recording's partials, as in Resemblyzer at its default rate.

    The last may extend beyond the recording's end, and is padded with zeros.

    >>> partials(8_000), partials(32_000), partials(48_000)
    ([0], [0, 77], [0, 77, 154])
    """
    frames = -(-(samples + 1) // HOP)
    starts = list(range(0, max(1, frames - PARTIAL + STEP + 1), STEP))
    if len(starts) > 1 and (samples / HOP - starts[-1]) / PARTIAL < COVERAGE:
        starts.pop()
    return starts


def ge2e_mel(wave: "Tensor", starts: list[int], count: int = 40) -> "Tensor":
    """Compute energies in `count` mel bands, 160 frames from each of `starts` on, zeros beyond the recording.

    Shape: wave [T] at 16 kHz, W starts -> [W, 160, count].
    """
    import torch.nn.functional as F

    bands = MelBands(CAMPPLUS_RATE, FFT, FFT, HOP, count, 0.0, CAMPPLUS_RATE / 2, 2.0)
    wave = F.pad(wave, (0, max(0, (starts[-1] + PARTIAL) * HOP - len(wave))))
    return mel_windows(wave, starts, PARTIAL, bands, pad="constant")


def _embed(module: "nn.Module", wave: "Tensor") -> "Tensor":
    """Mean of the embeddings of all partials. Shape: wave [T] -> [dim]."""
    import torch
    import torch.nn.functional as F

    lstm: Any = module.get_submodule("lstm")
    linear: Any = module.get_submodule("linear")
    level = 10 * wave.double().square().mean().log10().item()
    wave = wave * 10 ** (max(0.0, LEVEL_DB - level) / 20)
    starts, embeddings = partials(len(wave)), []
    for first in range(0, len(starts), BATCH):
        mel = ge2e_mel(wave, starts[first : first + BATCH], lstm.input_size).to(linear.weight.device)
        _, (hidden, _) = lstm(mel)
        embeddings.append(F.normalize(F.relu(linear(hidden[-1])), dim=1))
    return torch.cat(embeddings).mean(dim=0)
