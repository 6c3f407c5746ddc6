"""The LSTM speaker encoder of SaMoye's voice conversion, from its `speaker_pretrain` folder.

`best_model.pth.tar` has the weights under "model", `config.json` (JSON with // comments) the spectrogram settings.
Three LSTM layers, each followed by a projection to 256, run on 80 mel bands in decibels; the last frame's projection
is the embedding.

Silence at a recording's ends is trimmed, its peak is normalized, and the encoder runs on 10 evenly spaced windows of
250 frames (4 s), or on the whole recording if it is shorter. Upstream does not normalize the mean of the windows; here
it has length 1, as for every speaker target.

Source: Coqui TTS's speaker encoder, as in CarlWangChina/SaMoye-SVC (SaMoye-Experiments/speaker_pretrain).
"""

import json
import re
from dataclasses import dataclass
from functools import partial
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
from audioscore.errors import AudioError, ModelError
from audioscore.units import CAMPPLUS_RATE

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS, CONFIG = "best_model.pth.tar", "config.json"
WINDOWS, WINDOW = 10, 250  # number of windows, and frames in each
PEAK = 0.95
MARGIN = CAMPPLUS_RATE // 100  # 10 ms cut from both ends before silence is trimmed
QUIETEST = 1e-5  # smallest amplitude: -100 dB
STRING_OR_COMMENT = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*')
# The computation below assumes these values; DEFAULTS are upstream's values for settings that are not in the file.
STATED = {"sample_rate": CAMPPLUS_RATE, "signal_norm": True, "symmetric_norm": True, "clip_norm": True}
DEFAULTS = {"spec_gain": 20, "log_func": "np.log10", "stft_pad_mode": "reflect", "do_amp_to_db_mel": True}


@dataclass(frozen=True)
class SamoyeSettings:
    """Settings of the spectrogram: mel bands of the pre-emphasised wave, decibels mapped to -span..span.

    `floor` is the lowest level, in dB relative to `reference`; frames more than `trim` dB below the loudest are silent.
    """

    bands: MelBands
    preemphasis: float
    floor: float
    reference: float
    span: float
    trim: float


