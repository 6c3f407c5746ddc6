import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from audioscore.config import EvaluationSection, Plan
from audioscore.data.clips import Clip
from audioscore.data.index import write_index
from audioscore.encoders.extract import Extraction, write_extraction
from audioscore.encoders.features import EncoderReference, Kind
from audioscore.encoders.store import FeatureStore
from audioscore.encoders.stored_features import StoredFeatures
from audioscore.errors import DataError
from audioscore.evaluation.predict import (
    evaluate_plans,
    predict_clips,
    read_evaluation,
)
from audioscore.scoring.calibration import Calibration
from audioscore.scoring.checkpoint import load_network, save_scorer
from audioscore.scoring.head import ScoreHead
from audioscore.scoring.network import ScoreNetwork, raw_outputs
from audioscore.scoring.scorer import BRANCHES, Description
from audioscore.scoring.trained_plan import Outcome, OutOfFold, TrainedPlan, write_trained

DIMS: dict[Kind, int] = {"muq": 6, "campplus": 4}
# References by hub id, so that no encoder has to be embedded; only heads run here.
ENCODERS: dict[Kind, EncoderReference] = {
    "muq": EncoderReference("muq", "team/muq", "v1", "a" * 64, 2),
    "campplus": EncoderReference("campplus", "team/campplus", "v1", "b" * 64),
}
SETTINGS = EvaluationSection(resamples=100)


def clip(number: int) -> Clip:
    return Clip(f"audio/{number:02d}.wav", 60.0 + number, f"s{number % 6}", "song", "ktv", sha256=f"{number:064x}")


SPLITS = {
    "train": [clip(number) for number in range(8)], "val": [clip(number) for number in range(8, 16)],
    "test": [clip(number) for number in range(16, 30)]
}  # fmt: skip


@pytest.fixture
def index(tmp_path: Path) -> Path:
    for split, clips in SPLITS.items():
        write_index(tmp_path / "sorted" / "index" / f"{split}.json", [clips[::-1]])
    return tmp_path / "sorted"


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """An extraction folder with random features in its store."""
    store, generator = FeatureStore(tmp_path / "store"), torch.Generator().manual_seed(3)
    clips = [one for listed in SPLITS.values() for one in listed]
    for number, one in enumerate(clips):
        store.put(ENCODERS["muq"], str(one.sha256), torch.randn(5 + number % 4, DIMS["muq"], generator=generator))
        store.put(ENCODERS["campplus"], str(one.sha256), torch.randn(DIMS["campplus"], generator=generator))
    write_extraction(Extraction(store.uri, ENCODERS, len(clips), 0, len(clips), 0.0), {}, tmp_path / "features")
    return tmp_path / "features"


def trained_plan(folder: Path, plan: Plan, seeds: tuple[int, ...] = (1, 2)) -> TrainedPlan:
    """Save untrained heads as training does."""
    dims = {str(kind): DIMS[kind] for kind in BRANCHES[plan]}
    for seed in seeds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = ScoreHead(dims, width=4, hidden=4, dropout=0.5)
        description = Description(
            plan, seed, {kind: ENCODERS[kind] for kind in BRANCHES[plan]},
            {"dims": dims, "width": 4, "hidden": 4, "dropout": 0.5}, Calibration((-1.0, 1.0), (60.0, 90.0), 4.0), (),
            "0.dir", "unknown"
        )  # fmt: skip
        save_scorer(ScoreNetwork(head), description, {}, folder / plan / f"seed-{seed}")
    outcomes = {seed: Outcome(0.5 + 0.1 * seed, 0.5 + 0.1 * seed, [], 10, ("w",)) for seed in seeds}
    trained = TrainedPlan(plan, folder / plan, seeds[-1], outcomes)
    write_trained(trained)
    return trained


def test_every_clip_is_predicted_by_every_seed_of_every_plan(tmp_path: Path, index: Path, features: Path) -> None:
    plans = [trained_plan(tmp_path, plan) for plan in ("baseline", "hybrid")]
    done = evaluate_plans([one.folder for one in plans], index, features, tmp_path / "out", SETTINGS)
    rows = done.predictions
    assert len(rows) == 2 * 2 * 30
    assert {(row.plan, row.seed) for row in rows} == {(p, s) for p in ("baseline", "hybrid") for s in (1, 2)}
    assert {row.audio_file for row in rows if row.split == "test"} == {one.audio_file for one in SPLITS["test"]}
    again = read_evaluation(tmp_path / "out")
    assert (again.predictions, again.figures) == (rows, json.loads(json.dumps(done.figures)))
    assert done.figures["plans"]["baseline"]["seed"] == 2
    assert done.figures["noise_ceiling"]["clips"] == 0  # these clips carry no raters


