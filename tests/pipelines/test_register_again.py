"""The registration step, interrupted and repeated on the outputs of a real run, in a registry of its own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from audioscore.config import Config, parse_config
from audioscore.files import read_json
from audioscore.tracking import decide, promotion, register
from audioscore.tracking.connection import connect
from audioscore.tracking.decide import RunFolders
from audioscore.tracking.provenance import Provenance
from audioscore.tracking.register import register_winner
from audioscore.tracking.registry import promote as promote_now
from audioscore.tracking.registry import read_changes

MODEL = "singers"


class Killed(BaseException):
    """Ends a step as a kill does."""


@pytest.fixture
def settings(first_run: Any, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Return the run's settings, with a gate that always promotes: the corpus has too few clips to pass it."""
    gate = decide.decide_on_unseen
    monkeypatch.setattr(decide, "decide_on_unseen", lambda *args: replace(gate(*args), promoted=True, reason="good"))
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
def test_a_repeated_step_registers_once_and_completes_the_promotion(
    moment: str, first_run: Any, settings: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise Killed

    def promote_and_die(*positional: Any, **named: Any) -> None:
        promote_now(*positional, **named)
        raise Killed

    module, name, replacement = {
        "before registering": (register, "log_scorer", die),
        "before the tags": (register, "tag_and_promote", die),
        "in the promotion": (promotion, "promote", promote_and_die),
        "after it": (register, "describe_version", die),
    }[moment]
    with monkeypatch.context() as patch:
        patch.setattr(module, name, replacement)
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
