"""Make the small encoders that ship with the repository: `python -m audioscore.training.pretrain --out FOLDER`.

They are the published classes at a fraction of the size. CAM++ learns to tell apart synthetic voices that no corpus
contains. MuQ stays at its random weights unless --muq-steps asks for its own masked-token objective: a random
conformer's frames already carry what the demo needs (figures in docs/LOG.md). Both are written in the published
layouts (MuQ: config.json + model.safetensors; CAM++: a ModelScope snapshot) and loaded by the code that loads those.
"""

import argparse
import json
import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioscore.data.audio import Recording, Wave
from audioscore.data.synthesis import speaker_clips
from audioscore.encoders.campplus import fbank
from audioscore.encoders.quiet import quiet_imports
from audioscore.files import atomic_folder
from audioscore.units import CAMPPLUS_RATE, MUQ_RATE

log = logging.getLogger(__name__)

SECONDS = 3.0
LOG_EVERY = 20
MELSPEC_MEAN, MELSPEC_STD = 6.768444971712967, 18.417922652295623  # of the published MuQ's config.json
COSINE_SCALE = 16.0  # normalised softmax; an angular margin on top did not start to learn in this few steps
CROP_FRAMES = 100  # 1 s: random crops, so that no two views of a clip are the same


def muq_config(*, dim: int = 128, depth: int = 4, conv_dim: int = 32, codebook: int = 1024) -> dict[str, Any]:
    """config.json of a small MuQ; every key the network reads is named."""
    conformer = {
        "num_attention_heads": 4, "intermediate_size": 2 * dim, "hidden_act": "swish", "activation_dropout": 0.0,
        "hidden_dropout": 0.0, "attention_dropout": 0.0, "conformer_conv_dropout": 0.0,
        "conv_depthwise_kernel_size": 31, "position_embeddings_type": "rotary", "rotary_embedding_base": 10000,
        "num_conv_pos_embeddings": 128, "num_conv_pos_embedding_groups": 16, "feat_extract_activation": "gelu",
        "layer_norm_eps": 1e-5, "layerdrop": 0.0,
    }  # fmt: skip
    return {
        "encoder_dim": dim, "encoder_depth": depth, "conv_dim": conv_dim, "codebook_size": codebook,
        "stat": {"melspec_2048_mean": MELSPEC_MEAN, "melspec_2048_std": MELSPEC_STD}, "w2v2_config": conformer,
    }  # fmt: skip


def build_muq(config: dict[str, Any], seed: int) -> nn.Module:
    """A MuQ of this configuration with random weights. Its constructor seeds Python's `random`; that is undone."""
    with quiet_imports():
        from muq import MuQ
        from muq.muq.muq import MuQConfig
    state = random.getstate()
    torch.manual_seed(seed)
    model: nn.Module = MuQ(MuQConfig(**config))
    random.setstate(state)
    return model


def save_muq(model: Any, config: dict[str, Any], folder: Path) -> None:
    """Write a MuQ as the hub lays it out. Shape of the folder: config.json, model.safetensors."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def build_campplus(*, dim: int = 192, growth: int = 8, channels: int = 32, seed: int = 0) -> nn.Module:
    """A CAM++ with random weights."""
    with quiet_imports():
        from modelscope.models.audio.sv.DTDNN import CAMPPlus
    torch.manual_seed(seed)
    model: nn.Module = CAMPPlus(
        feat_dim=80, embedding_size=dim, growth_rate=growth, init_channels=channels, memory_efficient=False
    )
    return model


def save_campplus(model: nn.Module, folder: Path, *, dim: int = 192, name: str = "campplus_small.bin") -> None:
    """Write a CAM++ as a ModelScope snapshot: configuration.json and the state dict it names."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}, folder / name)
    settings = {"sample_rate": CAMPPLUS_RATE, "fbank_dim": 80, "emb_size": dim}
    configuration = {
        "framework": "pytorch",
        "task": "speaker-verification",
        "model": {"type": "cam++-sv", "model_config": settings, "pretrained_model": name},
    }
    (folder / "configuration.json").write_text(json.dumps(configuration, indent=2) + "\n", encoding="utf-8")