def test_raters_of_the_index_and_validation_of_plans_are_used(tmp_path: Path, index: Path, features: Path) -> None:
    rated = [
        replace(one, raters=(one.score, None, 100 - (one.score or 0) / 2, 60.0 + n % 7))
        for n, one in enumerate(SPLITS["test"])
    ]
    write_index(index / "index" / "test.json", [rated[::-1]])
    plans = [trained_plan(tmp_path, plan) for plan in ("baseline", "hybrid", "campplus_only")]
    figures = evaluate_plans([one.folder for one in plans], index, features, tmp_path / "out", SETTINGS).figures
    assert (figures["noise_ceiling"]["clips"], figures["noise_ceiling"]["raters"]) == (14, 3)
    winner = figures["winner"]["plan"]
    assert figures["variants"]["reference"] == winner
    assert list(figures["variants"]["compared"]) == [plan for plan in figures["plans"] if plan != winner]


def test_clips_of_a_cross_validated_plan_have_their_out_of_fold_outputs(
    tmp_path: Path, index: Path, features: Path
) -> None:
    plan = trained_plan(tmp_path, "baseline")
    outcomes = {seed: replace(outcome, centre=float(seed)) for seed, outcome in plan.outcomes.items()}
    write_trained(replace(plan, outcomes=outcomes))
    raw = {str(one.sha256): number / 10 for split in ("train", "val") for number, one in enumerate(SPLITS[split])}
    OutOfFold(5, 7, raw).write(plan.folder)
    done = evaluate_plans([plan.folder], index, features, tmp_path / "out", SETTINGS)
    for row in done.predictions:
        if row.split != "test":
            assert row.raw == pytest.approx(raw[row.sha256] + row.seed)
    figures = done.figures["winner"]
    assert (figures["plan"], figures["out_of_fold"], figures["clips"]) == ("baseline", True, 16)


def test_a_clip_without_an_out_of_fold_output_is_named(tmp_path: Path, index: Path, features: Path) -> None:
    plan = trained_plan(tmp_path, "baseline")
    OutOfFold(5, 7, {str(one.sha256): 0.0 for one in SPLITS["train"]}).write(plan.folder)
    with pytest.raises(DataError, match=r"8 of 8 val clips .*audio/"):
        evaluate_plans([plan.folder], index, features, tmp_path / "out", SETTINGS)


def test_a_warm_start_is_marked_as_optimistic(tmp_path: Path, index: Path, features: Path) -> None:
    plans = [trained_plan(tmp_path, plan) for plan in ("baseline", "hybrid")]
    folder = plans[1].scorer_folder()
    described = json.loads((folder / "scorer.json").read_text())
    described["training"] = {"init": "warm: older"}
    (folder / "scorer.json").write_text(json.dumps(described))
    figures = evaluate_plans([one.folder for one in plans], index, features, tmp_path / "out", SETTINGS).figures
    (warning,) = [one for one in figures["warnings"] if "older" in one]
    assert warning.startswith("hybrid: ")


def test_plans_that_rank_nothing_have_no_winner(tmp_path: Path, index: Path, features: Path) -> None:
    plan = trained_plan(tmp_path, "campplus_only")
    figures = evaluate_plans([plan.folder], index, features, tmp_path / "out", SETTINGS).figures
    assert (figures["winner"], figures["variants"]["reference"]) == (None, "campplus_only")


def test_a_row_is_the_scorers_output(tmp_path: Path, features: Path) -> None:
    trained = trained_plan(tmp_path, "hybrid")
    stored = StoredFeatures(SPLITS["test"], ENCODERS, BRANCHES["hybrid"], FeatureStore(tmp_path / "store"))
    rows = predict_clips(trained, 1, {"test": SPLITS["test"]}, {"test": stored})
    folder = tmp_path / "hybrid" / "seed-1"
    shape = Description("hybrid", 1, {}, {"dims": {"muq": 6, "campplus": 4}, "width": 4, "hidden": 4, "dropout": 0.5},
                        Calibration((0.0, 1.0), (0.0, 1.0), 0.0), (), "", "")  # fmt: skip
    raw = raw_outputs(load_network(folder, shape), stored)
    assert [row.raw for row in rows] == pytest.approx(list(raw))
    expected = np.clip(75 + 15 * raw, 0, 100)  # the calibration is the line through (-1, 60) and (1, 90)
    assert [row.predicted for row in rows] == pytest.approx(list(expected))
    assert [(row.lo, row.hi) for row in rows] == [
        (pytest.approx(max(0, value - 4)), pytest.approx(min(100, value + 4))) for value in expected
    ]
    first, one = rows[0], SPLITS["test"][0]
    assert (first.sha256, first.audio_file, first.singer_id, first.song_id, first.source, first.score) == (
        one.sha256, one.audio_file, one.singer_id, one.song_id, one.source, one.score
    )  # fmt: skip


def test_a_plan_given_twice_is_refused(tmp_path: Path, index: Path, features: Path) -> None:
    folder = trained_plan(tmp_path, "baseline").folder
    with pytest.raises(DataError, match=r"\['baseline', 'baseline'\]"):
        evaluate_plans([folder, folder], index, features, tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()


def test_an_empty_test_split_is_refused(tmp_path: Path, index: Path, features: Path) -> None:
    folder = trained_plan(tmp_path, "baseline").folder
    write_index(index / "index" / "test.json", [[replace(clip(40), score=None)]])
    with pytest.raises(DataError, match="test split"):
        evaluate_plans([folder], index, features, tmp_path / "out", SETTINGS)
