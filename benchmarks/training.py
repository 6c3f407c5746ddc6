"""Training against the predecessor's scheme: the same weights, clips, head and loss, one torch thread each, one run.

`python benchmarks/training.py [--cap SECONDS] [--seed N] [--heads light songeval] [--modes frozen lora]
[--headline SPEARMAN] [--head-epochs N] [--wide]`. `--wide`: a MuQ of the published size, random weights, and fewer
clips; its frozen layers hear enough to rank the demo corpus by.

The predecessor's scheme: a step takes one random pair, decodes both recordings from their files, and hears them with
the whole MuQ, all layers; a head on the layer that is read ranks the two. Ours: what is frozen was heard once and is
kept on disk, only the layers up to the one that is read are run, and all pairs of a batch are compared
(`training.step`). Frozen, the predecessor's MuQ runs without gradients, but still at every step. With LoRA, our head is
trained alone first, on what the frozen MuQ made (`training.head_epochs`); what that costs is counted.

Seconds are of this process's CPU (`time.process_time`), so that what else runs on the machine counts for little; wall
time is beside them. Validation is not counted. It falls on the same moments of CPU time for both schemes, each
LOOK_RATIO times the one before, and a target counts as reached at the first that shows it. Each scheme has the learning
rate of RATES that is best for it: that reaches the headline target first, or else ranks best within a quarter of the
cap. For the predecessor's it is found on stored features, where the same steps cost less; what is timed is its own way.
Only where it does not reach a target within the cap is a figure marked "~": its steps to there on stored features,
times what one of its own steps cost. With `--wide`, LoRA's rates are found frozen: adapters start at nothing, and a
trial of their own would see a handful of steps.
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
from schemes import DATA, LORA, Ground, Ours, Predecessor, all_pairs, head_alone, ours, prepare, random_pairs
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
RATES = (3e-4, 1e-3, 3e-3, 1e-2)  # of the head; what is tuned of MuQ has a tenth of it
TARGETS, HEADLINE = (0.5, 0.6, 0.7, 0.8, 0.85, 0.88, 0.9), 0.8  # validation Spearman
FIRST_LOOK, LOOK_RATIO = 0.05, 1.2  # seconds of CPU
TRIAL = 0.25  # share of the cap for each rate's trial
WIDE_CLIPS = (128, 64)  # for training and for validation, with `--wide`
WIDE = {"width": 512, "hidden": 2048}  # of the head, as in full.yaml


@dataclass
class Trace:
    """What a training reached, and when: a look is CPU seconds, wall seconds, steps, validation Spearman."""

    looks: list[tuple[float, float, int, float]] = field(default_factory=list)
    clips: int = 0
    pairs: int = 0
    cpu: float = 0.0
    opening: tuple[int, int, float] = (0, 0, 0.0)  # clips, pairs and CPU seconds of the head alone; in those above

    def rates(self) -> tuple[float, float]:
        """Clips and pairs a second of the steps that are not the opening's; of these where there are no others."""
        clips, pairs, cpu = self.opening
        if self.clips == clips:
            clips, pairs, cpu = 0, 0, 0.0
        return (self.clips - clips) / (self.cpu - cpu), (self.pairs - pairs) / (self.cpu - cpu)

    def reached(self, target: float) -> tuple[float, float, int] | None:
        """CPU seconds, wall seconds and steps at the first look that shows the target."""
        return next(((cpu, wall, steps) for cpu, wall, steps, value in self.looks if value >= target), None)

    @property
    def best(self) -> float:
        return max((value for *_, value in self.looks), default=float("nan"))

    def rank(self, headline: float) -> tuple[float, float]:
        """Smaller is better: steps to the headline target, then how well it ranked."""
        found = self.reached(headline)
        return (float("inf") if found is None else found[2], -self.best)


def follow(
    step: Callable[[Rows, int], Any],
    rows: Iterator[Rows],
    look: Callable[[], float],
    cap: float,
    most: float = float("inf"),
    enough: float = TARGETS[-1],
    *,
    opening: int = 0,
) -> Trace:
    """Step until `cap` seconds of CPU or `most` steps are done or `enough` is reached; look now and then.

    The first `opening` steps are the head's alone.
    """
    gc.collect()  # the training before: its network and optimizer know each other, and hold gigabytes with --wide
    trace, wall, due = Trace(), 0.0, FIRST_LOOK
    for number, batch in enumerate(rows, start=1):
        cpu_before, wall_before = time.process_time(), time.monotonic()
        step(batch, number - 1)
        trace.cpu += time.process_time() - cpu_before
        wall += time.monotonic() - wall_before
        trace.clips, trace.pairs = trace.clips + len(batch), trace.pairs + len(batch) * (len(batch) - 1) // 2
        if number <= opening:
            trace.opening = (trace.clips, trace.pairs, trace.cpu)
        ended = trace.cpu >= cap or number >= most
        if trace.cpu >= due or ended:
            trace.looks.append((trace.cpu, wall, number, look()))
            while due <= trace.cpu:
                due *= LOOK_RATIO
            if ended or trace.best >= enough:
                break
    return trace


