from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from audioscore.tracking.provenance import COMPARED_WITH
from audioscore.tracking.registry import promote, rollback
from audioscore.tracking.runs import SCORER, delete_unregistered_runs, find_prior_registration

RUN, DIGEST = "20260101-000000-abcd", "d751713988987e9331980363e24189ce.dir"


@pytest.fixture
def experiment(client: MlflowClient) -> str:
    return str(client.get_experiment_by_name("singers").experiment_id)


def attempt(client: MlflowClient, experiment: str, run_id: str = RUN, digest: str = DIGEST) -> str:
    """Create the two MLflow runs of an attempt, of a plan and its parent; return the plan's."""
    parent = client.create_run(experiment, tags={"run_id": run_id}).info.run_id
    tags = {"run_id": run_id, "plan": "hybrid", "mlflow.parentRunId": parent, SCORER: digest}
    return str(client.create_run(experiment, tags=tags).info.run_id)


def registered(client: MlflowClient, run: str, folder: Path, **tags: str) -> int:
    return int(client.create_model_version("singers", folder.as_uri(), run_id=run, tags=tags).version)


def test_a_first_attempt_is_compared_with_the_current_champion(client: MlflowClient, experiment: str) -> None:
    found: Any = find_prior_registration(client, experiment, "singers", RUN, DIGEST)
    assert (found.version, found.promoted, found.champion) == (None, False, None)
    promote(client, "singers", 2, expected=None)
    found = find_prior_registration(client, experiment, "singers", RUN, DIGEST)
    assert found.champion.version == 2


@pytest.mark.parametrize(("run_id", "digest"), [(RUN, "other.dir"), ("20260101-000000-ffff", DIGEST)])
def test_other_runs_and_other_scorers_are_ignored(
    client: MlflowClient, experiment: str, tmp_path: Path, run_id: str, digest: str
) -> None:
    registered(client, attempt(client, experiment, run_id, digest), tmp_path)
    assert find_prior_registration(client, experiment, "singers", RUN, DIGEST).version is None


def test_a_version_without_tags_is_found(client: MlflowClient, experiment: str, tmp_path: Path) -> None:
    number = registered(client, attempt(client, experiment), tmp_path)
    registered(client, attempt(client, experiment), tmp_path)  # as two attempts of an older version did
    promote(client, "singers", 1, expected=None)
    found: Any = find_prior_registration(client, experiment, "singers", RUN, DIGEST)
    assert (found.version.version, found.promoted) == (number, False)
    assert found.champion.version == 1


@pytest.mark.parametrize("interrupted", ["untagged", "tagged", "rolled back"])
def test_a_promoted_version_is_compared_with_the_one_it_replaced(
    client: MlflowClient, experiment: str, tmp_path: Path, interrupted: str
) -> None:
    promote(client, "singers", 1, expected=None)
    number = registered(client, attempt(client, experiment), tmp_path, **{COMPARED_WITH: "v1", "promoted": "false"})
    promote(client, "singers", number, expected=1)
    if interrupted != "untagged":
        client.set_model_version_tag("singers", str(number), "promoted", "true")
    if interrupted == "rolled back":
        rollback(client, "singers")
    found: Any = find_prior_registration(client, experiment, "singers", RUN, DIGEST)
    assert (found.version.version, found.promoted, found.champion.version) == (number, True, 1)


def test_only_runs_without_a_version_are_deleted(client: MlflowClient, experiment: str, tmp_path: Path) -> None:
    kept = attempt(client, experiment, digest="other.dir")
    registered(client, kept, tmp_path)
    other_run = attempt(client, experiment, "20260101-000000-ffff")
    attempt(client, experiment)
    client.create_run(experiment, tags={"run_id": RUN})  # interrupted before the first plan
    assert delete_unregistered_runs(client, experiment, "singers", RUN) == 3
    left = {run.info.run_id for run in client.search_runs([experiment])}
    assert {kept, other_run} < left
    assert len(left) == 4
    assert delete_unregistered_runs(client, experiment, "singers", RUN) == 0
