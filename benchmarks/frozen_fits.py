"""Training heads on frozen features: all folds at once against one after another.

`python benchmarks/frozen_fits.py [--clips 268] [--epochs 10]`: random features of the demo's size (frames of 32
channels, embeddings of 192), the settings of `training`, one torch thread. Prints CPU milliseconds for a model and an
epoch, with the outputs of all clips after each epoch, and the ratio.
"""

import argparse
import time
from dataclasses import replace

import numpy as np
import torch

from audioscore.config import SMALL, load_config
from audioscore.encoders.compute import one_torch_thread
from audioscore.scoring.head import ScoreHead
from audioscore.scoring.network import ScoreNetwork, raw_outputs
from audioscore.training.batches import draw_batches
from audioscore.training.data import TrainingSplit, fit_statistics
from audioscore.training.distributed import start
from audioscore.training.folds.frozen_fits import ClipStatistics, FrozenFit, fit_frozen
from audioscore.training.recipe import Recipe, fit_settings
from audioscore.training.step import FitSettings, Stepper

DIMS = {"muq": 32, "campplus": 192}
FRAMES = (75, 150)  # of clips of 3 to 6 s
TOGETHER = 5


def clips_of(count: int, kinds: tuple[str, ...]) -> TrainingSplit:
    """Return clips with random features and scores of two sources."""
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    features = [
        {
            "muq": torch.randn(int(rng.integers(*FRAMES)), DIMS["muq"], generator=generator),
            "campplus": torch.randn(DIMS["campplus"], generator=generator),
        }
        for _ in range(count)
    ]
    scores = [float(score) for score in rng.uniform(50, 99, count)]
    sources = ["ktv" if number % 2 else "acapella" for number in range(count)]
    chosen = [{kind: clip[kind] for kind in kinds} for clip in features]
    return TrainingSplit(chosen, scores, sources, [f"{number:064x}" for number in range(count)])


def new_head(split: TrainingSplit, width: int, hidden: int) -> ScoreHead:
    """Return a light head with the statistics of the clips."""
    head = ScoreHead({kind: DIMS[kind] for kind in split.features[0]}, width=width, hidden=hidden, dropout=0.1)
    fit_statistics(ScoreNetwork(head), split.features)
    return head


def plain(head: ScoreHead, split: TrainingSplit, settings: FitSettings, epochs: int) -> float:
    """Return the CPU seconds of an epoch by the training loop's own steps."""
    stepper, step = Stepper(start("cpu"), ScoreNetwork(head), None, split, settings, 1), 0
    begin = time.process_time()
    for epoch in range(1, epochs + 1):
        stepper.module.train()
        for rows in draw_batches(
            split.scores, split.sources, split.groups, keys=split.keys, batch_clips=settings.batch_clips, seed=1,
            epoch=epoch,
        ):  # fmt: skip
            stepper.step(rows, step, "")
            step += 1
        raw_outputs(stepper.network, split.features)
    return (time.process_time() - begin) / epochs


def together(heads: list[ScoreHead], split: TrainingSplit, settings: FitSettings, epochs: int) -> float:
    """Return the CPU seconds of a model and epoch when all heads are fitted at once, reading the features included."""
    begin = time.process_time()
    clips = ClipStatistics.read(split.features, torch.device("cpu"))
    assert clips is not None
    fits = [FrozenFit(np.arange(len(split.scores)), seed) for seed in range(len(heads))]
    fit_frozen(heads, clips, split, fits, settings, epochs=epochs)
    return (time.process_time() - begin) / epochs / len(heads)


def main() -> None:
    """Print the times of both plans."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=268)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    training = load_config(SMALL).training
    settings = replace(fit_settings(training, Recipe({}, None, adversary=False)), epochs=options.epochs)
    with one_torch_thread():
        for name, kinds in (("baseline", ("muq",)), ("hybrid", ("muq", "campplus"))):
            split = clips_of(options.clips, kinds)
            heads = [new_head(split, training.width, training.hidden) for _ in range(TOGETHER + 2)]
            together(heads[:1], split, settings, 1)  # the first call sets torch.func up
            one = plain(heads[1], split, settings, options.epochs)
            many = together(heads[2:], split, settings, options.epochs)
            print(
                f"{name}: {1000 * one:.1f} ms one after another, {1000 * many:.1f} ms of {TOGETHER} at once: "
                f"{one / many:.2f} x"
            )


if __name__ == "__main__":
    main()
