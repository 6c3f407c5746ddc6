"""The LSTM speaker encoder that SaMoye's voice conversion carries, from its `speaker_pretrain` folder.

`best_model.pth.tar` holds the weights under "model", `config.json` (JSON with // comments) how it hears: three LSTM
layers, each followed by a projection to 256, over 80 mel bands in decibels; the last frame's projection is the voice.

A recording is trimmed of silence at its ends, brought to one peak level and heard in 10 windows of 250 frames (4 s),
evenly spaced from its first frame to its last and always the same; a shorter one is heard whole. Upstream leaves their
mean unnormalised; here it has length 1, as every speaker target.

Source: Coqui TTS's speaker encoder, as in CarlWangChina/SaMoye-SVC (SaMoye-Experiments/speaker_pretrain).
"""

import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audioscore.encoders.speakers.targets import (
    SPEAKER_RATE,
    MelBands,
    SpeakerTarget,
    check_names,
    fill,
    mel_windows,
    read_checkpoint,
)
from audioscore.errors import AudioError, ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS, CONFIG = "best_model.pth.tar", "config.json"
WINDOWS, WINDOW = 10, 250  # how many, and frames in each
PEAK = 0.95
MARGIN = SPEAKER_RATE // 100  # 10 ms cut from both ends before silence is looked for
QUIETEST = 1e-5  # amplitude below which nothing is told apart: -100 dB
STRING_OR_COMMENT = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*')
# What the computation below assumes; a setting that is not in the file has this value upstream.
STATED = {"sample_rate": SPEAKER_RATE, "signal_norm": True, "symmetric_norm": True, "clip_norm": True}
DEFAULTS = {"spec_gain": 20, "log_func": "np.log10", "stft_pad_mode": "reflect", "do_amp_to_db_mel": True}


@dataclass(frozen=True)
class Hearing:
    """How the encoder hears: mel bands of the pre-emphasised wave, decibels from `floor` (below `reference`) mapped to
    -span..span. `trim` is how far below the loudest frame silence begins, in dB.
    """

    bands: MelBands
    preemphasis: float
    floor: float
    reference: float
    span: float
    trim: float


def load_samoye(folder: Path, *, device: str = "cpu") -> SpeakerTarget:
    """Load the encoder from a folder with best_model.pth.tar and config.json; sizes are read from the weights.

    Raises ModelError where a file is missing or damaged, the weights are not exactly those of such an encoder, or the
    configuration asks for something else than published.
    """
    import torch
    from torch import nn

    folder = Path(folder).expanduser()
    source, config = folder / WEIGHTS, folder / CONFIG
    if missing := [path.name for path in (source, config) if not path.is_file()]:
        raise ModelError(f"{folder}: {' and '.join(missing)} missing. Give a folder with {WEIGHTS} and {CONFIG}.")
    state = read_checkpoint(source, "model")
    count = sum(name.endswith(".linear.weight") for name in state)
    parts = ("lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0", "lstm.bias_hh_l0", "linear.weight")
    check_names(state, [f"layers.{layer}.{part}" for layer in range(max(count, 1)) for part in parts], source)
    try:
        sizes, bands = [state[f"layers.{i}.linear.weight"].shape for i in range(count)], state[f"layers.0.{parts[0]}"]
        with torch.random.fork_rng(devices=[]):  # the first weights are random, and replaced
            layers = nn.ModuleList()
            for index, (dim, hidden) in enumerate(sizes):
                lstm = nn.LSTM(bands.shape[1] if index == 0 else sizes[index - 1][0], hidden, batch_first=True)
                layers.append(nn.ModuleDict({"lstm": lstm, "linear": nn.Linear(hidden, dim, bias=False)}))
    except (IndexError, ValueError) as fault:
        raise ModelError(f"{source}: its weights are no matrices. Give the published checkpoint.") from fault
    module = nn.ModuleDict({"layers": layers})
    fill(module, state, source)
    hearing = read_hearing(config)
    if hearing.bands.count != bands.shape[1]:
        raise ModelError(f"{config}: num_mels {hearing.bands.count}, but the weights hear {bands.shape[1]} bands.")
    return SpeakerTarget(module, int(sizes[-1][0]), "samoye", (config, source), partial(_listen, hearing), device)