def train_muq(
    model: Any, waves: Sequence[Wave], *, steps: int, batch: int = 12, rate: float = 5e-4, seed: int = 0
) -> None:
    """MuQ's own objective: guess the tokens of masked frames.

    Shape: each wave [T] at 24 kHz, T equal and a multiple of 960 (one frame).
    """
    torch.manual_seed(seed)
    audio = torch.from_numpy(np.stack(waves))

    def loss_of(chosen: Tensor) -> tuple[Tensor, str]:
        _, _, losses, accuracies = model.model(audio[chosen])
        return sum(losses.values(), torch.zeros(())), f"token accuracy {float(next(iter(accuracies.values()))):.3f}"

    _descend(model, loss_of, len(waves), steps=steps, batch=batch, rate=rate, name="MuQ")


def train_campplus(
    model: nn.Module, waves: Sequence[Wave], singers: Sequence[int], *, steps: int, batch: int = 24, rate: float = 2e-3,
    seed: int = 0,
) -> None:  # fmt: skip
    """Speaker classification. Shape: each wave [T] at 24 kHz, equal T."""
    torch.manual_seed(seed)
    heard = (Recording(wave, MUQ_RATE).at(CAMPPLUS_RATE) for wave in waves)
    features = torch.stack([fbank(torch.from_numpy(wave)) for wave in heard])
    labels = torch.tensor(singers)
    with torch.inference_mode():
        dim = int(model.eval()(features[:1]).shape[-1])
    centres = nn.Parameter(torch.randn(int(labels.max()) + 1, dim) * 0.1)

    def loss_of(chosen: Tensor) -> tuple[Tensor, str]:
        start = int(torch.randint(features.shape[1] - CROP_FRAMES + 1, ()))
        embedding = model(features[chosen, start : start + CROP_FRAMES])
        cosine = F.normalize(embedding) @ F.normalize(centres).T
        hits = (cosine.argmax(1) == labels[chosen]).float().mean()
        return F.cross_entropy(cosine * COSINE_SCALE, labels[chosen]), f"singer accuracy {float(hits):.3f}"

    _descend(model, loss_of, len(waves), steps=steps, batch=batch, rate=rate, name="CAM++", extra=[centres])


def _descend(
    model: nn.Module, loss_of: Callable[[Tensor], tuple[Tensor, str]], clips: int, *, steps: int, batch: int,
    rate: float, name: str, extra: Sequence[nn.Parameter] = (),
) -> None:  # fmt: skip
    """AdamW on a one-cycle schedule over random batches, clipped gradients."""
    parameters = [*(parameter for parameter in model.parameters() if parameter.requires_grad), *extra]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    model.train()
    for step in range(1, steps + 1):
        loss, figure = loss_of(torch.randperm(clips)[:batch])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % LOG_EVERY == 0 or step == steps:
            log.info("%s step %d of %d: loss %.3f, %s", name, step, steps, loss.item(), figure)
    model.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train both encoders and write them under --out as muq-small/ and campplus-small/."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--singers", type=int, default=100)
    parser.add_argument("--clips-per-singer", type=int, default=8)
    parser.add_argument("--muq-steps", type=int, default=0, help="of masked-token training; 0 leaves MuQ random")
    parser.add_argument("--campplus-steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=2024)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pairs = list(speaker_clips(options.singers, options.clips_per_singer, SECONDS, options.seed))
    singers, waves = [singer for singer, _ in pairs], [wave for _, wave in pairs]
    log.info("%d clips of %d voices", len(waves), options.singers)
    config = muq_config()
    muq = build_muq(config, options.seed).eval()
    campplus = build_campplus(seed=options.seed)
    train_campplus(campplus, waves, singers, steps=options.campplus_steps, seed=options.seed)
    if options.muq_steps:
        train_muq(muq, waves, steps=options.muq_steps, seed=options.seed)
    with atomic_folder(options.out) as folder:
        save_muq(muq, config, folder / "muq-small")
        save_campplus(campplus, folder / "campplus-small")
    log.info("wrote %s", options.out)


if __name__ == "__main__":
    main()
