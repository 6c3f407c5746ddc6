import json
from pathlib import Path

import pytest

from audioscore.scoring.trained_plan import Outcome, TrainedPlan
from audioscore.tracking.connection import connect
from audioscore.tracking.runs import PARAM_CHARACTERS, DatasetInput, flatten, log_dataset, log_plan

DATA = DatasetInput(
    "songs", "d751713988987e9331980363e24189ce.dir", "s3://corpus/songs", {"clips": 12, "data_revision": None}
)
CURVE = [
    {"epoch": epoch, "train_loss": 1.0 / (epoch + 1), "val_spearman": 0.1 * epoch, "clips_per_second": 9.5}
    for epoch in range(3)
]
FIGURES = {
    "seed": 2,
    "spearman": {"value": 0.5, "lo": 0.25, "hi": 0.75},
    "mae": {"value": 4.0, "lo": None, "hi": None},
    "kendall": {"value": None, "lo": None, "hi": None},
    "bands": {"80-85": {"value": 1.0}},
}


def test_sections_become_dotted_keys() -> None:
    nested = {"a": {"b": {"c": 1}, "d": None}, "e": [{"f": 2}], "g": {}}
    assert flatten(nested) == {"a.b.c": 1, "a.d": None, "e": [{"f": 2}]}


def test_a_plan_is_logged_with_figures_curves_and_files(tracking_uri: str, tmp_path: Path) -> None:
    client = connect(tracking_uri)
    experiment = client.get_experiment_by_name("singers").experiment_id
    parent = client.create_run(experiment).info.run_id
    names = ("regressor.weight", "b")
    outcomes = {1: Outcome(0.4, 0.35, CURVE, 321, names), 2: Outcome(0.6, 0.55, CURVE[:2], 322, names)}
    trained = TrainedPlan("hybrid", tmp_path, 2, outcomes)
    file = tmp_path / "predictions.csv"
    file.write_text("a table", encoding="utf-8")
    parameters = {"training.epochs": 3, "data.column_map": "x" * (PARAM_CHARACTERS + 1)}
    run_id = log_plan(client, experiment, parent, trained, FIGURES, parameters, {"code_rev": "12ab"}, [file], DATA)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "hybrid"
    tags = run.data.tags
    assert (tags["mlflow.parentRunId"], tags["plan"], tags["code_rev"]) == (parent, "hybrid", "12ab")
    assert tags["trainable"] == "regressor.weight, b"
    params = run.data.params
    assert (params["plan"], params["seed"], params["trained_parameters"]) == ("hybrid", "2", "322")
    assert (params["training.epochs"], len(params["data.column_map"])) == ("3", PARAM_CHARACTERS)
    test_figures = {name: value for name, value in run.data.metrics.items() if name.startswith("test_")}
    assert test_figures == {"test_spearman": 0.5, "test_spearman_lo": 0.25, "test_spearman_hi": 0.75, "test_mae": 4.0}
    assert run.data.metrics["val_spearman_seed_1"] == 0.4
    history = client.get_metric_history(run_id, "curve_train_loss_seed_1")
    assert [(point.step, point.value) for point in history] == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
    assert len(client.get_metric_history(run_id, "curve_val_spearman_seed_2")) == 2
    speeds = client.get_metric_history(run_id, "curve_clips_per_second_seed_1")
    assert [(point.step, point.value) for point in speeds] == [(epoch, 9.5) for epoch in range(3)]
    assert [entry.path for entry in client.list_artifacts(run_id)] == ["predictions.csv"]
    assert [logged.dataset.digest for logged in run.inputs.dataset_inputs] == [DATA.digest]


def test_a_dataset_comes_back_as_it_was_logged(tracking_uri: str) -> None:
    client = connect(tracking_uri)
    run_id = client.create_run(client.get_experiment_by_name("singers").experiment_id).info.run_id
    log_dataset(client, run_id, DATA)
    (logged,) = client.get_run(run_id).inputs.dataset_inputs
    assert (logged.dataset.name, logged.dataset.digest) == ("songs", "d751713988987e9331980363e24189ce.dir")
    assert json.loads(logged.dataset.source) == {"uri": "s3://corpus/songs"}
    assert json.loads(logged.dataset.profile) == {"clips": 12, "data_revision": None}
    assert {tag.key: tag.value for tag in logged.tags} == {"mlflow.data.context": "training"}
