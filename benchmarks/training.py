"""Training time compared with the legacy scheme: the same weights, clips, head and loss, one torch thread.

`python benchmarks/training.py [--cap SECONDS] [--seed N] [--heads light songeval] [--modes frozen lora]
[--headline SPEARMAN] [--head-warmup-epochs N] [--wide]`. `--wide`: a MuQ of the published size with random weights, and
fewer clips; the output of its frozen layers is sufficient to rank the demo corpus.

Legacy scheme: a step takes one random pair, decodes both recordings from their files, and runs the whole MuQ, all
layers; a head on the read layer ranks the two. Frozen, MuQ runs without gradients, but in every step. Current scheme:
the output of frozen layers is computed once and stored, only the layers up to the read one are run, and all pairs of a
batch are compared (`training.step`). With LoRA, the head is warmed up first on the output of the frozen MuQ
(`training.head_warmup_epochs`); that time is included.

Seconds are CPU time of this process (`time.process_time`), so that other processes have little influence; wall time is
printed too. Validation is not counted. It happens at the same CPU times for both schemes, each VALIDATION_RATIO times
the one before, and a target is reached at the first validation that shows it. Each scheme uses the learning rate of
RATES that is best for it: the first to reach the headline target, or the best Spearman within a quarter of the cap.
For the legacy scheme it is found on stored features, where the same steps take less time; its own steps are timed. If
it does not reach a target within the cap, a figure marked "~" is its number of steps on stored features, times the
time of one of its own steps. With `--wide`, LoRA's rates are found with a frozen MuQ, because adapters start at zero
and a trial would have only a few steps.
"""

import argparse
import gc
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from schemes import (
    DATA,
    LORA,
    DemoSplits,
    LegacyScheme,
    Setup,
    all_pairs,
    new_setup,
    prepare,
    random_pairs,
    warmup_setup,
)
from scoring import DEPTH as MUQ_DEPTH
from scoring import LAYER, make_muq
from torch import Tensor

from audioscore.config import DEMO, load_config
from audioscore.data.audio import decode
from audioscore.encoders.extract import extract_features
from audioscore.encoders.store import FeatureStore
from audioscore.home import home
from audioscore.training.batches import Rows
from audioscore.training.loop import validate
from audioscore.units import MUQ_RATE

HEADS, MODES = ("light", "songeval"), ("frozen", "lora")
RATES = (3e-4, 1e-3, 3e-3, 1e-2)  # of the head; the tuned layers of MuQ have a tenth of it
TARGETS, HEADLINE = (0.5, 0.6, 0.7, 0.8, 0.85, 0.88, 0.9), 0.8  # validation Spearman
FIRST_VALIDATION, VALIDATION_RATIO = 0.05, 1.2  # CPU seconds
TRIAL = 0.25  # share of the cap for each rate's trial
WIDE_CLIPS = (128, 64)  # for training and for validation, with `--wide`
WIDE = {"width": 512, "hidden": 2048}  # of the head, as in full.yaml


@dataclass
class Trace:
    """The progress of a training. Each validation is CPU seconds, wall seconds, steps, Spearman."""

    validations: list[tuple[float, float, int, float]] = field(default_factory=list)
    clips: int = 0
    pairs: int = 0
    cpu: float = 0.0
    warmup: tuple[int, int, float] = (0, 0, 0.0)  # clips, pairs and CPU seconds of the head warm-up

    def rates(self) -> tuple[float, float]:
        """Clips and pairs per second after the warm-up; of the warm-up if there are no other steps."""
        clips, pairs, cpu = self.warmup
        if self.clips == clips:
            clips, pairs, cpu = 0, 0, 0.0
        return (self.clips - clips) / (self.cpu - cpu), (self.pairs - pairs) / (self.cpu - cpu)

    def reached(self, target: float) -> tuple[float, float, int] | None:
        """CPU seconds, wall seconds and steps at the first validation that reaches the target."""
        return next(((cpu, wall, steps) for cpu, wall, steps, value in self.validations if value >= target), None)

    @property
    def best(self) -> float:
        return max((value for *_, value in self.validations), default=float("nan"))

    def rank(self, headline: float) -> tuple[float, float]:
        """Sort key, smaller is better: steps to the headline target, then the best Spearman."""
        found = self.reached(headline)
        return (float("inf") if found is None else found[2], -self.best)


