"""Pretrain the small encoders that the repository contains: `python -m audioscore.demo.pretrain --out FOLDER`.

They are the published classes at a fraction of the size, and play the roles of the published encoders. MuQ learns the
properties of a recording: the strength of each performance fault, and the recording domain; an adversary keeps the
voice out of its frames. CAM++ learns the voice: the parameters of the singer. Both are trained on synthetic voices and
songs that no corpus contains, and without scores (docs/LOG.md measures what they encode). They are written in the
published layouts (MuQ: config.json + model.safetensors; CAM++: a ModelScope snapshot).
"""

import argparse
import json
import logging
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from audioscore.data.audio import Recording, Wave
from audioscore.demo.corpus import faults_of, in_processes, render
from audioscore.demo.melody import BARS, draw_song
from audioscore.demo.performance import Faults, Singer, draw_singer, timbre_quality
from audioscore.demo.plan import DEMO_SONGS, NUISANCES, SOURCES, PlannedClip
from audioscore.encoders.campplus import fbank
from audioscore.encoders.compute import quiet_imports
from audioscore.errors import UsageError
from audioscore.files import atomic_folder
from audioscore.training.adversary import reverse_gradient
from audioscore.units import CAMPPLUS_RATE, MUQ_RATE

log = logging.getLogger(__name__)

SECONDS = 3.0
LOG_EVERY, CLIPS_EVERY = 20, 400
MELSPEC_MEAN, MELSPEC_STD = 6.768444971712967, 18.417922652295623  # from the published MuQ's config.json
CROP_FRAMES = 100  # 1 s; CAM++ is trained on random crops
READ_LAYER = 2  # of MuQ, as in small.yaml and demo.yaml
ADVERSARY_WEIGHT = 0.3  # of the reversed gradient
MAX_ADVERSARY_LOSS = 2.0  # squared error of standardised targets, above which the gradient is 0
ADVERSARY_UNITS = 64
PEAK = 32767  # of 16-bit samples

Samples = NDArray[np.int16]


@dataclass(frozen=True)
class PretrainingClip:
    """One synthetic recording and what it was made from. Shape: wave [seconds * 24 000], float32, 24 kHz."""

    singer: Singer
    faults: Faults
    source: str  # the recording domain: ktv or acapella
    wave: Wave


def pretraining_clips(
    singers: int, clips: int, seconds: float, seed: int, *, workers: int = 1
) -> Iterator[PretrainingClip]:
    """Synthesise `clips` recordings of each of `singers` voices, voice by voice.

    The seeds differ from those of a corpus, so that no corpus contains these voices or songs. Each clip of a voice has
    a different song, domain, level and performance: the clips have only the voice in common.

    Raises: UsageError for counts below one or less than 1 second.
    """
    if min(singers, clips, workers) < 1 or seconds < 1.0:
        raise UsageError(
            f"pretraining: at least 1 voice, 1 clip of each, 1 second and 1 worker are needed; got {singers}, {clips}, "
            f"{seconds} and {workers}. Raise them."
        )
    choir = int(np.random.SeedSequence([seed, 601]).generate_state(1)[0])
    songs = [draw_song(index, seed=choir, song_id=f"exercise{index + 1:03d}") for index in range(4 * DEMO_SONGS)]
    plan = []
    for index in range(singers):
        singer = draw_singer(index, seed=choir, singer_id=f"voice{index + 1:04d}")
        for turn in range(clips):
            rng = np.random.default_rng([choir, 602, index, turn])
            nuisances = {name: float(rng.uniform(low, high)) for name, (low, high) in NUISANCES.items()}
            planned = PlannedClip(
                audio_file="",
                score=0.0,
                singer=singer,
                song=songs[int(rng.integers(len(songs)))],
                source=str(rng.choice(tuple(SOURCES))),
                q_timbre=timbre_quality(singer),
                q_performance=float(rng.random()),
                first_bar=int(rng.integers(BARS)),
                seed=(choir, 603, index, turn),
                **{**nuisances, "seconds": seconds},
            )
            plan.append(planned)
    for planned, wave in zip(plan, in_processes(render, plan, workers), strict=True):
        yield PretrainingClip(planned.singer, faults_of(planned), planned.source, wave)


def muq_config(*, dim: int = 32, depth: int = 4, conv_dim: int = 16, codebook: int = 1024) -> dict[str, Any]:
    """Return config.json of a small MuQ, with every key that the network reads."""
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
    """Build a MuQ with random weights. Its constructor seeds Python's `random`, whose state is restored."""
    with quiet_imports():
        from muq import MuQ
        from muq.muq.muq import MuQConfig
    state = random.getstate()
    torch.manual_seed(seed)
    model: nn.Module = MuQ(MuQConfig(**config))
    random.setstate(state)
    return model


