"""MLflow runs: one for the pipeline run, one below it for each plan."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import audioscore
from audioscore.data.versions.storage import ADDRESS, DATA_FOLDER
from audioscore.scoring.trained_plan import TrainedPlan
from audioscore.tracking.provenance import COMPARED_WITH, NO_CHAMPION
from audioscore.tracking.registry import CHAMPION, SCORER_ARTIFACT, ModelVersion, version_by_alias, version_of

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


# What a registered scorer needs to run, pinned to the versions that made it.
REQUIREMENTS = (
    "addict", "av", "mlflow", "modelscope", "muq", "numba", "numpy", "pandas", "peft", "pydantic", "pyyaml",
    "safetensors", "scipy", "soxr", "torch", "torchaudio", "torchvision", "transformers",
)  # fmt: skip


def log_scorer(folder: Path, run_id: str, name: str) -> int:
    """Log a scorer folder to a run as a pyfunc model, and register it; returns its version's number.

    In: a table with a column `audio` of file bytes. Out: one row each, see `tracking/pyfunc_scorer.py`.
    """
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    outputs = [ColSpec(DataType.double, part, required=False) for part in ("score", "lo", "hi", "raw", "seconds")]
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "audio")]),
        outputs=Schema([*outputs, ColSpec(DataType.string, "error", required=False)]),
    )
    package = Path(audioscore.__file__).parent
    with mlflow.start_run(run_id=run_id), warnings.catch_warnings():
        # An example would be scored to guess a signature, which is given here.
        warnings.filterwarnings("ignore", message="(?s).*input example was not provided", category=UserWarning)
        logged = mlflow.pyfunc.log_model(
            name="scorer",
            python_model=str(package / "tracking" / "pyfunc_scorer.py"),
            artifacts={SCORER_ARTIFACT: str(folder)},
            code_paths=[str(package)],
            pip_requirements=pinned_requirements(),
            signature=signature,
            registered_model_name=name,
        )
    return int(logged.registered_model_version)


def pinned_requirements() -> list[str]:
    """`name==version` of what a registered scorer imports, as installed here."""
    pinned = []
    for name in REQUIREMENTS:
        try:
            pinned.append(f"{name}=={version(name).split('+')[0]}")
        except PackageNotFoundError:
            continue  # a slimmer environment: what is not installed was not used
    return pinned


RUN_ID = "run_id"  # tag of a pipeline run, at its MLflow runs
SCORER = "scorer_digest"  # tag of a plan's MLflow run: the digest of the scorer folder that it may register


@dataclass(frozen=True)
class Standing:
    """What a try finds.

    `version` is what an earlier try of this run registered of this very scorer, if any; `promoted` whether that was
    made champion then. `champion` is whom to compare with: today's, or, after a promotion, the one that was beaten.
    """

    version: ModelVersion | None
    promoted: bool
    champion: ModelVersion | None


def look(client: "MlflowClient", experiment: str, name: str, run_id: str, scorer_digest: str) -> Standing:
    """Where a registration stands: nothing was done, a version is there, or it is champion or was."""
    champion = version_by_alias(client, name, CHAMPION)
    version = _registered(client, experiment, name, run_id, scorer_digest)
    if version is None:
        return Standing(None, False, champion)
    promoted = version.tags.get("promoted") == "true" or (champion is not None and champion.version == version.version)
    return Standing(version, promoted, _beaten(client, version) if promoted else champion)


def forget_runs(client: "MlflowClient", experiment: str, name: str, run_id: str) -> int:
    """Delete the MLflow runs of tries of this run that registered nothing, so that none is listed twice. How many."""
    found = client.search_runs([experiment], f"tags.{RUN_ID} = '{run_id}'")
    try_of = {run.info.run_id: run.data.tags.get("mlflow.parentRunId", run.info.run_id) for run in found}
    versions = client.search_model_versions(f"name = '{name}'")
    registered = {try_of[one.run_id] for one in versions if one.run_id in try_of}
    gone = [number for number, tried in try_of.items() if tried not in registered]
    for number in gone:
        client.delete_run(number)
    return len(gone)


def _registered(
    client: "MlflowClient", experiment: str, name: str, run_id: str, scorer_digest: str
) -> ModelVersion | None:
    """The version whose MLflow run is of this run and this scorer: MLflow notes the run as it makes the version."""
    wanted = f"tags.{RUN_ID} = '{run_id}' and tags.{SCORER} = '{scorer_digest}'"
    runs = {run.info.run_id for run in client.search_runs([experiment], wanted)}
    found = [int(one.version) for one in client.search_model_versions(f"name = '{name}'") if one.run_id in runs]
    return version_of(client, name, min(found)) if found else None


def _beaten(client: "MlflowClient", version: ModelVersion) -> ModelVersion | None:
    """Whom a version was compared with before it was promoted, as its tag says."""
    said = version.tags.get(COMPARED_WITH, NO_CHAMPION)
    return None if said == NO_CHAMPION else version_of(client, version.name, int(said.removeprefix("v")))
