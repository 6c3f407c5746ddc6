"""A baseline for the trained scorers: ridge regression on mean and deviation of the frozen encoders' features.

`python benchmarks/ridge.py RUN_FOLDER`, where RUN_FOLDER is `.audioscore/demo/runs/<run id>` or another run's folder.
It uses the clips, splits and features of the run. The penalty is chosen on validation; test is read once. If a trained
scorer is clearly worse than this, something is wrong with its training.
"""

import sys
from pathlib import Path

import numpy as np

from audioscore.data.split.sort import read_split
from audioscore.encoders.extract import read_extraction
from audioscore.encoders.store import FeatureStore
from audioscore.encoders.stored_features import StoredFeatures
from audioscore.evaluation.metrics import spearman, within_source_spearman
from audioscore.files import read_json
from audioscore.scoring.scorer import BRANCHES, CANDIDATES
from pipelines.local_run import output_of

PENALTIES = tuple(10.0**power for power in np.arange(0, 4.5, 0.5))


def main(run: Path) -> None:
    """Print one line per plan: Spearman of the ridge regression and of the trained scorer."""
    steps = run / "steps"
    index, features = output_of(steps, "sort_data", "index"), output_of(steps, "extract_features", "features")
    extraction, result = read_extraction(features), read_json(run / "result.json")
    store = FeatureStore(extraction.store)
    splits = {name: read_split(index, name) for name in ("train", "val", "test")}
    print(f"{'plan':<10} {'ridge':>7} {'trained':>8}   {'ridge within source':>19} {'trained':>8}")
    for plan in CANDIDATES:
        pooled = {
            name: np.stack([pool(clip) for clip in StoredFeatures(clips, extraction.encoders, BRANCHES[plan], store)])
            for name, clips in splits.items()
        }
        scores = {name: np.array([clip.score for clip in clips]) for name, clips in splits.items()}
        sources = {name: [clip.source or "" for clip in clips] for name, clips in splits.items()}

        def predict(penalty: float, name: str, pooled: dict = pooled, scores: dict = scores) -> np.ndarray:
            return ridge(pooled["train"], scores["train"], pooled[name], penalty)

        best = max(
            PENALTIES,
            key=lambda penalty: (
                spearman(scores["val"], predict(penalty, "val"))
                + within_source_spearman(scores["val"], predict(penalty, "val"), sources["val"])
            ),
        )
        test = predict(best, "test")
        overall, within = spearman(scores["test"], test), within_source_spearman(scores["test"], test, sources["test"])
        trained = result["plans"][plan]
        print(
            f"{plan:<10} {overall:7.3f} {trained['spearman']['value']:8.3f}   {within:19.3f} "
            f"{trained['spearman_within_source']['value']:8.3f}"
        )


def pool(clip: dict) -> np.ndarray:
    """Return mean and deviation of MuQ frames over time, and the CAM++ embedding if the plan has one."""
    parts = [clip["muq"].mean(0), clip["muq"].std(0)] if "muq" in clip else []
    parts += [clip["campplus"]] if "campplus" in clip else []
    return np.concatenate([part.numpy() for part in parts]).astype(np.float64)


def ridge(train: np.ndarray, scores: np.ndarray, other: np.ndarray, penalty: float) -> np.ndarray:
    """Predict by closed-form ridge regression on standardised columns.

    Shape: train [N, D], scores [N], other [M, D] -> [M].
    """
    mean, deviation = train.mean(0), train.std(0) + 1e-9
    design, target = (train - mean) / deviation, scores - scores.mean()
    weights = np.linalg.solve(design.T @ design + penalty * np.eye(design.shape[1]), design.T @ target)
    return (other - mean) / deviation @ weights


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit((__doc__ or "").splitlines()[2])
    main(Path(sys.argv[1]))
