"""Scoring at the published MuQ's size, random weights: the predecessor's way and ours, on the same clips and weights.

`python benchmarks/scoring.py [--clips 6] [--seconds 8] [--rounds 2] [--long 60 1200]`. The predecessor's way is one
file after another, librosa's decoding, all 12 layers, the whole file at once; ours is `Scorer.score_many`, exact and
fast. The ways take turns. Each is told in wall-clock seconds and, since other programs may share the machine, in CPU
seconds. `--long`: real-time factor and peak memory of one recording of so many seconds, each in its own process.
"""

import argparse
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from audioscore.data.audio import Wave, decode, encode
from audioscore.encoders.muq import load_muq
from audioscore.encoders.reference import EncoderReference
from audioscore.encoders.threads import cores
from audioscore.scoring.calibration import Calibration
from audioscore.scoring.network import ScoreNetwork
from audioscore.scoring.predecessor import PredecessorHead
from audioscore.scoring.predecessor_head import PredecessorScoreHead, predecessor_state
from audioscore.scoring.scorer import Description, Scorer
from audioscore.training.pretrain import build_muq, muq_config, save_muq
from audioscore.units import MUQ_RATE

DIM, DEPTH, LAYER, HIDDEN = 1024, 12, 6, 4096
# Multiplications a second of audio, as the layers are defined: front-end, its linear layer, 6 layers, head.
NOMINAL = 13.2e9 + 0.42e9 + 6 * 0.605e9 + 0.63e9
DATA = Path("data/audio")


def make_muq(folder: Path) -> Any:
    """A MuQ of the published size with random weights, norms included, in its folder; the whole network."""
    config = muq_config(dim=DIM, depth=DEPTH, conv_dim=512, codebook=8192)
    config["w2v2_config"] |= {"num_attention_heads": 16, "intermediate_size": 4 * DIM}
    model: Any = build_muq(config, 0)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm | torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    save_muq(model, config, folder)
    return model.eval()


def make_scorer(folder: Path, *, fast: bool) -> Scorer:
    """A scorer over it with the predecessor's head."""
    muq = load_muq(str(folder), layer=LAYER)
    torch.manual_seed(1)
    head = PredecessorScoreHead(DIM, HIDDEN)
    sizes = {"kind": "predecessor", "dim": DIM, "hidden": HIDDEN}
    references: Any = {"muq": EncoderReference("muq", None, None, muq.reference.sha256, LAYER)}
    calibration = Calibration((-1.0, 1.0), (50.0, 99.0), 5.0)
    description = Description("baseline", 0, references, sizes, calibration, (), "0", "0")
    return Scorer(ScoreNetwork(head), description, {"muq": muq}, fast=fast)


def predecessors_way(model: Any, head: PredecessorHead, path: Path) -> float:
    """The raw output of one file."""
    wave, _ = librosa.load(path, sr=MUQ_RATE, mono=True)
    with torch.inference_mode():
        frames = model(torch.from_numpy(wave)[None]).hidden_states[LAYER]
        return -math.atanh((float(head(frames)[0]) - 3.0) / 2.0)


def make_clips(folder: Path, count: int, seconds: float) -> list[Path]:
    """16-bit wav files at 24 kHz made of the demo corpus' clips, their lengths a few per cent apart."""
    sources, paths = sorted(DATA.iterdir()), []
    waves = iter([decode(source).at(MUQ_RATE) for source in sources[: 3 * count * (1 + int(seconds / 4))]])
    for number in range(count):
        length = round(seconds * (1 + 0.02 * number) * MUQ_RATE)
        parts: list[Wave] = []
        while sum(len(part) for part in parts) < length:
            parts.append(next(waves))
        paths.append(folder / f"clip{number:02d}.wav")
        encode(np.concatenate(parts)[:length], MUQ_RATE, paths[-1], codec="pcm_s16le")
    return paths


def timed(task: Callable[[], Sequence[float]]) -> tuple[float, float, Sequence[float]]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = task()
    return time.perf_counter() - wall, time.process_time() - cpu, found


