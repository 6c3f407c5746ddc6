"""Predict all clips with the trained plans, and compute and write the evaluation."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from audioscore.data.clips import Clip
from audioscore.data.split.sort import read_split
from audioscore.encoders.compute import choose_device
from audioscore.encoders.extract import Extraction, read_extraction
from audioscore.encoders.features import Features
from audioscore.encoders.store import FeatureStore
from audioscore.encoders.stored_features import StoredFeatures
from audioscore.errors import DataError, shorten
from audioscore.evaluation.controls import measured_controls
from audioscore.evaluation.evaluate import evaluate
from audioscore.evaluation.noise_ceiling import ratings_of
from audioscore.evaluation.predictions import SPLITS, Prediction, align_runs, read_predictions, write_predictions
from audioscore.evaluation.winner import choose_winner
from audioscore.files import read_json, write_json
from audioscore.scoring.checkpoint import load_network, read_description
from audioscore.scoring.network import raw_outputs
from audioscore.scoring.scorer import BRANCHES, Description
from audioscore.scoring.trained_plan import Outcome, OutOfFold, TrainedPlan, read_trained

if TYPE_CHECKING:
    from audioscore.config import EvaluationSection

log = logging.getLogger(__name__)

ONE_FIT = "out of fold, by models of one seed"
PREDICTIONS, EVALUATION = "predictions.csv", "evaluation.json"


@dataclass(frozen=True)
class Evaluation:
    """All predictions of an evaluation, and the metrics computed from them."""

    predictions: list[Prediction]
    figures: dict[str, Any]


def evaluate_plans(
    plan_folders: Sequence[Path], index_folder: Path, features_folder: Path, target: Path, settings: "EvaluationSection"
) -> Evaluation:
    """Predict every clip with every seed of every plan, and write predictions.csv and evaluation.json.

    Raises: DataError where a plan is given twice or the test split has no scored clip.
    """
    plans = [read_trained(folder) for folder in plan_folders]
    if len({trained.plan for trained in plans}) != len(plans):
        raise DataError(f"Plans: some are given twice: {[trained.plan for trained in plans]}. Give each plan once.")
    held_out = {trained.plan: OutOfFold.read(trained.folder) for trained in plans}
    extraction = read_extraction(features_folder)
    store = FeatureStore(extraction.store)
    splits = {split: read_split(index_folder, split) for split in SPLITS}
    if not splits["test"]:
        raise DataError("test split: no scored clips. Add singers, or enlarge split.test.")
    predictions = [row for trained in plans for row in _predict_plan(trained, splits, extraction, store)]
    representative: dict[str, int] = {trained.plan: trained.representative for trained in plans}
    runs = align_runs(predictions, representative)
    try:
        winner = choose_winner(runs, representative, [plan for plan, found in held_out.items() if found is not None])
    except DataError as error:
        log.info("%s", error)
        winner = None
    figures = evaluate(
        predictions,
        measured_controls(splits["test"]),
        representative,
        ratings=ratings_of(splits["test"]),
        reference=None if winner is None else winner.plan,
        **settings.bootstrap,
    )
    figures["winner"] = None if winner is None else winner.as_dict()
    for trained in plans:
        figures["plans"][trained.plan]["speaker_probe"] = singer_probe_result(trained.chosen)
        if held_out[trained.plan] is not None:
            spread = figures["plans"][trained.plan]["seed_spread"]
            spread["val_spearman"] = {**spread["val_spearman"], "seeds": 1, "sd": None, "no_interval": ONE_FIT}
        init = str(read_description(trained.scorer_folder()).training.get("init", "scratch"))
        if init != "scratch":
            figures["warnings"].append(
                f"{trained.plan}: its training started from another model ({init.removeprefix('warm: ')}), which may "
                f"have been trained on clips of this run: its held-out figures are optimistic."
            )
    write_predictions(target / PREDICTIONS, predictions)
    write_json(target / EVALUATION, figures)
    return Evaluation(predictions, figures)


def read_evaluation(folder: Path) -> Evaluation:
    """Read what `evaluate_plans` wrote."""
    return Evaluation(read_predictions(folder / PREDICTIONS), read_json(folder / EVALUATION))


def _predict_plan(
    trained: TrainedPlan, splits: Mapping[str, Sequence[Clip]], extraction: Extraction, store: FeatureStore
) -> list[Prediction]:
    """Predict all clips with every seed of a plan."""
    layer, kinds = read_description(trained.scorer_folder()).prefix_layer, BRANCHES[trained.plan]
    features = {
        split: StoredFeatures(clips, extraction.encoders, kinds, store, prefix_layer=layer)
        for split, clips in splits.items()
    }
    return [row for seed in trained.validation for row in predict_clips(trained, seed, splits, features)]


def predict_clips(
    trained: TrainedPlan, seed: int, splits: Mapping[str, Sequence[Clip]], features: Mapping[str, Sequence[Features]]
) -> list[Prediction]:
    """Predict all clips of all splits with the scorer of one seed.

    Clips that a cross-validated plan's scorers were trained on have the output of the model that was trained without
    their singer.
    """
    folder = trained.scorer_folder(seed)
    description = read_description(folder)
    device = choose_device("auto")
    network = load_network(folder, description, device)
    held_out = OutOfFold.read(trained.folder)
    rows: list[Prediction] = []
    for split, clips in splits.items():
        if held_out is None or split == "test":
            raw = raw_outputs(network, features[split], device)
        else:
            if missing := [clip.audio_file for clip in clips if str(clip.sha256) not in held_out.raw]:
                raise DataError(
                    f"{trained.plan}: {len(missing)} of {len(clips)} {split} clips have no out-of-fold output "
                    f"({shorten(missing)}). Train again with these splits."
                )
            raw = np.array([held_out.raw[str(clip.sha256)] for clip in clips]) + trained.outcomes[seed].centre
        rows += prediction_rows(trained.plan, description, [split] * len(clips), clips, raw)
    return rows


def prediction_rows(
    plan: str, description: Description, splits: Sequence[str], clips: Sequence[Clip], raw: np.ndarray[Any, Any]
) -> list[Prediction]:
    """Calibrate a scorer's raw outputs; return one row for each clip. Shape: splits, clips and raw [N]."""
    predicted = description.calibration.apply(raw)
    low, high = description.calibration.interval(predicted, [clip.source for clip in clips])
    return [
        Prediction(
            sha256=str(clip.sha256),
            audio_file=clip.audio_file,
            split=split,
            singer_id=clip.singer_id,
            song_id=clip.song_id,
            source=clip.source,
            score=clip.score,
            plan=plan,
            seed=description.seed,
            raw=float(raw[index]),
            predicted=float(predicted[index]),
            lo=float(low[index]),
            hi=float(high[index]),
        )
        for index, (clip, split) in enumerate(zip(clips, splits, strict=True))
    ]


def singer_probe_result(outcome: Outcome) -> dict[str, float] | None:
    """Return the singer probe's accuracy before and after training, with chance; None with too few known singers."""
    return None if outcome.speakers is None else {**asdict(outcome.speakers), "chance": 1 / outcome.speakers.singers}
