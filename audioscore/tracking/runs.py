"""MLflow runs: a parent for the pipeline run, a child for each plan, and the scorer as a registered model."""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import audioscore
from audioscore.data.versions.revision import folder_digest
from audioscore.data.versions.storage import ADDRESS, DATA_FOLDER
from audioscore.files import path_to_uri
from audioscore.scoring.trained_plan import TrainedPlan
from audioscore.tracking.provenance import COMPARED_WITH, NO_CHAMPION, NO_DVC, Provenance
from audioscore.tracking.registry import CHAMPION, SCORER_ARTIFACT, ModelVersion, version_by_alias, version_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from audioscore.config import Config


METRIC_FIGURES = ("value", "lo", "hi")
CURVES = ("train_loss", "val_spearman", "clips_per_second")
# MLflow's own limits: characters of a parameter, a tag, a dataset's name and its digest (exactly a DVC `<md5>.dir`),
# and entries of one batch.
PARAM_CHARACTERS, TAG_CHARACTERS, NAME_CHARACTERS, DIGEST_CHARACTERS, BATCH_ENTRIES = 6000, 5000, 500, 36, 1000
RUN_ID = "run_id"  # tag: the pipeline run that an MLflow run belongs to
SCORER = "scorer_digest"  # tag of a plan's MLflow run: the digest of the scorer folder that it may register
# Packages that a registered scorer imports, pinned to the versions that made it.
REQUIREMENTS = (
    "addict", "av", "mlflow", "modelscope", "muq", "numba", "numpy", "pandas", "peft", "pydantic", "pyyaml",
    "safetensors", "scipy", "soxr", "torch", "torchaudio", "torchvision", "transformers",
)  # fmt: skip


