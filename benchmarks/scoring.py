"""Scoring speed at the published MuQ's size with random weights: our kernels, plain torch, OpenVINO, the legacy code.

`python benchmarks/scoring.py --encoder [--windows 4] [--rounds 2]`: real-time factors of the encoder alone on windows
of 18 s, and the relative error of its frames against plain torch. OpenVINO is measured where the package is installed.

`python benchmarks/scoring.py [--recordings 12] [--rounds 2]`: whole recordings, by the legacy code (one file after
another, librosa, all 12 layers, the whole file at once) and by `Scorer.score_many`, exact and fast. A recording is all
clips of one singer of the demo corpus, about 18 s. MuQ and the head have random weights; only the head's last layer is
fitted, to clips of other singers, so that differences between scores can be compared with the scores' range.

`python benchmarks/scoring.py --long 10 60 300 1200`: real-time factor and peak memory of one recording of each length
in seconds, each in its own process.

Variants alternate. Times are wall-clock and, since other programs may share the machine, CPU seconds.
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
from torch import Tensor

from audioscore.data.audio import decode, encode
from audioscore.demo.pretrain import build_muq, muq_config, save_muq
from audioscore.encoders.compute import cores
from audioscore.encoders.features import EncoderReference
from audioscore.encoders.inference import MuQInference
from audioscore.encoders.muq import MuQEncoder, load_muq
from audioscore.encoders.muq_layers import mel_spectrogram, run_layers
from audioscore.muq_cpu.matmul import product
from audioscore.scoring.calibration import Calibration
from audioscore.scoring.head import LEGACY_KIND
from audioscore.scoring.legacy.model import READ_CLASS, LegacyHead, LegacyScoreHead, legacy_state
from audioscore.scoring.network import Batch, ScoreNetwork
from audioscore.scoring.scorer import Description, Scorer
from audioscore.units import MUQ_RATE

DIM, DEPTH, LAYER, HIDDEN = 1024, 12, 6, 4096
WINDOW_SECONDS = 18
# Multiplications per second of audio, as the layers are defined: front-end, its linear layer, 6 layers, head.
NOMINAL = 13.2e9 + 0.42e9 + 6 * 0.605e9 + 0.63e9
FITTED, RIDGE = 48, 200.0  # clips, and the strength of the regularization
DATA = Path(__file__).resolve().parents[1] / "data"

Encode = Callable[[list[Tensor]], list[Tensor]]


def make_muq(folder: Path) -> Any:
    """Write a MuQ of the published size with random weights, norms included, to a folder; return all its layers."""
    config = muq_config(dim=DIM, depth=DEPTH, conv_dim=512, codebook=8192)
    config["w2v2_config"] |= {"num_attention_heads": 16, "intermediate_size": 4 * DIM}
    model: Any = build_muq(config, 0)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm | torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    save_muq(model, config, folder)
    return model.eval()


class TruncatedMuQ(torch.nn.Module):
    """The network of an encoder from its spectrogram on, for conversion. Shape: [1, bands, M] -> [1, F, dim]."""

    def __init__(self, encoder: MuQEncoder) -> None:
        super().__init__()
        self.conv, self.conformer, self.layer = (
            encoder.module.model.conv, encoder.module.model.conformer, encoder.layer,
        )  # fmt: skip

    def forward(self, mel: Tensor) -> Tensor:
        return run_layers(self.conformer, self.conv(mel), self.layer)


def openvino_encoder(encoder: MuQEncoder, wave: Tensor) -> Encode | None:
    """The same encoder compiled by OpenVINO in fp32 for windows of this length; None where it is not installed."""
    try:
        import openvino
    except ImportError:
        return None
    model = encoder.module.model
    with torch.inference_mode():
        example = mel_spectrogram(model, wave[None])
    with torch.no_grad():
        converted = openvino.convert_model(TruncatedMuQ(encoder).eval(), example_input=example.clone())
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "THROUGHPUT"}
    compiled = openvino.compile_model(converted, "CPU", settings)

    def run(waves: list[Tensor]) -> list[Tensor]:
        frames: dict[int, Tensor] = {}
        queue = openvino.AsyncInferQueue(compiled)
        queue.set_callback(
            lambda request, index: frames.update({index: torch.from_numpy(request.get_output_tensor().data[0].copy())})
        )
        for index, wave in enumerate(waves):
            with torch.inference_mode():
                queue.start_async({0: mel_spectrogram(model, wave[None]).numpy()}, index)
        queue.wait_all()
        return [frames[index] for index in range(len(waves))]

    return run


def make_windows(count: int) -> list[Tensor]:
    """Windows of the demo corpus' clips, joined. Shape: -> [T] at 24 kHz each."""
    size, waves = WINDOW_SECONDS * MUQ_RATE, list[np.ndarray[Any, Any]]()
    for name in pd.read_csv(DATA / "labels.csv")["audio_file"]:
        if sum(map(len, waves)) >= count * size:
            break
        waves.append(decode(DATA / name).at(MUQ_RATE))
    return list(torch.from_numpy(np.concatenate(waves)[: count * size]).split(size))