def follow_ours(made: Ours, rows: Iterator[Rows], *limits: float) -> Trace:
    """Our steps on stored features, whatever the batches are; `limits` are those of `follow`."""

    def step(batch: Rows, number: int) -> None:
        made.network.train()
        made.stepper.step(batch, number, "benchmark")

    return follow(step, rows, lambda: validate(made.network, made.val)["val_spearman"], *limits)


def follow_ours_after_the_head(ground: Ground, made: Ours, epochs: int, *limits: float) -> Trace:
    """Our batches, the first epochs' on the head alone; then what is tuned of MuQ moves with it.

    It goes on from the last epoch's head, not from the best one's as a run does: validation is not counted here.
    """
    first = head_alone(ground, made)
    opening, tuning = epochs * made.settings.batches(len(made.train.scores)), False

    def step(batch: Rows, number: int) -> None:
        nonlocal tuning
        if number == opening:
            made.network.head.load_state_dict(first.network.head.state_dict())
            tuning = True
        now = made if tuning else first
        now.network.train()
        now.stepper.step(batch, number, "benchmark")

    def look() -> float:
        now = made if tuning else first
        return validate(now.network, now.val)["val_spearman"]

    return follow(step, all_pairs(made), look, *limits, opening=opening)


def follow_predecessor(ground: Ground, mode: str, head: str, rate: float, seed: int, cap: float) -> Trace:
    """Its own way: from the files, through all layers."""
    made = ours(ground, mode, head, rate, seed)
    there = Predecessor(ground.muq(ground.depth), made, made.muq.layer, LORA if mode == "lora" else None)
    files = {str(clip.sha256): DATA / clip.audio_file for clip in ground.train}

    def step(pair: Rows, number: int) -> None:
        def hear(row: int) -> Callable[[], Tensor]:
            return lambda: torch.from_numpy(decode(files[made.train.keys[row]]).at(MUQ_RATE))

        there.step([hear(row) for row in pair], [made.train.scores[row] for row in pair])

    return follow(step, random_pairs(made), there.look, cap)


def widened(ground: Ground, folder: Path) -> Ground:
    """The same corpus with a MuQ of the published size, made in this folder, and a part of the clips."""
    make_muq(folder)
    config = load_config(DEMO, [f"encoders.muq.source={folder}", f"encoders.muq.layer={LAYER}"])
    train, val = (
        [clips[place] for place in np.linspace(0, len(clips) - 1, min(count, len(clips))).astype(int)]
        for clips, count in zip((ground.train, ground.val), WIDE_CLIPS, strict=True)
    )
    return replace(ground, config=config, train=train, val=val, depth=MUQ_DEPTH, sizes=WIDE)


def extract(ground: Ground, modes: Sequence[str]) -> dict[str, float]:
    """Hear all clips into the ground's store; CPU seconds for what each mode reads."""
    muq, clips = ground.muq(), [*ground.train, *ground.val]
    started = time.process_time()
    extract_features(clips, DATA, {"muq": muq}, ground.store)
    heard = {"frozen": time.process_time() - started}
    if "lora" not in modes:
        return heard
    # `extract_features` hears a tuned layer's input beside the output, as a run does.
    extract_features(clips, DATA, {"muq": muq}, ground.store, prefix_layer=0)
    return {**heard, "lora": time.process_time() - started}


@dataclass(frozen=True)
class Terms:
    """What both schemes are compared under; see the options of this program."""

    seed: int
    cap: float
    headline: float
    head_epochs: int
    wide: bool


def speed(folder: Path, heads: Sequence[str], modes: Sequence[str], terms: Terms) -> None:
    """Print clips/s and seconds to each target, both schemes, by head and mode."""
    with tempfile.TemporaryDirectory() as scratch:
        ground = replace(prepare(folder), store=FeatureStore(Path(scratch) / "features"))
        if terms.wide:
            ground = widened(ground, Path(scratch) / "muq")
        heard = extract(ground, modes)
        counts = f"{len(ground.train)} training clips, {len(ground.val)} validation clips"
        print(f"{counts}; seed {terms.seed}; cap {terms.cap:g} s")
        print(f"headline target, by which rates are chosen: validation Spearman {terms.headline}")
        print("extraction, once, of all clips: " + ", ".join(f"{mode} {cost:.1f} s" for mode, cost in heard.items()))
        for head, mode in itertools.product(heads, modes):
            compare(ground, mode, head, terms, heard[mode])