def peak() -> float:
    """Multiplications a second of a large matrix product, on every core."""
    a, b = torch.randn(2048, 1024), torch.randn(4096, 1024)
    best = math.inf
    for _ in range(5):
        started = time.perf_counter()
        F.linear(a, b)
        best = min(best, time.perf_counter() - started)
    return 2048 * 1024 * 4096 / best


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Print clips/s of all three ways, how far the scores are apart, and the share of the peak."""
    model = make_muq(folder / "muq")
    scorers = {"exact": make_scorer(folder / "muq", fast=False), "fast": make_scorer(folder / "muq", fast=True)}
    exact = scorers["exact"]
    head = PredecessorHead(DIM, HIDDEN).eval()
    head.load_state_dict(predecessor_state(exact.network.head))
    paths = make_clips(folder, options.clips, options.seconds)
    total = sum(decode(path).seconds for path in paths)

    def ours(scorer: Scorer, some: Sequence[Path]) -> list[float]:
        rows = list(scorer.score_many(some))
        assert not any(row.error for row in rows), rows
        return [float(row.raw or 0.0) for row in rows]

    ways: dict[str, Callable[[Sequence[Path]], Sequence[float]]] = {
        "predecessor": lambda some: [predecessors_way(model, head, path) for path in some],
        "exact": lambda some: ours(scorers["exact"], some),
        "fast": lambda some: ours(scorers["fast"], some),
    }
    for way in ways.values():
        way(paths[:1])  # first use sets libraries up
    walls: dict[str, list[float]] = {name: [] for name in ways}
    cpus: dict[str, list[float]] = {name: [] for name in ways}
    raw: dict[str, Sequence[float]] = {}
    best_peak = 0.0
    for _ in range(options.rounds):
        for name, way in ways.items():
            wall, cpu, raw[name] = timed(partial(way, paths))
            walls[name].append(wall)
            cpus[name].append(cpu)
        best_peak = max(best_peak, peak())
    print(f"{len(paths)} clips, {total:.0f} s of audio, {cores()} cores, best of {options.rounds} rounds")
    calibration = exact.description.calibration
    scores = {name: calibration.apply(found) for name, found in raw.items()}
    spread = float(np.ptp(scores["exact"]))
    for name in ways:
        wall, cpu = min(walls[name]), min(cpus[name])
        print(
            f"  {name:12} {len(paths) / wall:.3f} clips/s, {min(walls['predecessor']) / wall:.2f} x; "
            f"{cpu / total:.3f} CPU s a second of audio, {min(cpus['predecessor']) / cpu:.2f} x; "
            f"{NOMINAL * total / wall / best_peak:.2f} of the peak ({best_peak / 1e9:.0f} GMAC/s)"
        )
    for first, second in (("predecessor", "exact"), ("exact", "fast")):
        apart = float(np.abs(scores[first] - scores[second]).max())
        rank = spearmanr(scores[first], scores[second]).statistic
        print(f"  {first} / {second}: {apart:.2e} points apart at most ({apart / spread:.2%} of {spread:.3f}), "
              f"Spearman {rank:.4f}")  # fmt: skip


def long(seconds: float, folder: Path) -> None:
    """Print real-time factor and peak memory of one recording; run in a process of its own."""
    make_muq(folder / "muq")
    scorer = make_scorer(folder / "muq", fast=False)
    time_axis = np.arange(int(seconds * MUQ_RATE)) / MUQ_RATE
    wave = (0.2 * np.sin(2 * np.pi * 220 * time_axis + 3 * np.sin(31 * time_axis))).astype(np.float32)
    path = folder / "long.wav"
    encode(wave, MUQ_RATE, path, codec="pcm_s16le")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    del wave, time_axis
    wall, cpu, _ = timed(lambda: [scorer.score(path).raw])
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    figures = f"real-time factor {wall / seconds:.3f}, {cpu / seconds:.3f} CPU s a second"
    print(f"  {seconds:6.0f} s: {figures}, peak {after} MB ({before} before it)", flush=True)


def main() -> None:
    """Print the comparison, or what `--long` asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--long", type=float, nargs="+", help="lengths of recordings, in seconds")
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.child is not None:
            long(options.child, Path(scratch))
        elif options.long:
            for seconds in options.long:
                subprocess.run([sys.executable, __file__, "--child", str(seconds)], check=True)
        else:
            compare(options, Path(scratch))


if __name__ == "__main__":
    main()
