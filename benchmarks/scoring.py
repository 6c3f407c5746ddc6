"""Scoring at the published MuQ's size, random weights: the predecessor's way and ours, on the same clips and weights.

`python benchmarks/scoring.py [--takes 12] [--rounds 2] [--long 10 60 300 1200]`. A take is the demo corpus' clips of
one singer, joined: about 18 s. The predecessor's way is one file after another, librosa's decoding, all 12 layers, the
whole file at once; ours is `Scorer.score_many`, exact and fast. The ways take turns. Each is told in wall-clock seconds
and, since other programs may share the machine, in CPU seconds. MuQ and the predecessor's head are random, but for the
head's last layer, which is fitted to clips of other singers: how far scores move is only worth telling beside how far
apart they are. `--long`: real-time factor and peak memory of one recording of so many seconds, each in its own process.
"""

import argparse
import contextlib
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import librosa
import numpy as np
import pandas as pd
import psutil
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from audioscore.data.audio import decode, encode
from audioscore.demo.pretrain import build_muq, muq_config, save_muq
from audioscore.encoders.compute import cores
from audioscore.encoders.features import EncoderReference
from audioscore.encoders.muq import MuQEncoder, load_muq
from audioscore.muq_cpu.inference import MuQInference
from audioscore.muq_cpu.matmul import product
from audioscore.scoring.calibration import Calibration
from audioscore.scoring.legacy.model import READ_CLASS, PredecessorHead, PredecessorScoreHead, predecessor_state
from audioscore.scoring.network import Batch, ScoreNetwork
from audioscore.scoring.scorer import Description, Scorer
from audioscore.units import MUQ_RATE

DIM, DEPTH, LAYER, HIDDEN = 1024, 12, 6, 4096
# Multiplications a second of audio, as the layers are defined: front-end, its linear layer, 6 layers, head.
NOMINAL = 13.2e9 + 0.42e9 + 6 * 0.605e9 + 0.63e9
FITTED, RIDGE = 48, 200.0  # clips, and how strongly weights are held small
DATA = Path(__file__).resolve().parents[1] / "data"


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


def make_scorer(folder: Path, head: PredecessorScoreHead, *, fast: bool) -> Scorer:
    """A scorer over it with this head."""
    muq = load_muq(str(folder), layer=LAYER)
    sizes = {"kind": "predecessor", "dim": DIM, "hidden": HIDDEN}
    references: Any = {"muq": EncoderReference("muq", None, None, muq.reference.sha256, LAYER)}
    calibration = Calibration((-1.0, 1.0), (50.0, 99.0), 5.0)
    description = Description("baseline", 0, references, sizes, calibration, (), "0", "0")
    return Scorer(ScoreNetwork(head), description, {"muq": muq}, fast=fast)


def make_head(seed: int = 1) -> PredecessorScoreHead:
    torch.manual_seed(seed)
    return PredecessorScoreHead(DIM, HIDDEN).eval().requires_grad_(False)


def fit_last_layer(scorer: Scorer, rows: "pd.DataFrame") -> None:
    """Ridge regression of the scores on what the head makes of clips, in place of its last layer's random weights."""
    head, muq = cast(PredecessorScoreHead, scorer.network.head), cast(MuQEncoder, scorer.encoders["muq"])
    waves = [torch.from_numpy(decode(DATA / name).at(MUQ_RATE)) for name in rows["audio_file"]]
    with torch.inference_mode():
        frames = MuQInference(muq).hear(waves)
        made = [head.represent(Batch(torch.tensor([len(one)]), one[None]))[0] for one in frames]
    known = torch.stack(made).double()
    wanted = torch.tensor(rows["score"].tolist(), dtype=torch.float64) / 24.5 - 74.5 / 24.5  # 50 to 99 points: -1 to 1
    centre = known.mean(0)
    scale = (known - centre).square().mean().sqrt()  # one for all: what hardly differs must not count the most
    standard = (known - centre) / scale
    ridge = standard @ standard.T + RIDGE * torch.eye(len(rows), dtype=torch.float64)
    weights = standard.T @ torch.linalg.solve(ridge, wanted - wanted.mean()) / scale
    head.classes.weight[READ_CLASS] = -weights.float()
    head.classes.bias[READ_CLASS] = -float(wanted.mean() - weights @ centre)


def predecessors_way(model: Any, head: PredecessorHead, path: Path) -> float:
    """The raw output of one file."""
    wave, _ = librosa.load(path, sr=MUQ_RATE, mono=True)
    with torch.inference_mode():
        frames = model(torch.from_numpy(wave)[None]).hidden_states[LAYER]
        return -math.atanh((float(head(frames)[0]) - 3.0) / 2.0)


def make_takes(folder: Path, rows: "pd.DataFrame", count: int) -> list[Path]:
    """16-bit wav files at 24 kHz: all clips of a singer, one after the other, for as many singers of all levels."""
    mean = rows.groupby("singer_id")["score"].mean().sort_values()
    singers = mean.index[np.linspace(0, len(mean) - 1, count).round().astype(int)]
    paths = []
    for singer in singers:
        own = rows[rows["singer_id"] == singer]["audio_file"]
        paths.append(folder / f"{singer}.wav")
        encode(
            np.concatenate([decode(DATA / name).at(MUQ_RATE) for name in own]), MUQ_RATE, paths[-1], codec="pcm_s16le"
        )
    return paths


