"""Memory of a training by number of clips, and its time with a MuQ of nearly the published width.

`python benchmarks/training_size.py [--cache FOLDER]` prints the peak memory of an epoch over the demo corpus, once and
repeated under several names, with features kept in memory and with almost none kept; then the time of a few steps of
the legacy and the current scheme (see `training.py`) with LoRA, on one torch thread, random weights and random waves.
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
from schemes import DATA, LegacyScheme, all_pairs, prepare, set_up, split_of, training

from audioscore.demo.pretrain import build_muq, muq_config
from audioscore.encoders.extract import extract_features
from audioscore.encoders.features import WINDOWS, EncoderReference, Features
from audioscore.encoders.muq import MuQEncoder
from audioscore.encoders.muq_layers import prefix_frames
from audioscore.encoders.stored_features import KEPT_BYTES
from audioscore.files import link_or_copy
from audioscore.home import home
from audioscore.training.data import TrainingSplit
from audioscore.training.loop import validate
from audioscore.units import MUQ_RATE

RATE = 1e-3
WIDE: dict[str, Any] = {"width": 512, "hidden": 2048}  # as in full.yaml
WIDE_DIM, WIDE_DEPTH, WIDE_READ, WIDE_SECONDS, WIDE_BATCH = 1024, 8, 6, 5, 16
MULTIPLES, LITTLE = (1, 4, 16), 4 << 20


def memory(folder: Path) -> None:
    """Print the peak memory of an epoch and a validation for several numbers of clips, each in its own process."""
    data = prepare(folder)
    extract_features([*data.train, *data.val], DATA, {"muq": data.muq()}, data.store)
    print(f"\npeak memory of an epoch, MB, with features kept up to {KEPT_BYTES >> 20} MB, and {LITTLE >> 20} MB")
    for times in MULTIPLES:
        peaks = []
        for kept in (KEPT_BYTES, LITTLE):
            command = [sys.executable, __file__, "--cache", str(folder), "--child", str(times), str(kept)]
            peaks.append(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
        print(f"  {times:3} x {len(data.train)} clips: {peaks[0]:>6}, {peaks[1]:>6}", flush=True)


def child(folder: Path, times: int, kept: int) -> None:
    """Print the peak memory of this process in MB after an epoch over the clips, repeated `times` times."""
    data, reference = prepare(folder), prepare(folder).muq().reference
    clips = []
    for clip in data.train:
        for number in range(times):
            name = f"{number:02x}{clip.sha256}"[:64]
            if not data.store.has(reference, name):
                link_or_copy(data.store.path(reference, str(clip.sha256)), data.store.path(reference, name))
            clips.append(replace(clip, sha256=name))
    splits = [split_of(some, data.store, reference, None, kept) for some in (clips, data.val)]
    made = set_up(data.muq(), splits, training("frozen", "light", RATE), 0)
    made.network.train()
    for number, rows in enumerate(all_pairs(made, epochs=1)):
        made.stepper.step(rows, number, "benchmark")
    validate(made.network, made.val)
    print(peak())


def peak() -> int:
    """Return the peak memory in MB. Not by getrusage, whose peak includes the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) >> 10


def wide(steps: int = 2) -> None:
    """Print pairs/s of both schemes at nearly MuQ's width, with random weights and waves; only a few steps."""
    generator, samples = torch.Generator().manual_seed(0), WIDE_SECONDS * MUQ_RATE
    waves = [0.1 * torch.randn(samples, generator=generator) for _ in range(WIDE_BATCH)]
    scores = np.linspace(50, 99, WIDE_BATCH).tolist()
    settings = training("lora", "songeval", RATE, lora={"rank": 128, "alpha": 48}, batch_clips=WIDE_BATCH, **WIDE)
    cut = _wide_muq(WIDE_READ)
    started = time.process_time()
    prefixes = [prefix_frames(cut, wave, 0) for wave in waves]
    encoding = (time.process_time() - started) / len(waves)
    features: list[Features] = [{"muq": prefix, WINDOWS: torch.tensor(1)} for prefix in prefixes]
    split = TrainingSplit(features, scores, [""] * len(waves), [str(number) for number in range(len(waves))])
    made = set_up(cut, [split, split], settings, 0)
    legacy = LegacyScheme(_wide_muq(WIDE_DEPTH), made, WIDE_READ, {"rank": 128, "alpha": 48})
    seconds = []
    for step in (
        lambda: legacy.step([lambda: waves[0], lambda: waves[1]], scores[:2]),
        lambda: made.stepper.step(np.arange(WIDE_BATCH), 1, "benchmark"),
    ):
        step()  # the first call initialises libraries
        started = time.process_time()
        for _ in range(steps):
            step()
        seconds.append((time.process_time() - started) / steps)
    pairs = WIDE_BATCH * (WIDE_BATCH - 1) // 2
    print(f"\nLoRA, width {WIDE_DIM}, {WIDE_DEPTH} layers, layer {WIDE_READ} read, {WIDE_SECONDS} s clips, in memory")
    print(f"  legacy {1 / seconds[0]:.2f} pairs/s, {2 / seconds[0]:.2f} clips/s")
    print(f"  current {pairs / seconds[1]:.2f} pairs/s, {WIDE_BATCH / seconds[1]:.2f} clips/s, {WIDE_BATCH} clips/step")
    print(f"  once for the current scheme: {encoding:.2f} s per clip for the input of the first layer")


def _wide_muq(layer: int) -> MuQEncoder:
    config = muq_config(dim=WIDE_DIM, depth=WIDE_DEPTH, conv_dim=512)
    config["w2v2_config"] |= {"num_attention_heads": 16, "intermediate_size": 4 * WIDE_DIM}
    return MuQEncoder(build_muq(config, 0), layer, EncoderReference("muq", None, None, "0" * 64, layer), Path())


def main() -> None:
    """Print both parts; the first one starts processes with `--child`."""
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