def save_muq(model: Any, config: dict[str, Any], folder: Path) -> None:
    """Write a MuQ in the layout of the hub: config.json and model.safetensors."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def build_campplus(*, dim: int = 192, growth: int = 8, channels: int = 32, seed: int = 0) -> nn.Module:
    """Build a CAM++ with random weights."""
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
    model: Any, clips: Sequence[Samples], sounds: Tensor, voices: Tensor, *, steps: int, batch: int = 16,
    rate: float = 3e-3, seed: int = 0,
) -> None:  # fmt: skip
    """Train MuQ to encode the properties of a recording (faults, domain), but not the voice.

    They are predicted from mean and deviation of the frames of READ_LAYER over time, like a light head does.

    Shape: each clip [T] at 24 kHz, equal T; sounds [N, S]; voices [N, V].
    """
    size = 2 * int(model.config.encoder_dim)
    reader = nn.Linear(size, sounds.shape[1])
    adversary = nn.Sequential(nn.Linear(size, ADVERSARY_UNITS), nn.GELU(), nn.Linear(ADVERSARY_UNITS, voices.shape[1]))
    sound_targets, voice_targets = _standardised(sounds), _standardised(voices)
    torch.manual_seed(seed)

    def loss_of(chosen: Tensor) -> tuple[Tensor, str]:
        waves = torch.from_numpy(np.stack([_wave(clips[index]) for index in chosen.tolist()]))
        frames = model(waves, output_hidden_states=True).hidden_states[READ_LAYER]
        pooled = torch.cat([frames.mean(1), frames.std(1)], 1)
        loss = F.mse_loss(reader(pooled), sound_targets[chosen])
        predicted = adversary(reverse_gradient(pooled, ADVERSARY_WEIGHT))
        adversarial = F.mse_loss(predicted, voice_targets[chosen]).clamp(max=MAX_ADVERSARY_LOSS)
        return loss + adversarial, f"error in sounds {loss.item():.3f}, in the voice {adversarial.item():.3f}"

    extra = [*reader.parameters(), *adversary.parameters()]
    _descend(model, loss_of, len(clips), steps=steps, batch=batch, rate=rate, name="MuQ", extra=extra)


def train_campplus(
    model: nn.Module, clips: Sequence[Samples], voices: Tensor, *, steps: int, batch: int = 32, rate: float = 2e-3,
    seed: int = 0,
) -> None:  # fmt: skip
    """Train CAM++ to encode the parameters of a voice. Shape: each clip [T] at 24 kHz, equal T; voices [N, V]."""
    torch.manual_seed(seed)
    waves = (Recording(_wave(clip), MUQ_RATE).at(CAMPPLUS_RATE) for clip in clips)
    features = torch.stack([fbank(torch.from_numpy(wave)).half() for wave in waves])  # 3,200 clips are 150 MB
    with torch.inference_mode():
        dim = int(model.eval()(features[:1].float()).shape[-1])
    reader, targets = nn.Linear(dim, voices.shape[1]), _standardised(voices)

    def loss_of(chosen: Tensor) -> tuple[Tensor, str]:
        start = int(torch.randint(features.shape[1] - CROP_FRAMES + 1, ()))
        embedding = model(features[chosen, start : start + CROP_FRAMES].float())
        loss = F.mse_loss(reader(embedding), targets[chosen])
        return loss, f"error in the voice {loss.item():.3f}"

    _descend(
        model, loss_of, len(clips), steps=steps, batch=batch, rate=rate, name="CAM++", extra=list(reader.parameters())
    )


def _samples(wave: Wave) -> Samples:
    """Convert to 16 bits, since thousands of clips are in memory at the same time."""
    return (np.clip(wave, -1, 1) * PEAK).astype(np.int16)


def _wave(samples: Samples) -> Wave:
    return samples.astype(np.float32) / np.float32(PEAK)


def _standardised(values: Tensor) -> Tensor:
    """Each column with mean 0 and deviation 1. Shape: [N, D] -> [N, D]."""
    return (values - values.mean(0)) / values.std(0)


def _descend(
    model: nn.Module, loss_of: Callable[[Tensor], tuple[Tensor, str]], clips: int, *, steps: int, batch: int,
    rate: float, name: str, extra: Sequence[nn.Parameter] = (),
) -> None:  # fmt: skip
    """Train with AdamW, a one-cycle schedule, random batches and clipped gradients."""
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
    """Train both encoders and write them to --out as muq-small/ and campplus-small/."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--voices", type=int, default=400)
    parser.add_argument("--clips-per-voice", type=int, default=8)
    parser.add_argument("--muq-steps", type=int, default=500)
    parser.add_argument("--campplus-steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that synthesise")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    clips, voices, sounds = [], [], []
    made = pretraining_clips(options.voices, options.clips_per_voice, SECONDS, options.seed, workers=options.workers)
    for clip in made:
        clips.append(_samples(clip.wave))
        voices.append(clip.singer.parameters())
        sounds.append((*clip.faults.levels(), float(clip.source == "ktv")))
        if len(clips) % CLIPS_EVERY == 0:
            log.info("%d of %d clips", len(clips), options.voices * options.clips_per_voice)
    config = muq_config()
    muq = build_muq(config, options.seed)
    train_muq(muq, clips, torch.tensor(sounds), torch.tensor(voices), steps=options.muq_steps)
    campplus = build_campplus(seed=options.seed)
    train_campplus(campplus, clips, torch.tensor(voices), steps=options.campplus_steps)
    with atomic_folder(options.out) as folder:
        save_muq(muq, config, folder / "muq-small")
        save_campplus(campplus, folder / "campplus-small")
    log.info("wrote %s", options.out)


if __name__ == "__main__":
    main()
