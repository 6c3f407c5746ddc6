"""The last step, broken off at its worst moments and tried again on what a real run left, in a registry of its own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from audioscore.config import Config, parse_config
from audioscore.files import read_json
from audioscore.tracking import register
from audioscore.tracking.connection import connect
from audioscore.tracking.provenance import Provenance
from audioscore.tracking.register import RunFolders, register_winner
from audioscore.tracking.registry import promote as promote_now
from audioscore.tracking.registry import read_changes

MODEL = "singers"


class Killed(BaseException):
    """Ends a step as a kill does."""


@pytest.fixture
def settings(first_run: Any, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The run's; and a gate that lets its winner through, whatever so few clips say."""
    judge = register.judge
    monkeypatch.setattr(register, "judge", lambda *given: replace(judge(*given), promoted=True, reason="good"))
    return parse_config(read_json(first_run.folder / "config.json"))


def register_once(first_run: Any, settings: Config, tmp_path: Path) -> dict[str, Any]:
    steps = {name: first_run.step(name) for name in ("fetch-data", "validate-data", "sort-data", "extract-features")}
    folders = RunFolders(
        data=steps["fetch-data"] / "data",
        validated=steps["validate-data"] / "validated",
        index=steps["sort-data"] / "index",
        features=steps["extract-features"] / "features",
        plans=tuple(sorted((first_run.folder / "steps").rglob("train-scorer/model"))),
        evaluation=first_run.step("evaluate-scorers") / "evaluation",
    )
    provenance = Provenance("run-1", first_run.result["data"]["digest"], None, "12ab")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    return register_winner(folders, tmp_path / "outcome", settings, provenance, uri, tmp_path / "artifacts")


@pytest.mark.parametrize("moment", ["before registering", "before the tags", "in the promotion", "after it"])
def test_a_step_that_is_tried_again_registers_once_and_ends_what_was_begun(
    moment: str, first_run: Any, settings: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise Killed

    def promote_and_die(*positional: Any, **named: Any) -> None:
        promote_now(*positional, **named)
        raise Killed

    where = {
        "before registering": ("log_scorer", die),
        "before the tags": ("_settle", die),
        "in the promotion": ("promote", promote_and_die),
        "after it": ("describe_version", die),
    }[moment]
    with monkeypatch.context() as patch:
        patch.setattr(register, *where)
        with pytest.raises(Killed):
            register_once(first_run, settings, tmp_path)
    result = register_once(first_run, settings, tmp_path)
    assert result["decision"]["promoted"], result["decision"]
    assert result["registered"] == {"name": MODEL, "version": 1, "aliases": ["champion"]}
    client = connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (version,) = client.search_model_versions(f"name = '{MODEL}'")
    tags = client.get_model_version(MODEL, "1").tags
    assert (tags["promoted"], tags["compared_with"], tags["run_id"]) == ("true", "none", "run-1")
    assert [change.champion for change in read_changes(client, MODEL)] == [1]
    experiment = client.get_experiment_by_name(MODEL).experiment_id
    runs = client.search_runs([experiment], "tags.run_id = 'run-1'")
    assert len(runs) == 1 + len(settings.training.plans)
    assert version.run_id in {run.info.run_id for run in runs}
    assert "result.json" in {entry.path for entry in client.list_artifacts(version.run_id)}