def run(
    step: Callable[[Rows, int], Any],
    rows: Iterator[Rows],
    validation: Callable[[], float],
    cap: float,
    most: float = float("inf"),
    enough: float = TARGETS[-1],
    *,
    warmup: int = 0,
) -> Trace:
    """Step until `cap` CPU seconds, `most` steps, or a Spearman of `enough` are reached; validate at intervals.

    The first `warmup` steps are those of the head warm-up.
    """
    gc.collect()  # network and optimizer of the training before are a reference cycle, of gigabytes with --wide
    trace, wall, due = Trace(), 0.0, FIRST_VALIDATION
    for number, batch in enumerate(rows, start=1):
        cpu_before, wall_before = time.process_time(), time.monotonic()
        step(batch, number - 1)
        trace.cpu += time.process_time() - cpu_before
        wall += time.monotonic() - wall_before
        trace.clips, trace.pairs = trace.clips + len(batch), trace.pairs + len(batch) * (len(batch) - 1) // 2
        if number <= warmup:
            trace.warmup = (trace.clips, trace.pairs, trace.cpu)
        ended = trace.cpu >= cap or number >= most
        if trace.cpu >= due or ended:
            trace.validations.append((trace.cpu, wall, number, validation()))
            while due <= trace.cpu:
                due *= VALIDATION_RATIO
            if ended or trace.best >= enough:
                break
    return trace


def run_current(made: Setup, rows: Iterator[Rows], *limits: float) -> Trace:
    """Run the current scheme's steps on stored features, with any batches; `limits` are those of `run`."""

    def step(batch: Rows, number: int) -> None:
        made.network.train()
        made.stepper.step(batch, number, "benchmark")

    return run(step, rows, lambda: validate(made.network, made.val)["val_spearman"], *limits)


def run_with_warmup(data: DemoSplits, made: Setup, epochs: int, *limits: float) -> Trace:
    """Run the head warm-up, then tune MuQ too.

    Tuning starts from the head of the last warm-up epoch, not of the best one, since validation is not counted here.
    """
    first = warmup_setup(data, made)
    warmup_steps, tuning = epochs * made.settings.batches(len(made.train.scores)), False

    def step(batch: Rows, number: int) -> None:
        nonlocal tuning
        if number == warmup_steps:
            made.network.head.load_state_dict(first.network.head.state_dict())
            tuning = True
        current = made if tuning else first
        current.network.train()
        current.stepper.step(batch, number, "benchmark")

    def validation() -> float:
        current = made if tuning else first
        return validate(current.network, current.val)["val_spearman"]

    return run(step, all_pairs(made), validation, *limits, warmup=warmup_steps)


def run_legacy(data: DemoSplits, mode: str, head: str, rate: float, seed: int, cap: float) -> Trace:
    """Run the legacy scheme: from the files, through all layers."""
    made = new_setup(data, mode, head, rate, seed)
    legacy = LegacyScheme(data.muq(data.depth), made, made.muq.layer, LORA if mode == "lora" else None)
    files = {str(clip.sha256): DATA / clip.audio_file for clip in data.train}

    def step(pair: Rows, number: int) -> None:
        def decoded(row: int) -> Callable[[], Tensor]:
            return lambda: torch.from_numpy(decode(files[made.train.keys[row]]).at(MUQ_RATE))

        legacy.step([decoded(row) for row in pair], [made.train.scores[row] for row in pair])

    return run(step, random_pairs(made), legacy.validation, cap)


def widened(data: DemoSplits, folder: Path) -> DemoSplits:
    """Return the corpus with a MuQ of the published size, written to this folder, and fewer clips."""
    make_muq(folder)
    config = load_config(DEMO, [f"encoders.muq.source={folder}", f"encoders.muq.layer={LAYER}"])
    train, val = (
        [clips[index] for index in np.linspace(0, len(clips) - 1, min(count, len(clips))).astype(int)]
        for clips, count in zip((data.train, data.val), WIDE_CLIPS, strict=True)
    )
    return replace(data, config=config, train=train, val=val, depth=MUQ_DEPTH, sizes=WIDE)


def extract(data: DemoSplits, modes: Sequence[str]) -> dict[str, float]:
    """Extract the features of all clips; return the CPU seconds for those that each mode reads."""
    muq, clips = data.muq(), [*data.train, *data.val]
    started = time.process_time()
    extract_features(clips, DATA, {"muq": muq}, data.store)
    seconds = {"frozen": time.process_time() - started}
    if "lora" not in modes:
        return seconds
    # As in a run, the input of the tuned layers is extracted together with the output.
    extract_features(clips, DATA, {"muq": muq}, data.store, prefix_layer=0)
    return {**seconds, "lora": time.process_time() - started}


@dataclass(frozen=True)
class Terms:
    """Conditions of the comparison; see the options of this program."""

    seed: int
    cap: float
    headline: float
    head_warmup_epochs: int
    wide: bool