def timed(task: Callable[[], Sequence[float]]) -> tuple[float, float, Sequence[float]]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = task()
    return time.perf_counter() - wall, time.process_time() - cpu, found


def peak() -> float:
    """Multiplications a second of a large matrix product in float32, on every core, by the quicker library."""
    a, b = torch.randn(2048, 1024), torch.randn(4096, 1024)
    best = math.inf
    for multiply in (F.linear, product) * 5:
        started = time.perf_counter()
        multiply(a, b)
        best = min(best, time.perf_counter() - started)
    return 2048 * 1024 * 4096 / best


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Print clips/s of all three ways, how far the scores are apart, and the share of the peak."""
    model = make_muq(folder / "muq")
    head = make_head()
    scorers = {fast: make_scorer(folder / "muq", head, fast=fast) for fast in (False, True)}
    rows = pd.read_csv(DATA / "labels.csv")
    singers = rows["singer_id"].drop_duplicates()
    held_out = rows["singer_id"].isin(singers[::2])
    fit_last_layer(scorers[False], rows[~held_out].iloc[:: (~held_out).sum() // FITTED])
    theirs = PredecessorHead(DIM, HIDDEN).eval()
    theirs.load_state_dict(predecessor_state(head))
    paths = make_takes(folder, rows[held_out], options.takes)
    total = sum(decode(path).seconds for path in paths)

    def ours(scorer: Scorer, some: Sequence[Path]) -> list[float]:
        rows = list(scorer.score_many(some))
        assert not any(row.error for row in rows), rows
        return [float(row.raw or 0.0) for row in rows]

    ways: dict[str, Callable[[Sequence[Path]], Sequence[float]]] = {
        "predecessor": lambda some: [predecessors_way(model, theirs, path) for path in some],
        "exact": lambda some: ours(scorers[False], some),
        "fast": lambda some: ours(scorers[True], some),
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
    print(f"{len(paths)} takes, {total:.0f} s of audio, {cores()} cores, best of {options.rounds} rounds")
    calibration = scorers[False].description.calibration
    scores = {name: calibration.apply(found) for name, found in raw.items()}
    spread = float(np.ptp(scores["exact"]))
    for name in ways:
        wall, cpu = min(walls[name]), min(cpus[name])
        print(
            f"  {name:12} {len(paths) / wall:.3f} takes/s, {min(walls['predecessor']) / wall:.2f} x; "
            f"{cpu / total:.3f} CPU s a second of audio, {min(cpus['predecessor']) / cpu:.2f} x; "
            f"{NOMINAL * total / wall / best_peak:.2f} of the peak ({best_peak / 1e9:.0f} GMAC/s)"
        )
    for first, second in (("predecessor", "exact"), ("exact", "fast")):
        apart = float(np.abs(scores[first] - scores[second]).max())
        rank = spearmanr(scores[first], scores[second]).statistic
        print(f"  {first} / {second}: {apart:.2e} points apart at most ({apart / spread:.2%} of {spread:.3f}), "
              f"Spearman {rank:.4f}")  # fmt: skip


def resident() -> int:
    """MB of memory that this process holds."""
    return int(psutil.Process().memory_info().rss) >> 20


@contextlib.contextmanager
def most_resident() -> Iterator[list[int]]:
    """MB held at every look, fifty a second, while the block runs."""
    looks, over = [resident()], threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            looks.append(resident())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield looks
    finally:
        over.set()
        looking.join()


def long(seconds: float, muq: Path, folder: Path) -> None:
    """Print real-time factor and peak memory of one recording; run in a process of its own, and not its first."""
    scorer = make_scorer(muq, make_head(), fast=False)
    path = folder / "long.wav"
    for length in (2.0, seconds):
        time_axis = np.arange(int(length * MUQ_RATE)) / MUQ_RATE
        wave = (0.2 * np.sin(2 * np.pi * 220 * time_axis + 3 * np.sin(31 * time_axis))).astype(np.float32)
        encode(wave, MUQ_RATE, path, codec="pcm_s16le")
        del wave, time_axis
        before = resident()
        with most_resident() as most:
            wall, cpu, _ = timed(lambda: [scorer.score(path).raw])
    figures = f"real-time factor {wall / seconds:.3f}, {cpu / seconds:.3f} CPU s a second"
    print(f"  {seconds:6.0f} s: {figures}, at most {max(most)} MB in memory ({before} before it)", flush=True)


def main() -> None:
    """Print the comparison, or what `--long` asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--takes", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--long", type=float, nargs="+", help="lengths of recordings, in seconds")
    parser.add_argument("--child", nargs=2, metavar=("SECONDS", "MUQ"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if options.child is not None:
            long(float(options.child[0]), Path(options.child[1]), folder)
        elif options.long:
            make_muq(folder / "muq")
            for seconds in options.long:
                subprocess.run([sys.executable, __file__, "--child", str(seconds), str(folder / "muq")], check=True)
        else:
            compare(options, folder)


if __name__ == "__main__":
    main()
