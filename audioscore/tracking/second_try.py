"""A registration that is tried again: what an earlier try of the same run has registered already.

A step that dies between registering and ending well is tried again, by KFP or by `run --resume`. The second try takes
the version of the first, and ends what that began; a run's other traces of a try that registered nothing go.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from audioscore.tracking.provenance import COMPARED_WITH, NO_CHAMPION
from audioscore.tracking.registry import CHAMPION, ModelVersion, version_by_alias, version_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

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
