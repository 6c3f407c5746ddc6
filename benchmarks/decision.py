"""How reliable the decisions of a run are: intervals, the choice of the winner, and the promotion gate.

`python benchmarks/decision.py RUN [--splits 20] [--plan hybrid]`: RUN is the folder of a finished run, whose features
are used; nothing in it changes.

1. Coverage: the plan is trained on `--splits` random singer-disjoint splits of the run's clips, and the shares of test
   clips inside their 90 % interval are printed by source.
2. Domain attack: on 100 random test splits, a copy of a model that adds 8 points to one source challenges the model.
3. Choice: in simulated comparisons of two plans whose within-source Spearman truly differ by 0.02 or more, how often
   the worse one wins by more than one standard error.
"""

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from audioscore.config import parse_config
from audioscore.data.clips import Clip
from audioscore.data.split.assign import assign_splits
from audioscore.data.split.groups import SPLITS
from audioscore.data.split.sort import read_split, write_sorted
from audioscore.encoders.extract import read_extraction
from audioscore.encoders.store import FeatureStore
from audioscore.encoders.stored_features import StoredFeatures
from audioscore.evaluation.gate.decision import decide
from audioscore.evaluation.metrics import within_source_spearman
from audioscore.evaluation.predictions import Prediction, align_runs
from audioscore.evaluation.winner import choose_winner
from audioscore.files import read_json
from audioscore.scoring.checkpoint import load_network, read_description
from audioscore.scoring.network import raw_outputs
from audioscore.scoring.scorer import BRANCHES, Plan, plan_by_name
from audioscore.training.train import train_plan

ATTACKS, POINTS = 100, 8.0
TRIALS = 200
SINGERS, CLIPS = 72, 4  # of a simulated comparison


def coverage(run: Path, plan: Plan, splits: int) -> list[tuple[list[Clip], np.ndarray]]:
    """Print the coverage by source; return the test clips of each split and their predicted scores."""
    (index,), (features,) = run.glob("steps/*/sort-data/index"), run.glob("steps/*/extract-features/features")
    config = parse_config(read_json(run / "config.json"))
    settings = config.training.model_copy(update={"seeds": [1]})
    clips = [clip for name in SPLITS for clip in read_split(index, name)]
    extraction = read_extraction(features)
    covered: dict[str, list[float]] = defaultdict(list)
    tested = []
    for seed in range(splits):
        with tempfile.TemporaryDirectory() as folder:
            assigned = assign_splits(clips, val=config.split.val, test=config.split.test, seed=seed)
            write_sorted(Path(folder), clips, assigned)
            trained = train_plan(
                plan, Path(folder), features, Path(folder) / "plan", settings, data_digest="", code_revision=""
            )
            scorer = trained.scorer_folder()
            description = read_description(scorer)
            test = read_split(Path(folder), "test")
            stored = StoredFeatures(test, extraction.encoders, BRANCHES[plan], FeatureStore(extraction.store))
            predicted = description.calibration.apply(raw_outputs(load_network(scorer, description), stored))
        sources = [clip.source for clip in test]
        low, high = description.calibration.interval(predicted, sources)
        human = np.array([clip.score for clip in test], dtype=np.float64)
        inside = (low <= human) & (human <= high)
        for source in sorted({str(one) for one in sources}):
            covered[source].append(float(inside[[str(one) == source for one in sources]].mean()))
        tested.append((test, predicted))
    for source, shares in covered.items():
        print(f"coverage of the 90 % interval, {source}: mean {np.mean(shares):.3f} over {splits} splits "
              f"(least {min(shares):.2f}, most {max(shares):.2f})")  # fmt: skip
    return tested


def attack(tested: list[tuple[list[Clip], np.ndarray]]) -> None:
    """Print how often a model that adds points to one source replaces the model that it is a copy of."""
    promoted = 0
    for number in range(ATTACKS):
        clips, predicted = tested[number % len(tested)]
        rng = np.random.default_rng(number)
        singers = sorted({str(clip.singer_id) for clip in clips})
        drawn = set(rng.choice(singers, max(7, round(0.8 * len(singers))), replace=False).tolist())
        kept = [row for row, clip in enumerate(clips) if str(clip.singer_id) in drawn]
        sources = [clips[row].source for row in kept]
        raised = sorted({str(source) for source in sources})[number % len(set(sources))]
        challenger = predicted[kept] + POINTS * np.array([source == raised for source in sources])
        promoted += decide(
            challenger, predicted[kept], scores=[clips[row].score or 0.0 for row in kept],
            singers=[clips[row].singer_id for row in kept], sources=sources, resamples=500,
        ).promoted  # fmt: skip
    print(f"domain attack ({POINTS:g} points added to one source): promoted in {promoted} of {ATTACKS} test splits")


def choice() -> None:
    """Print how often the worse of two simulated plans wins."""
    wrong = ties = 0
    for number in range(TRIALS):
        rng = np.random.default_rng([number, 3])
        singer = np.repeat(np.arange(SINGERS), CLIPS)
        sources = np.where(singer % 2, "ktv", "acapella")
        quality = rng.normal(0, 1, len(singer)) + 0.5 * rng.normal(0, 1, SINGERS)[singer]
        human = np.round(
            np.clip(np.where(sources == "ktv", 67, 92) + np.where(sources == "ktv", 7, 3) * quality, 50, 99), 1
        )
        shared = 0.6 * rng.normal(0, 1, SINGERS)[singer] + 0.3 * rng.normal(0, 1, len(singer))
        better = number % 2
        # The larger noise lowers the true Spearman by 0.02 or more: see true_difference.
        levels = (0.50, 0.60) if better == 0 else (0.60, 0.50)
        outputs = [quality + shared + level * rng.normal(0, 1, len(singer)) for level in levels]
        rows = [
            Prediction(
                f"{row:064x}", f"{row}.wav", "train", f"s{singer[row]}", None, str(sources[row]), float(human[row]),
                ("baseline", "hybrid")[plan], 1, float(raw[row]), 0.0, None, None,
            )
            for plan, raw in enumerate(outputs)
            for row in range(len(singer))
        ]  # fmt: skip
        plans = {"baseline": 1, "hybrid": 1}
        rows += [
            Prediction(**{**vars(row), "split": "test", "sha256": "f" * 64}) for row in (rows[0], rows[len(singer)])
        ]
        winner = choose_winner(align_runs(rows, plans), plans, tuple(plans))
        if winner.plan == ("baseline", "hybrid")[better]:
            continue
        tie = winner.plan != winner.best or (winner.plans["baseline"].below_best or 0) <= (
            winner.plans["baseline"].standard_error or 0
        )
        ties += tie
        wrong += not tie
    print(f"simulated comparisons, truly {true_difference():+.3f} apart: the worse plan wins in {wrong} of {TRIALS}")
    print(f"by more than one standard error, and in {ties} as a tie")


def true_difference() -> float:
    """The difference in within-source Spearman of the two simulated plans, over many clips of one source."""
    rng = np.random.default_rng(0)
    quality, shared = rng.normal(0, 1.118, 200_000), rng.normal(0, 0.671, 200_000)
    noise = rng.normal(0, 1, 200_000)
    values = [
        within_source_spearman(quality, quality + shared + level * noise, ["ktv"] * 200_000) for level in (0.5, 0.6)
    ]
    return values[0] - values[1]


def main() -> None:
    """Print all three."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--plan", type=plan_by_name, default="hybrid")
    options = parser.parse_args()
    choice()
    attack(coverage(options.run, options.plan, options.splits))


if __name__ == "__main__":
    main()