def compare(ground: Ground, mode: str, head: str, terms: Terms, extraction: float) -> None:
    """Print one mode; the predecessor's scheme goes first."""
    seed, cap, headline = terms.seed, terms.cap, terms.headline
    trial_mode = "frozen" if terms.wide else mode
    cost = follow_predecessor(ground, mode, head, RATES[0], seed, cap / 20)
    most = round(cap * TRIAL / (cost.cpu / cost.looks[-1][2]))  # steps of its own in a trial's share of the cap

    def pairs(tuning: str, rate: float, *limits: float) -> Trace:
        made = ours(ground, tuning, head, rate, seed)
        return follow_ours(made, random_pairs(made), *limits)

    def batches(tuning: str, rate: float, *limits: float) -> Trace:
        made = ours(ground, tuning, head, rate, seed)
        if tuning == "lora":
            return follow_ours_after_the_head(ground, made, terms.head_epochs, *limits)
        return follow_ours(made, all_pairs(made), *limits)

    stored = {rate: pairs(trial_mode, rate, cap * TRIAL, most, headline) for rate in RATES}
    best = min(RATES, key=lambda rate: stored[rate].rank(headline))
    theirs = follow_predecessor(ground, mode, head, best, seed, cap)
    trials = {rate: batches(trial_mode, rate, cap * TRIAL, float("inf"), headline) for rate in RATES}
    own = min(RATES, key=lambda rate: trials[rate].rank(headline))
    mine, longer = batches(mode, own, cap), pairs(mode, best, cap)
    print(f"\n{mode}, {head} head: rate {best:g} for the predecessor's scheme, {own:g} for ours, of {RATES}")
    rows = {"predecessor's": theirs, "ours": mine, "one pair a step, stored": longer}
    print(f"{'':26}{'clips/s':>9}{'pairs/s':>10}{'steps':>8}{'CPU s':>8}{'best':>8}")
    for name, trace in rows.items():
        clips, pair_rate = trace.rates()
        print(f"  {name:24}{clips:9.1f}{pair_rate:10.1f}{trace.looks[-1][2]:8}{trace.cpu:8.1f}{trace.best:8.3f}")
    for target in TARGETS:
        print(_target(target, theirs, longer, mine, extraction), flush=True)


def _target(target: float, theirs: Trace, longer: Trace, mine: Trace, extraction: float) -> str:
    """Both schemes' CPU seconds to one target, and how many times less ours are.

    Where the predecessor's did not get there within the cap, its steps on stored features, which cost less, may have:
    so many steps at its own cost of one are then given, marked "~".
    """
    there, later, here = theirs.reached(target), longer.reached(target), mine.reached(target)
    seconds, sign = theirs.cpu, ">= "
    if there is not None:
        seconds, sign = there[0], ""
    elif later is not None:
        seconds, sign = max(theirs.cpu, later[2] * theirs.cpu / theirs.looks[-1][2]), "~ "
    own = f">= {mine.cpu:.1f}" if here is None else f"{here[0]:.1f}"
    line = f"  to {target:<5} predecessor's {sign + format(seconds, '.1f'):>10} s, ours {own:>8} s"
    if here is not None:
        line += f": {sign}{seconds / here[0]:.0f} x; with extraction {sign}{seconds / (here[0] + extraction):.1f} x"
    return line + (f"; wall {there[1]:.0f} s, {here[1]:.1f} s" if there is not None and here is not None else "")


def main() -> None:
    """Print both modes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cap", type=float, default=240, help="CPU seconds that one training may take")
    parser.add_argument("--seed", type=int, default=1, help="of weights, pairs and batches")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=HEADS, help="the same for both schemes")
    parser.add_argument("--headline", type=float, default=HEADLINE, help="the target by which rates are chosen")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--head-epochs", type=int, default=5, help="of the head alone, before LoRA tunes, in ours")
    parser.add_argument("--wide", action="store_true", help="a MuQ of the published size, with random weights")
    parser.add_argument("--cache", type=Path, default=home("benchmarks").folder / "training", help="for the split")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    terms = Terms(options.seed, options.cap, options.headline, options.head_epochs, options.wide)
    speed(options.cache, options.heads, options.modes, terms)


if __name__ == "__main__":
    main()