@dataclass(frozen=True)
class DatasetInput:
    """The data of a run, as MLflow lists it: folder name, digest, source URI, and counts and revisions as `profile`."""

    name: str
    digest: str
    uri: str
    profile: Mapping[str, Any]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested sections to dotted keys.

    >>> flatten({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = prefix + re.sub(r"[^\w./ :-]", "_", name)  # MLflow refuses other characters in names
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{key}."))
        else:
            flat[key] = value
    return flat


def dataset_name(uri: str) -> str:
    """Name a data URI by its folder, and a git repository's data by repository and folder.

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
    """Log the data as the run's dataset input, with MLflow's context `training`."""
    from mlflow.entities import Dataset, InputTag
    from mlflow.entities import DatasetInput as MlflowDatasetInput

    dataset = Dataset(
        name=data.name[:NAME_CHARACTERS],
        digest=data.digest[:DIGEST_CHARACTERS],
        source_type="audioscore",
        source=json.dumps({"uri": data.uri}),
        profile=json.dumps(dict(data.profile)),
    )
    client.log_inputs(run_id, datasets=[MlflowDatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def log_run(
    client: "MlflowClient",
    experiment: str,
    plans: Sequence[TrainedPlan],
    figures: Mapping[str, Any],
    config: "Config",
    provenance: Provenance,
    winner: str,
    files: Sequence[Path],
    data: DatasetInput,
) -> str:
    """Log a parent run for the pipeline run and a child for each plan.

    Args:
        figures: test figures by plan.
        files: artifacts of the parent and of each child.

    Returns:
        The MLflow run id of the winner.
    """
    tags = {
        RUN_ID: provenance.run_id,
        "data_digest": provenance.data_digest,
        "dvc_rev": provenance.data_revision or NO_DVC,
        "code_rev": provenance.code_revision,
    }
    # The steps do not depend on the platform that they run on.
    parameters = flatten(config.model_dump(mode="json", exclude={"containers", "cluster"}))
    parent = str(client.create_run(experiment, run_name=provenance.run_id, tags={**tags, "winner": winner}).info.run_id)
    log_dataset(client, parent, data)
    for name, value in parameters.items():
        client.log_param(parent, name, str(value)[:PARAM_CHARACTERS])
    for path in files:
        client.log_artifact(parent, str(path))
    runs: dict[str, str] = {}
    for trained in plans:
        own = {**tags, SCORER: folder_digest(trained.scorer_folder())}
        runs[trained.plan] = log_plan(
            client, experiment, parent, trained, figures[trained.plan], parameters, own, files, data
        )
    client.set_terminated(parent)
    return runs[winner]


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
    """Log one plan: data, parameters, test metrics, a learning curve for each seed, and files. Returns the run id."""
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
    for start in range(0, len(metrics), BATCH_ENTRIES):
        client.log_batch(run_id, metrics=metrics[start : start + BATCH_ENTRIES])
    client.log_batch(run_id, tags=[RunTag("trainable", ", ".join(trained.chosen.trainable)[:TAG_CHARACTERS])])
    for path in artifacts:
        client.log_artifact(run_id, str(path))
    client.set_terminated(run_id)
    return run_id


def _test_metrics(figures: Mapping[str, Any]) -> dict[str, float]:
    """Return `test_spearman`, `test_spearman_lo`, … for every estimate that is defined."""
    metrics = {}
    for name, figure in figures.items():
        if isinstance(figure, Mapping) and set(METRIC_FIGURES) <= set(figure):
            for part in METRIC_FIGURES:
                if figure[part] is not None:
                    metrics[f"test_{name}" + ("" if part == "value" else f"_{part}")] = float(figure[part])
    return metrics


def log_scorer(folder: Path, run_id: str, name: str) -> int:
    """Log a scorer folder as a pyfunc model and register it. Returns the version number.

    Input of the model: a table with a column `audio` of file bytes; output: see `tracking/pyfunc_scorer.py`.
    """
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    outputs = [ColSpec(DataType.double, part, required=False) for part in ("score", "lo", "hi", "raw", "seconds")]
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "audio")]),
        outputs=Schema([*outputs, *(ColSpec(DataType.string, part, required=False) for part in ("error", "notes"))]),
    )
    package = Path(audioscore.__file__).parent
    with mlflow.start_run(run_id=run_id), warnings.catch_warnings():
        # MLflow would score an example to infer a signature; the signature is given here.
        warnings.filterwarnings("ignore", message="(?s).*input example was not provided", category=UserWarning)
        logged = mlflow.pyfunc.log_model(
            name="scorer",
            python_model=str(package / "tracking" / "pyfunc_scorer.py"),
            artifacts={SCORER_ARTIFACT: path_to_uri(folder)},  # MLflow unquotes paths as well
            code_paths=[str(package)],
            pip_requirements=pinned_requirements(),
            signature=signature,
            registered_model_name=name,
        )
    return int(logged.registered_model_version)


def pinned_requirements() -> list[str]:
    """List `name==version` of the packages that a registered scorer imports, as installed here."""
    pinned = []
    for name in REQUIREMENTS:
        try:
            pinned.append(f"{name}=={version(name).split('+')[0]}")
        except PackageNotFoundError:
            continue  # a smaller environment: a package that is not installed was not used
    return pinned


@dataclass(frozen=True)
class PriorRegistration:
    """What an earlier, interrupted attempt of the same run has registered.

    `version` is the version of this very scorer, if there is one; `promoted` whether it became champion. `champion` is
    the version to compare with: the current one, or, after a promotion, the one that was replaced.
    """

    version: ModelVersion | None
    promoted: bool
    champion: ModelVersion | None


def find_prior_registration(
    client: "MlflowClient", experiment: str, name: str, run_id: str, scorer_digest: str
) -> PriorRegistration:
    """Look in the registry for what an earlier attempt of the pipeline run `run_id` has registered."""
    champion = version_by_alias(client, name, CHAMPION)
    wanted = f"tags.{RUN_ID} = '{run_id}' and tags.{SCORER} = '{scorer_digest}'"
    runs = {run.info.run_id for run in client.search_runs([experiment], wanted)}
    found = [int(one.version) for one in client.search_model_versions(f"name = '{name}'") if one.run_id in runs]
    if not found:
        return PriorRegistration(None, False, champion)
    version = version_of(client, name, min(found))
    if version.tags.get("promoted") != "true" and (champion is None or champion.version != version.version):
        return PriorRegistration(version, False, champion)
    replaced = version.tags.get(COMPARED_WITH, NO_CHAMPION)
    before = None if replaced == NO_CHAMPION else version_of(client, name, int(replaced.removeprefix("v")))
    return PriorRegistration(version, True, before)


def delete_unregistered_runs(client: "MlflowClient", experiment: str, name: str, run_id: str) -> int:
    """Delete MLflow runs of interrupted attempts that registered nothing, so that no run is listed twice.

    Returns:
        The number of deleted runs.
    """
    found = client.search_runs([experiment], f"tags.{RUN_ID} = '{run_id}'")
    parent_of = {run.info.run_id: run.data.tags.get("mlflow.parentRunId", run.info.run_id) for run in found}
    versions = client.search_model_versions(f"name = '{name}'")
    registered = {parent_of[one.run_id] for one in versions if one.run_id in parent_of}
    obsolete = [mlflow_run for mlflow_run, parent in parent_of.items() if parent not in registered]
    for mlflow_run in obsolete:
        client.delete_run(mlflow_run)
    return len(obsolete)