def speed(folder: Path, heads: Sequence[str], modes: Sequence[str], terms: Terms) -> None:
    """Print clips/s and seconds to each target for both schemes, by head and mode."""
    with tempfile.TemporaryDirectory() as scratch:
        data = replace(prepare(folder), store=FeatureStore(Path(scratch) / "features"))
        if terms.wide:
            data = widened(data, Path(scratch) / "muq")
        seconds = extract(data, modes)
        counts = f"{len(data.train)} training clips, {len(data.val)} validation clips"
        print(f"{counts}; seed {terms.seed}; cap {terms.cap:g} s")
        print(f"headline target, which selects the rates: validation Spearman {terms.headline}")
        print("extraction, once, of all clips: " + ", ".join(f"{mode} {cost:.1f} s" for mode, cost in seconds.items()))
        for head, mode in itertools.product(heads, modes):
            compare(data, mode, head, terms, seconds[mode])


def compare(data: DemoSplits, mode: str, head: str, terms: Terms, extraction: float) -> None:
    """Compare both schemes in one mode and print the result."""
    seed, cap, headline = terms.seed, terms.cap, terms.headline
    trial_mode = "frozen" if terms.wide else mode
    cost = run_legacy(data, mode, head, RATES[0], seed, cap / 20)
    most = round(cap * TRIAL / (cost.cpu / cost.validations[-1][2]))  # steps of the legacy scheme in a trial

    def pairs(tuning: str, rate: float, *limits: float) -> Trace:
        made = new_setup(data, tuning, head, rate, seed)
        return run_current(made, random_pairs(made), *limits)

    def batches(tuning: str, rate: float, *limits: float) -> Trace:
        made = new_setup(data, tuning, head, rate, seed)
        if tuning == "lora":
            return run_with_warmup(data, made, terms.head_warmup_epochs, *limits)
        return run_current(made, all_pairs(made), *limits)

    stored = {rate: pairs(trial_mode, rate, cap * TRIAL, most, headline) for rate in RATES}
    best = min(RATES, key=lambda rate: stored[rate].rank(headline))
    legacy = run_legacy(data, mode, head, best, seed, cap)
    trials = {rate: batches(trial_mode, rate, cap * TRIAL, float("inf"), headline) for rate in RATES}
    own = min(RATES, key=lambda rate: trials[rate].rank(headline))
    current, stored_pairs = batches(mode, own, cap), pairs(mode, best, cap)
    print(f"\n{mode}, {head} head: rate {best:g} for the legacy scheme, {own:g} for the current one, of {RATES}")
    rows = {"legacy": legacy, "current": current, "one pair per step, stored": stored_pairs}
    print(f"{'':26}{'clips/s':>9}{'pairs/s':>10}{'steps':>8}{'CPU s':>8}{'best':>8}")
    for name, trace in rows.items():
        clips, pair_rate = trace.rates()
        print(f"  {name:24}{clips:9.1f}{pair_rate:10.1f}{trace.validations[-1][2]:8}{trace.cpu:8.1f}{trace.best:8.3f}")
    for target in TARGETS:
        print(_target(target, legacy, stored_pairs, current, extraction), flush=True)


def _target(target: float, legacy: Trace, stored: Trace, current: Trace, extraction: float) -> str:
    """Format the CPU seconds of both schemes to one target, and their ratio.

    If the legacy scheme did not reach it within the cap but did on stored features, the time is estimated from those
    steps and marked "~".
    """
    old, estimate, new = legacy.reached(target), stored.reached(target), current.reached(target)
    seconds, sign = legacy.cpu, ">= "
    if old is not None:
        seconds, sign = old[0], ""
    elif estimate is not None:
        seconds, sign = max(legacy.cpu, estimate[2] * legacy.cpu / legacy.validations[-1][2]), "~ "
    own = f">= {current.cpu:.1f}" if new is None else f"{new[0]:.1f}"
    line = f"  to {target:<5} legacy {sign + format(seconds, '.1f'):>10} s, current {own:>8} s"
    if new is not None:
        line += f": {sign}{seconds / new[0]:.0f} x; with extraction {sign}{seconds / (new[0] + extraction):.1f} x"
    return line + (f"; wall {old[1]:.0f} s, {new[1]:.1f} s" if old is not None and new is not None else "")


def main() -> None:
    """Compare both schemes for every head and mode."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cap", type=float, default=240, help="CPU seconds of one training, at most")
    parser.add_argument("--seed", type=int, default=1, help="of weights, pairs and batches")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=HEADS, help="the same for both schemes")
    parser.add_argument("--headline", type=float, default=HEADLINE, help="the target that selects the rates")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--head-warmup-epochs", type=int, default=5, help="before LoRA, current scheme")
    parser.add_argument("--wide", action="store_true", help="a MuQ of the published size, with random weights")
    parser.add_argument("--cache", type=Path, default=home("benchmarks").folder / "training", help="for the split")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    terms = Terms(options.seed, options.cap, options.headline, options.head_warmup_epochs, options.wide)
    speed(options.cache, options.heads, options.modes, terms)


if __name__ == "__main__":
    main()
