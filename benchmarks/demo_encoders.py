"""What the features of the small encoders contain about recordings whose qualities are given.

`python benchmarks/demo_encoders.py [--config FILE] [--singers N] [--jobs N]` synthesises a corpus of its own and
encodes it with the encoders of the configuration. A ridge regression on mean and deviation of MuQ's frames, on the
CAM++ embedding, and on both predicts the hidden quality of each performance, of each voice, and of a mix of both. It
prints the Spearman correlation within source, by cross-validation over singers with the best penalty.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from audioscore.config import DEMO, load_config
from audioscore.data.audio import Recording
from audioscore.demo.corpus import render
from audioscore.demo.plan import PlannedClip, plan_corpus
from audioscore.demo.synthesis import RATE
from audioscore.encoders.compute import one_torch_thread
from audioscore.encoders.extract import load_encoders
from audioscore.encoders.features import Encoders
from audioscore.encoders.inference import encode_recording
from audioscore.evaluation.metrics import within_source_spearman

FOLDS, SEED, SHARE, TIMBRE_SHARE = 6, 5, 0.3, 0.6
PENALTIES = tuple(10.0**power for power in np.arange(0.5, 4.0, 0.5))


def main(config: Path, singers: int, jobs: int) -> None:
    """Print the table."""
    plan = plan_corpus(singers, 2, seed=SEED, timbre_share=SHARE)
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the processes that start now
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        features = list(pool.map(partial(encode, config), plan, chunksize=8))
    muq, campplus = (np.stack(part) for part in zip(*features, strict=True))
    performance = np.array([planned.q_performance for planned in plan])
    timbre = np.array([planned.q_timbre for planned in plan])
    mixed = TIMBRE_SHARE * timbre + (1 - TIMBRE_SHARE) * performance
    print(f"{len(plan)} clips of {singers} singers\n{'':12}{'performance':>12}{'voice':>8}{'0.6 voice':>11}")
    for name, columns in (("MuQ", muq), ("CAM++", campplus), ("both", np.hstack([muq, campplus]))):
        found = [predicted_spearman(columns, quality, plan) for quality in (performance, timbre, mixed)]
        print(f"{name:12}{found[0]:12.2f}{found[1]:8.2f}{found[2]:11.2f}")


def encode(config: Path, planned: PlannedClip) -> tuple[np.ndarray, np.ndarray]:
    """Return pooled MuQ frames [2 * D] and the CAM++ embedding [E] of one recording."""
    with one_torch_thread():
        found = encode_recording(Recording(render(planned), RATE), _encoders(config))
    frames = found["muq"].float().numpy()
    return np.concatenate([frames.mean(0), frames.std(0)]), found["campplus"].float().numpy()


@cache
def _encoders(config: Path) -> Encoders:
    return load_encoders(load_config(config).encoders)


def predicted_spearman(features: np.ndarray, quality: np.ndarray, plan: list[PlannedClip]) -> float:
    """Return Spearman within source of cross-validated predictions with the best penalty.

    Shape: features [N, D], quality [N].
    """
    sources = [planned.source for planned in plan]
    domain = np.array([[source == name for name in sorted(set(sources))] for source in sources], dtype=np.float64)
    design = np.hstack([(features - features.mean(0)) / (features.std(0) + 1e-9), 3 * domain])
    singers = np.unique([planned.singer.singer_id for planned in plan], return_inverse=True)[1]
    values = []
    for penalty in PENALTIES:
        predicted = np.zeros(len(plan))
        for fold in range(FOLDS):
            held = singers % FOLDS == fold
            train, target = design[~held], quality[~held] - quality[~held].mean()
            inner = train.T @ train + penalty * np.eye(train.shape[1])
            predicted[held] = design[held] @ np.linalg.solve(inner, train.T @ target)
        values.append(within_source_spearman(quality, predicted, sources))
    return max(values)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, default=DEMO)
    parser.add_argument("--singers", type=int, default=160)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    given = parser.parse_args()
    main(given.config, given.singers, given.jobs)
