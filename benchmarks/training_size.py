"""What a training takes as it grows: memory with the number of clips, time at a width near the published MuQ's.

`python benchmarks/training_size.py [--cache FOLDER]`: the peak memory of an epoch over the demo corpus, once and under
several names, with features kept in memory and with next to none kept; then a few steps of the predecessor's scheme and
of ours (see `training.py`, beside this) with LoRA, on one torch thread, random weights and random waves.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from schemes import DATA, Predecessor, all_pairs, fold_of, prepare, set_up, training

from audioscore.demo.pretrain import build_muq, muq_config
from audioscore.encoders.extract import extract_features
from audioscore.encoders.features import WINDOWS, EncoderReference, Features
from audioscore.encoders.muq import MuQEncoder
from audioscore.encoders.muq_layers import prefix_frames
from audioscore.encoders.stored_features import KEPT_BYTES
from audioscore.files import place
from audioscore.home import home
from audioscore.training.data import Fold
from audioscore.training.loop import validate
from audioscore.units import MUQ_RATE

RATE = 1e-3
WIDE: dict[str, Any] = {"width": 512, "hidden": 2048}  # as in full.yaml
WIDE_DIM, WIDE_DEPTH, WIDE_READ, WIDE_SECONDS, WIDE_BATCH = 1024, 8, 6, 5, 16
MULTIPLES, LITTLE = (1, 4, 16), 4 << 20


def memory(folder: Path) -> None:
    """Print the peak memory of an epoch and a validation for more and more clips, each in a process of its own."""
    ground = prepare(folder)
    extract_features([*ground.train, *ground.val], DATA, {"muq": ground.muq()}, ground.store)
    print(f"\npeak memory of an epoch, MB, where features are kept up to {KEPT_BYTES >> 20} MB, and {LITTLE >> 20} MB")
    for times in MULTIPLES:
        peaks = []
        for kept in (KEPT_BYTES, LITTLE):
            command = [sys.executable, __file__, "--cache", str(folder), "--child", str(times), str(kept)]
            peaks.append(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
        print(f"  {times:3} x {len(ground.train)} clips: {peaks[0]:>6}, {peaks[1]:>6}", flush=True)


def child(folder: Path, times: int, kept: int) -> None:
    """Print this process's peak memory in MB, after an epoch over the clips so many times."""
    ground, reference = prepare(folder), prepare(folder).muq().reference
    clips = []
    for clip in ground.train:
        for number in range(times):
            name = f"{number:02x}{clip.sha256}"[:64]
            if not ground.store.has(reference, name):
                place(ground.store.path(reference, str(clip.sha256)), ground.store.path(reference, name))
            clips.append(replace(clip, sha256=name))
    folds = [fold_of(some, ground.store, reference, None, kept) for some in (clips, ground.val)]
    made = set_up(ground.muq(), folds, training("frozen", "light", RATE), 0)
    made.network.train()
    for number, rows in enumerate(all_pairs(made, epochs=1)):
        made.stepper.step(rows, number, "benchmark")
    validate(made.network, made.val)
    print(peak())


def peak() -> int:
    """MB that this process had at most. Not getrusage's: that keeps the peak of the process which started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) >> 10


def wide(steps: int = 2) -> None:
    """Print pairs/s of both schemes at a width near MuQ's, random weights and waves; a few steps only."""
    chance, samples = torch.Generator().manual_seed(0), WIDE_SECONDS * MUQ_RATE
    waves = [0.1 * torch.randn(samples, generator=chance) for _ in range(WIDE_BATCH)]
    scores = np.linspace(50, 99, WIDE_BATCH).tolist()
    settings = training("lora", "songeval", RATE, lora={"rank": 128, "alpha": 48}, batch_clips=WIDE_BATCH, **WIDE)
    cut = _wide_muq(WIDE_READ)
    started = time.process_time()
    prefixes = [prefix_frames(cut, wave, 0) for wave in waves]
    hearing = (time.process_time() - started) / len(waves)
    features: list[Features] = [{"muq": prefix, WINDOWS: torch.tensor(1)} for prefix in prefixes]
    fold = Fold(features, scores, [""] * len(waves), [str(number) for number in range(len(waves))])
    made = set_up(cut, [fold, fold], settings, 0)
    there = Predecessor(_wide_muq(WIDE_DEPTH), made, WIDE_READ, {"rank": 128, "alpha": 48})
    seconds = []
    for step in (
        lambda: there.step([lambda: waves[0], lambda: waves[1]], scores[:2]),
        lambda: made.stepper.step(np.arange(WIDE_BATCH), 1, "benchmark"),
    ):
        step()  # first use sets libraries up
        started = time.process_time()
        for _ in range(steps):
            step()
        seconds.append((time.process_time() - started) / steps)
    pairs = WIDE_BATCH * (WIDE_BATCH - 1) // 2
    print(f"\nLoRA, width {WIDE_DIM}, {WIDE_DEPTH} layers, layer {WIDE_READ} read, {WIDE_SECONDS} s clips, in memory")
    print(f"  predecessor's {1 / seconds[0]:.2f} pairs/s, {2 / seconds[0]:.2f} clips/s")
    print(f"  ours {pairs / seconds[1]:.2f} pairs/s, {WIDE_BATCH / seconds[1]:.2f} clips/s, {WIDE_BATCH} clips a step")
    print(f"  once for ours: {hearing:.2f} s a clip to hear what lies below the first layer")


def _wide_muq(layer: int) -> MuQEncoder:
    config = muq_config(dim=WIDE_DIM, depth=WIDE_DEPTH, conv_dim=512)
    config["w2v2_config"] |= {"num_attention_heads": 16, "intermediate_size": 4 * WIDE_DIM}
    return MuQEncoder(build_muq(config, 0), layer, EncoderReference("muq", None, None, "0" * 64, layer), Path())


def main() -> None:
    """Print both parts; `--child` is what each process of the first one is started with."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=home("benchmarks").folder / "training", help="split and features")
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child is not None:
        child(options.cache, *options.child)
        return
    options.cache.mkdir(parents=True, exist_ok=True)
    memory(options.cache)
    wide()


if __name__ == "__main__":
    main()