def compare_encoders(options: argparse.Namespace, folder: Path) -> None:
    """Print the real-time factor of each way to encode windows, and the relative error of its frames."""
    make_muq(folder / "muq")
    encoder = load_muq(str(folder / "muq"), layer=LAYER)
    waves = make_windows(options.windows)
    ways: dict[str, Encode] = {
        "plain torch": lambda some: [encoder.frames(wave) for wave in some],
        "ours, exact": MuQInference(encoder).encode,
        "ours, fast": MuQInference(encoder, fast=True).encode,
    }
    peer = openvino_encoder(encoder, waves[0])
    if peer is None:
        print("OpenVINO is not installed, so it is not compared. Install openvino into a separate environment.")
    else:
        ways["OpenVINO, fp32"] = peer
    walls: dict[str, list[float]] = {name: [] for name in ways}
    frames: dict[str, Tensor] = {}
    for way in ways.values():
        way(waves[:1])  # the first run sets libraries up
    for _ in range(options.rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            frames[name] = torch.stack(way(waves))
            walls[name].append(time.perf_counter() - started)
    seconds = WINDOW_SECONDS * len(waves)
    print(
        f"{len(waves)} windows of {WINDOW_SECONDS} s, {LAYER} layers, {cores()} cores, best of {options.rounds} rounds"
    )
    wanted = frames["plain torch"]
    centred = wanted - wanted.mean((0, 1))
    for name in ways:
        apart = (frames[name] - wanted).norm()
        rate = seconds / min(walls[name])
        errors = f"relative error {apart / wanted.norm():.0e}, {apart / centred.norm():.0e} without the frames' mean"
        print(f"  {name:15} {rate:5.1f} x real time; {errors}")


def make_scorer(folder: Path, head: LegacyScoreHead, *, fast: bool) -> Scorer:
    """A scorer with this MuQ and this head."""
    muq = load_muq(str(folder), layer=LAYER)
    sizes = {"kind": LEGACY_KIND, "dim": DIM, "hidden": HIDDEN}
    references: Any = {"muq": EncoderReference("muq", None, None, muq.reference.sha256, LAYER)}
    calibration = Calibration((-1.0, 1.0), (50.0, 99.0), 5.0)
    description = Description("baseline", 0, references, sizes, calibration, (), "0", "0")
    return Scorer(ScoreNetwork(head), description, {"muq": muq}, fast=fast)


def make_head(seed: int = 1) -> LegacyScoreHead:
    torch.manual_seed(seed)
    return LegacyScoreHead(DIM, HIDDEN).eval().requires_grad_(False)


def fit_last_layer(scorer: Scorer, rows: "pd.DataFrame") -> None:
    """Replace the head's last layer by a ridge regression of the scores on the head's representations of clips."""
    head, muq = cast(LegacyScoreHead, scorer.network.head), cast(MuQEncoder, scorer.encoders["muq"])
    waves = [torch.from_numpy(decode(DATA / name).at(MUQ_RATE)) for name in rows["audio_file"]]
    with torch.inference_mode():
        frames = MuQInference(muq).encode(waves)
        representations = [head.represent(Batch(torch.tensor([len(one)]), one[None]))[0] for one in frames]
    values = torch.stack(representations).double()
    wanted = torch.tensor(rows["score"].tolist(), dtype=torch.float64) / 24.5 - 74.5 / 24.5  # 50 to 99 points: -1 to 1
    centre = values.mean(0)
    scale = (values - centre).square().mean().sqrt()  # one for all: nearly constant elements must not dominate
    standard = (values - centre) / scale
    ridge = standard @ standard.T + RIDGE * torch.eye(len(rows), dtype=torch.float64)
    weights = standard.T @ torch.linalg.solve(ridge, wanted - wanted.mean()) / scale
    head.classes.weight[READ_CLASS] = -weights.float()
    head.classes.bias[READ_CLASS] = -float(wanted.mean() - weights @ centre)


def legacy_raw(model: Any, head: LegacyHead, path: Path) -> float:
    """The raw output of one file, computed as the legacy code does."""
    wave, _ = librosa.load(path, sr=MUQ_RATE, mono=True)
    with torch.inference_mode():
        frames = model(torch.from_numpy(wave)[None]).hidden_states[LAYER]
        return -math.atanh((float(head(frames)[0]) - 3.0) / 2.0)


def make_recordings(folder: Path, rows: "pd.DataFrame", count: int) -> list[Path]:
    """16-bit wav files at 24 kHz, each all clips of a singer in sequence, for singers across the whole score range."""
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
    """Multiplications per second of a large float32 matrix product on all cores, with the faster library."""
    a, b = torch.randn(2048, 1024), torch.randn(4096, 1024)
    best = math.inf
    for multiply in (F.linear, product) * 5:
        started = time.perf_counter()
        multiply(a, b)
        best = min(best, time.perf_counter() - started)
    return 2048 * 1024 * 4096 / best


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Print the recordings per second of all three ways, how far their scores differ, and the share of the peak."""
    model = make_muq(folder / "muq")
    head = make_head()
    scorers = {fast: make_scorer(folder / "muq", head, fast=fast) for fast in (False, True)}
    rows = pd.read_csv(DATA / "labels.csv")
    singers = rows["singer_id"].drop_duplicates()
    measured = rows["singer_id"].isin(singers[::2])
    fit_last_layer(scorers[False], rows[~measured].iloc[:: (~measured).sum() // FITTED])
    legacy_head = LegacyHead(DIM, HIDDEN).eval()
    legacy_head.load_state_dict(legacy_state(head))
    paths = make_recordings(folder, rows[measured], options.recordings)
    total = sum(decode(path).seconds for path in paths)

    def ours(scorer: Scorer, some: Sequence[Path]) -> list[float]:
        rows = list(scorer.score_many(some))
        assert not any(row.error for row in rows), rows
        return [float(row.raw or 0.0) for row in rows]

    ways: dict[str, Callable[[Sequence[Path]], Sequence[float]]] = {
        "legacy": lambda some: [legacy_raw(model, legacy_head, path) for path in some],
        "exact": lambda some: ours(scorers[False], some),
        "fast": lambda some: ours(scorers[True], some),
    }
    for way in ways.values():
        way(paths[:1])  # the first run sets libraries up
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
    print(f"{len(paths)} recordings, {total:.0f} s of audio, {cores()} cores, best of {options.rounds} rounds")
    calibration = scorers[False].description.calibration
    scores = {name: calibration.apply(found) for name, found in raw.items()}
    spread = float(np.ptp(scores["exact"]))
    for name in ways:
        wall, cpu = min(walls[name]), min(cpus[name])
        print(
            f"  {name:8} {len(paths) / wall:.3f} recordings/s, {min(walls['legacy']) / wall:.2f} x; "
            f"{cpu / total:.3f} CPU s a second of audio, {min(cpus['legacy']) / cpu:.2f} x; "
            f"{NOMINAL * total / wall / best_peak:.2f} of the peak ({best_peak / 1e9:.0f} GMAC/s)"
        )
    for first, second in (("legacy", "exact"), ("exact", "fast")):
        apart = float(np.abs(scores[first] - scores[second]).max())
        rank = spearmanr(scores[first], scores[second]).statistic
        print(f"  {first} / {second}: {apart:.2e} points apart at most ({apart / spread:.2%} of {spread:.3f}), "
              f"Spearman {rank:.4f}")  # fmt: skip


def resident() -> int:
    """Memory of this process, in MB."""
    return int(psutil.Process().memory_info().rss) >> 20


@contextlib.contextmanager
def most_resident() -> Iterator[list[int]]:
    """Measure the memory, in MB, fifty times per second while the block runs."""
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
    """Print real-time factor and peak memory of one recording, after a short one; run this in its own process."""
    scorer = make_scorer(muq, make_head(), fast=False)
    path = folder / "long.wav"
    for length in (2.0, seconds):
        time_axis = np.arange(int(length * MUQ_RATE)) / MUQ_RATE
        wave = (0.2 * np.sin(2 * np.pi * 220 * time_axis + 3 * np.sin(31 * time_axis))).astype(np.float32)
        encode(wave, MUQ_RATE, path, codec="pcm_s16le")
        del wave, time_axis
        before = resident()
        with most_resident() as most:
            wall, cpu, _ = timed(lambda: [scorer.score(path).raw or 0.0])
    figures = f"real-time factor {wall / seconds:.3f}, {cpu / seconds:.3f} CPU s a second"
    print(f"  {seconds:6.0f} s: {figures}, at most {max(most)} MB in memory ({before} before it)", flush=True)


def main() -> None:
    """Print the comparison that the options select."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--encoder", action="store_true", help="compare the encoder alone")
    parser.add_argument("--windows", type=int, default=4, help="windows of 18 s, with --encoder")
    parser.add_argument("--recordings", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--long", type=float, nargs="+", help="lengths of recordings, in seconds")
    parser.add_argument("--child", nargs=2, metavar=("SECONDS", "MUQ"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if options.child is not None:
            long(float(options.child[0]), Path(options.child[1]), folder)
        elif options.encoder:
            compare_encoders(options, folder)
        elif options.long:
            make_muq(folder / "muq")
            for seconds in options.long:
                subprocess.run([sys.executable, __file__, "--child", str(seconds), str(folder / "muq")], check=True)
        else:
            compare(options, folder)


if __name__ == "__main__":
    main()