def read_hearing(source: Path) -> Hearing:
    """The "audio" section of config.json. Raises ModelError, naming the setting, for what is not supported."""
    try:
        text = STRING_OR_COMMENT.sub(
            lambda found: "" if found[0].startswith("/") else found[0], source.read_text(encoding="utf-8-sig")
        )
        audio: dict[str, Any] = json.loads(text)["audio"]
        asked = {name: audio[name] for name in STATED} | {name: audio.get(name, DEFAULTS[name]) for name in DEFAULTS}
        asked["stats_path"] = audio.get("stats_path")
        hearing = _hearing(audio)
    except (ValueError, LookupError, TypeError, AttributeError) as fault:
        raise ModelError(f"{source}: damaged or incomplete ({type(fault).__name__}: {fault}).") from fault
    for name, wanted in {**STATED, **DEFAULTS, "stats_path": None}.items():
        if asked[name] != wanted:
            raise ModelError(f"{source}: {name} is {asked[name]!r}; only {wanted!r}, as published, can be heard.")
    return hearing


def _hearing(audio: dict[str, Any]) -> Hearing:
    fft, window, hop, mels = (int(audio[name]) for name in ("fft_size", "win_length", "hop_length", "num_mels"))
    low, high = float(audio["mel_fmin"] or 0), float(audio["mel_fmax"] or SPEAKER_RATE / 2)
    floor, span = float(audio["min_level_db"]), float(audio["max_norm"])
    if not (hop > 0 and mels > 0 and 0 < window <= fft and 0 <= low < high <= SPEAKER_RATE / 2):
        raise ValueError(f"no spectrogram has fft {fft}, window {window}, hop {hop}, {mels} bands of {low}-{high} Hz")
    if floor >= 0 or span <= 0:
        raise ValueError(f"min_level_db {floor} must be below 0 and max_norm {span} above")
    return Hearing(
        MelBands(SPEAKER_RATE, fft, window, hop, mels, low, high, 1.0),
        preemphasis=float(audio["preemphasis"]),
        floor=floor,
        reference=float(audio["ref_level_db"]),
        span=span,
        trim=float(audio["trim_db"]),
    )


def window_starts(frames: int) -> list[int]:
    """First frames of the windows that a recording is heard in.

    >>> window_starts(1150)
    [0, 100, 200, 300, 400, 500, 600, 700, 800, 900]
    >>> window_starts(100)
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    """
    import numpy as np

    return [int(start) for start in np.linspace(0, max(0, frames - WINDOW), WINDOWS)]


def samoye_mel(hearing: Hearing, wave: "Tensor") -> "Tensor":
    """Mel bands in decibels, mapped to -span..span, in the windows of a recording; F is 250, or all where it has fewer.

    Shape: wave [T] at 16 kHz -> [10, F, bands]. Raises AudioError where too little is left without silence.
    """
    import torch

    bands = hearing.bands
    wave = _trim(hearing, wave)
    if len(wave) <= bands.fft // 2:
        raise AudioError(
            f"Without the silence at its ends the wave has {len(wave)} samples; more than {bands.fft // 2} are needed. "
            "Leave the recording out."
        )
    wave = (wave / wave.abs().max() * PEAK).double()  # float32 would round what the logarithm makes visible
    wave = torch.cat([wave[:1], wave[1:] - hearing.preemphasis * wave[:-1]])
    frames = bands.frames(len(wave))
    mel = mel_windows(wave, window_starts(frames), min(frames, WINDOW), bands, pad="reflect")
    decibels = 20 * mel.clamp(min=QUIETEST).log10() - hearing.reference
    scaled = 2 * hearing.span * (decibels - hearing.floor) / -hearing.floor - hearing.span
    return scaled.clamp(-hearing.span, hearing.span).float()


def _trim(hearing: Hearing, wave: "Tensor") -> "Tensor":
    """Without the silence at its ends, as librosa.effects.trim cuts it. Shape: [T] -> [T']."""
    import torch.nn.functional as F

    wave = wave[MARGIN:-MARGIN]
    bands = hearing.bands
    energy = F.pad(wave.double().square(), (bands.window // 2, bands.window // 2)).unfold(0, bands.window, bands.hop)
    level = 20 * energy.mean(dim=1).sqrt().clamp(min=QUIETEST).log10()  # (frames,)
    loud = (level > level.max() - hearing.trim).nonzero()[:, 0]
    return wave[int(loud[0]) * bands.hop : (int(loud[-1]) + 1) * bands.hop]


def _listen(hearing: Hearing, module: "nn.Module", wave: "Tensor") -> "Tensor":
    """Mean of the windows' voices. Shape: wave [T] -> [dim]."""
    import torch.nn.functional as F

    layers: Any = module.get_submodule("layers")
    frames = samoye_mel(hearing, wave).to(layers[0]["linear"].weight.device)
    for layer in layers:
        frames = layer["linear"](layer["lstm"](frames)[0])  # (10, F, dim)
    return F.normalize(frames[:, -1], dim=1).mean(dim=0)
