"""MLflow runs: one for the pipeline run, one below it for each plan."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from audioscore.data.versions.storage import ADDRESS, DATA_FOLDER
from audioscore.scoring.trained_plan import TrainedPlan

if TYPE_CHECKING:
    from mlflow import MlflowClient

METRIC_FIGURES = ("value", "lo", "hi")
PARAM_CHARACTERS = 6000  # MLflow's own limit for one value
TAG_CHARACTERS = 5000  # MLflow's own limit for one tag
CURVES = ("train_loss", "val_spearman", "clips_per_second")
DIGEST_CHARACTERS = 36  # MLflow's own limit; exactly a DVC `<md5>.dir`


@dataclass(frozen=True)
class DatasetInput:
    """The data a run was made of, as MLflow lists it: the folder's name, its digest, and where it was fetched from."""

    name: str
    digest: str
    uri: str
    profile: Mapping[str, Any]  # what is worth seeing beside it: counts, revisions


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys.

    >>> flatten({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{key}."))
        else:
            flat[key] = value
    return flat


def dataset_name(uri: str) -> str:
    """What a data URI's folder is called; a git repository's data folder by the repository's name and its own.

    >>> dataset_name("/srv/songs/data/"), dataset_name("s3://corpus/v3/ktv"), dataset_name("s3://corpus")
    ('data', 'ktv', 'corpus')
    >>> dataset_name("git+https://me@host/team/songs.git@v1#corpus"), dataset_name("git@host:team/songs@v1")
    ('songs/corpus', 'songs/data')
    """
    whole, _, folder = uri.removeprefix("git+").partition("#")
    path, at, _ = ADDRESS.sub("", whole).partition("@")
    if at and not uri.startswith("s3://") and not Path(uri).is_dir():
        return f"{PurePosixPath(path).name.removesuffix('.git')}/{folder or DATA_FOLDER}"
    return whole.rstrip("/").rpartition("/")[2]


def log_dataset(client: "MlflowClient", run_id: str, data: DatasetInput) -> None:
    """Give a run its data as MLflow's dataset input, context `training`."""
    from mlflow.entities import Dataset, InputTag
    from mlflow.entities import DatasetInput as Logged

    dataset = Dataset(
        name=data.name,
        digest=data.digest[:DIGEST_CHARACTERS],
        source_type="audioscore",
        source=json.dumps({"uri": data.uri}),
        profile=json.dumps(dict(data.profile)),
    )
    client.log_inputs(run_id, datasets=[Logged(dataset, [InputTag("mlflow.data.context", "training")])])


def log_plan(
    client: "MlflowClient",
    experiment_id: str,
    parent: str,
    trained: TrainedPlan,
    figures: Mapping[str, Any],
    parameters: Mapping[str, Any],
    tags: Mapping[str, str],
    artifacts: Sequence[Path],
    data: DatasetInput,
) -> str:
    """Log one plan: its data, parameters, test metrics, a curve a seed, and its files. Returns the run's id."""
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.utils.time import get_current_time_millis

    run = client.create_run(
        experiment_id, run_name=trained.plan, tags={**tags, "mlflow.parentRunId": parent, "plan": trained.plan}
    )
    run_id = str(run.info.run_id)
    log_dataset(client, run_id, data)
    now = get_current_time_millis()
    values = {
        **parameters,
        "plan": trained.plan,
        "trained_parameters": trained.chosen.parameters,
        "seed": trained.representative,
    }
    metrics = [Metric(name, value, now, 0) for name, value in _test_metrics(figures).items()]
    for seed, figure in trained.validation.items():
        metrics.append(Metric(f"val_spearman_seed_{seed}", figure, now, 0))
    for seed, curve in trained.curves.items():
        for entry in curve:
            step = int(entry["epoch"])
            metrics += [Metric(f"curve_{name}_seed_{seed}", entry[name], now, step) for name in CURVES]
    client.log_batch(run_id, params=[Param(name, str(value)[:PARAM_CHARACTERS]) for name, value in values.items()])
    for start in range(0, len(metrics), 1000):  # MLflow's limit for one batch
        client.log_batch(run_id, metrics=metrics[start : start + 1000])
    client.log_batch(run_id, tags=[RunTag("trainable", ", ".join(trained.chosen.trainable)[:TAG_CHARACTERS])])
    for path in artifacts:
        client.log_artifact(run_id, str(path))
    client.set_terminated(run_id)
    return run_id


def _test_metrics(figures: Mapping[str, Any]) -> dict[str, float]:
    """`test_spearman`, `test_spearman_lo`, … for every estimate that is defined."""
    metrics = {}
    for name, figure in figures.items():
        if isinstance(figure, Mapping) and set(METRIC_FIGURES) <= set(figure):
            for part in METRIC_FIGURES:
                if figure[part] is not None:
                    metrics[f"test_{name}" + ("" if part == "value" else f"_{part}")] = float(figure[part])
    return metrics