def load_samoye(folder: Path, *, device: str = "cpu") -> SpeakerTarget:
    """Load the encoder from a folder with best_model.pth.tar and config.json; sizes are read from the weights.

    Raises: ModelError where a file is missing or damaged, the weights are not exactly those of such an encoder, or the
        configuration differs from the published one in an unsupported way.
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
        with torch.random.fork_rng(devices=[]):  # keeps the caller's random state; the random weights are replaced
            layers = nn.ModuleList()
            for index, (dim, hidden) in enumerate(sizes):
                lstm = nn.LSTM(bands.shape[1] if index == 0 else sizes[index - 1][0], hidden, batch_first=True)
                layers.append(nn.ModuleDict({"lstm": lstm, "linear": nn.Linear(hidden, dim, bias=False)}))
    except (IndexError, ValueError) as error:
        raise ModelError(f"{source}: its weights are not matrices. Give the published checkpoint.") from error
    module = nn.ModuleDict({"layers": layers})
    fill(module, state, source)
    settings = read_settings(config)
    if settings.bands.count != bands.shape[1]:
        raise ModelError(f"{config}: num_mels {settings.bands.count}, not {bands.shape[1]}. Give the published folder.")
    return SpeakerTarget(module, int(sizes[-1][0]), "samoye", (config, source), partial(_embed, settings), device)


def read_settings(source: Path) -> SamoyeSettings:
    """Read the "audio" section of config.json. Raises: ModelError, naming the setting, for an unsupported value."""
    try:
        text = STRING_OR_COMMENT.sub(
            lambda found: "" if found[0].startswith("/") else found[0], source.read_text(encoding="utf-8-sig")
        )
        audio: dict[str, Any] = json.loads(text)["audio"]
        given = {name: audio[name] for name in STATED} | {name: audio.get(name, DEFAULTS[name]) for name in DEFAULTS}
        given["stats_path"] = audio.get("stats_path")
        settings = _settings(audio)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{source}: damaged ({type(error).__name__}: {error}). Give the published folder.") from error
    for name, wanted in {**STATED, **DEFAULTS, "stats_path": None}.items():
        if given[name] != wanted:
            raise ModelError(f"{source}: {name} is {given[name]!r}; {wanted!r} is required. Give the published folder.")
    return settings


def _settings(audio: dict[str, Any]) -> SamoyeSettings:
    fft, window, hop, mels = (int(audio[name]) for name in ("fft_size", "win_length", "hop_length", "num_mels"))
    low, high = float(audio["mel_fmin"] or 0), float(audio["mel_fmax"] or CAMPPLUS_RATE / 2)
    floor, span = float(audio["min_level_db"]), float(audio["max_norm"])
    if not (hop > 0 and mels > 0 and 0 < window <= fft and 0 <= low < high <= CAMPPLUS_RATE / 2):
        raise ValueError(f"invalid spectrogram: fft {fft}, window {window}, hop {hop}, {mels} bands of {low}-{high} Hz")
    if floor >= 0 or span <= 0:
        raise ValueError(f"min_level_db {floor} must be below 0 and max_norm {span} above")
    return SamoyeSettings(
        MelBands(CAMPPLUS_RATE, fft, window, hop, mels, low, high, 1.0),
        preemphasis=float(audio["preemphasis"]),
        floor=floor,
        reference=float(audio["ref_level_db"]),
        span=span,
        trim=float(audio["trim_db"]),
    )


def window_starts(frames: int) -> list[int]:
    """Compute the first frames of a recording's windows.

    >>> window_starts(1150)
    [0, 100, 200, 300, 400, 500, 600, 700, 800, 900]
    >>> window_starts(100)
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    """
    import numpy as np

    return [int(start) for start in np.linspace(0, max(0, frames - WINDOW), WINDOWS)]


def samoye_mel(settings: SamoyeSettings, wave: "Tensor") -> "Tensor":
    """Compute mel bands in dB, mapped to -span..span, in windows of F = 250 frames, or all frames if fewer.

    Shape: wave [T] at 16 kHz -> [10, F, bands].
    Raises: AudioError where too little is left after trimming silence.
    """
    import torch

    bands = settings.bands
    wave = _trim(settings, wave)
    if len(wave) <= bands.fft // 2:
        raise AudioError(
            f"wave: {len(wave)} samples without the silence at its ends; more than {bands.fft // 2} are needed. "
            "Remove the recording."
        )
    wave = (wave / wave.abs().max() * PEAK).double()  # the logarithm would amplify float32's rounding
    wave = torch.cat([wave[:1], wave[1:] - settings.preemphasis * wave[:-1]])
    frames = bands.frames(len(wave))
    mel = mel_windows(wave, window_starts(frames), min(frames, WINDOW), bands, pad="reflect")
    decibels = 20 * mel.clamp(min=QUIETEST).log10() - settings.reference
    scaled = 2 * settings.span * (decibels - settings.floor) / -settings.floor - settings.span
    return scaled.clamp(-settings.span, settings.span).float()


def _trim(settings: SamoyeSettings, wave: "Tensor") -> "Tensor":
    """Trim silence at both ends, as librosa.effects.trim does. Shape: [T] -> [T']."""
    import torch.nn.functional as F

    wave = wave[MARGIN:-MARGIN]
    bands = settings.bands
    energy = F.pad(wave.double().square(), (bands.window // 2, bands.window // 2)).unfold(0, bands.window, bands.hop)
    level = 20 * energy.mean(dim=1).sqrt().clamp(min=QUIETEST).log10()  # (frames,)
    loud = (level > level.max() - settings.trim).nonzero()[:, 0]
    return wave[int(loud[0]) * bands.hop : (int(loud[-1]) + 1) * bands.hop]


def _embed(settings: SamoyeSettings, module: "nn.Module", wave: "Tensor") -> "Tensor":
    """Mean of the windows' embeddings. Shape: wave [T] -> [dim]."""
    import torch.nn.functional as F

    layers: Any = module.get_submodule("layers")
    frames = samoye_mel(settings, wave).to(layers[0]["linear"].weight.device)
    for layer in layers:
        frames = layer["linear"](layer["lstm"](frames)[0])  # (10, F, dim)
    return F.normalize(frames[:, -1], dim=1).mean(dim=0)
