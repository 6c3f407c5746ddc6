"""Measure the evaluation: seconds of one core, and peak memory.

`python benchmarks/evaluation.py [CLIPS] [RESAMPLES]`: 4 plans of 3 seeds on CLIPS (1,000) test clips of CLIPS / 7
singers in two sources, with 5 raters and RESAMPLES (2,000) resamples. "one plan" is all metrics of one plan with
intervals; "evaluation" is the whole document of evaluation.json; the other lines are parts of one plan.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: use one core

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from audioscore.evaluation.bootstrap import ResampledClips, resample_test_split
from audioscore.evaluation.evaluate import evaluate, plan_metrics, predicted_scores, resampled_ranks
from audioscore.evaluation.metrics import (
    GAPS,
    kendall,
    mae,
    pairwise_accuracy,
    pairwise_accuracy_in_gap,
    within_sources,
)
from audioscore.evaluation.noise_ceiling import Ratings, noise_ceiling
from audioscore.evaluation.predictions import Prediction, align_runs
from audioscore.evaluation.slices import by_singer, by_song, per_band, per_source

NOISE = {"baseline": 5.0, "hybrid": 4.5, "muq_frozen": 6.0, "campplus_only": 9.0}
SEEDS = (1, 2, 3)
CLIPS_PER_SINGER = 7


def make(clips: int) -> tuple[list[Prediction], Ratings]:
    """Make predictions of all plans and seeds, with half as many validation and twice as many training clips."""
    chance = np.random.default_rng(0)
    total = clips * 7 // 2
    ktv = chance.uniform(size=total) < 0.5
    scores = np.round(np.where(ktv, chance.uniform(50, 85, total), chance.uniform(85, 99, total)), 1)
    splits = np.repeat(["test", "val", "train"], [clips, clips // 2, total - clips - clips // 2])
    rows = []
    for plan, noise in NOISE.items():
        for seed in SEEDS:
            predicted = np.clip(scores + chance.normal(0, noise, total), 0, 100)
            rows += [
                Prediction(
                    f"{n:064x}", f"{n}.wav", str(splits[n]), f"s{n // CLIPS_PER_SINGER}", f"song{n % 61}",
                    "ktv" if ktv[n] else "acapella", float(scores[n]), plan, seed, float(predicted[n] / 20),
                    float(predicted[n]), float(predicted[n] - 8), float(predicted[n] + 8),
                )
                for n in range(total)
            ]  # fmt: skip
    rated = np.clip(scores[:, None] + chance.normal(0, 8, (total, 5)), 0, 100)
    return rows, {(f"{n:064x}", f"{n}.wav"): tuple(map(float, rated[n])) for n in range(clips)}


def seconds(function: Callable[[], Any]) -> float:
    """Measure processor seconds, which do not depend on the load of the machine."""
    start = time.process_time()
    function()
    return time.process_time() - start


def parts(predicted: np.ndarray, test: ResampledClips, ratings: Ratings) -> dict[str, Callable[[], Any]]:
    return {
        "Spearman overall and within source": lambda: resampled_ranks(predicted, test),
        "Kendall": lambda: test.estimate(kendall, predicted),
        "Kendall within source": lambda: test.estimate(within_sources(test.sources, kendall), predicted),
        "pairwise accuracy": lambda: test.estimate(pairwise_accuracy, predicted),
        "pairwise accuracy by gap": lambda: [test.estimate(pairwise_accuracy_in_gap(*gap), predicted) for gap in GAPS],
        "MAE": lambda: test.estimate(mae, predicted),
        "sources": lambda: per_source(predicted, test),
        "bands": lambda: per_band(predicted, test),
        "singers": lambda: by_singer(predicted, test),
        "songs": lambda: by_song(predicted, test),
        "noise ceiling, once for all plans": lambda: noise_ceiling(ratings, test),
    }


def main() -> None:
    clips, resamples = (int(value) for value in (sys.argv[1:] + ["1000", "2000"][len(sys.argv) - 1 :]))
    rows, ratings = make(clips)
    chosen = dict.fromkeys(NOISE, 1)
    runs = align_runs(rows, chosen)
    test, _ = resample_test_split([row for _, row in sorted(runs["baseline", 1]["test"].items())], resamples, 0.95, 0)
    predicted = predicted_scores(runs, "baseline", 1, test)
    print(f"{clips} clips, {test.singer_count()} singers, {resamples} resamples")
    one = seconds(lambda: plan_metrics(runs, "baseline", 1, resampled_ranks(predicted, test), test))
    print(f"{one:6.2f} s  one plan")
    whole = seconds(lambda: json.dumps(evaluate(rows, {}, chosen, ratings=ratings, resamples=resamples)))
    print(f"{whole:6.2f} s  evaluation of {len(NOISE)} plans, {len(SEEDS)} seeds")
    for name, part in parts(predicted, test, ratings).items():
        print(f"{seconds(part):6.2f} s  {name}")
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:6.0f} MB  peak")


if __name__ == "__main__":
    main()
