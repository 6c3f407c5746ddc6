import json
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from audioscore.config import parse_config
from audioscore.scoring.trained import Outcome, TrainedPlan
from audioscore.tracking import register
from audioscore.tracking.connection import connect
from audioscore.tracking.register import Provenance, RunFolders, pinned_requirements


def test_a_registered_scorer_names_what_it_needs_as_installed() -> None:
    pinned = dict(line.split("==") for line in pinned_requirements())
    assert pinned["torch"] == version("torch").split("+")[0]
    assert {"mlflow", "muq", "peft", "safetensors", "transformers", "av"} <= set(pinned)
    assert "great-expectations" not in pinned
    assert list(pinned) == sorted(pinned)


def test_what_is_not_installed_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(register, "REQUIREMENTS", ("numpy", "no-such-package"))
    assert pinned_requirements() == [f"numpy=={version('numpy')}"]


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        ({"value": 0.5, "lo": 0.25, "hi": 0.75}, "0.500 (0.250 to 0.750)"),
        ({"value": 0.5, "lo": None, "hi": None}, "undefined"),
        ({"value": None, "lo": None, "hi": None}, "undefined"),
    ],
)
def test_an_interval_in_words(figure: dict[str, float | None], text: str) -> None:
    assert register._interval_text(figure) == text


def test_every_run_of_a_training_names_its_data_and_its_code(tracking_uri: str, tmp_path: Path) -> None:
    client = connect(tracking_uri)
    experiment = client.get_experiment_by_name("singers").experiment_id
    encoders = {"muq": {"source": "m"}, "campplus": {"source": "c"}}
    config = parse_config({"encoders": encoders, "data": {"uri": "git+https://host/team/songs@v3"}})
    digest = "d751713988987e9331980363e24189ce.dir"
    provenance = Provenance("run-7", digest, "5fd2" * 10, "12ab")
    folders = RunFolders(*[tmp_path] * 4, plans=(), evaluation=tmp_path)
    data = register._dataset(folders, config, provenance, {"clips": 40, "train": 30})
    outcome = Outcome(0.6, 0.6, [], 321, ("b",))
    plans = [TrainedPlan(plan, tmp_path, 2, {2: outcome}) for plan in ("baseline", "hybrid")]
    evaluation: Any = SimpleNamespace(figures={"plans": {"baseline": {}, "hybrid": {}}})
    winner = register._log_runs(client, experiment, plans, evaluation, config, provenance, "hybrid", [], data)
    runs = client.search_runs([experiment], "tags.run_id = 'run-7'")
    parent = client.get_run(winner).data.tags["mlflow.parentRunId"]
    assert {run.info.run_name for run in runs} == {"run-7", "baseline", "hybrid"}
    assert [run.info.run_id for run in runs if "plan" not in run.data.tags] == [parent]
    for run in runs:
        assert {name: run.data.tags[name] for name in ("data_digest", "dvc_rev", "code_rev")} == {
            "data_digest": digest,
            "dvc_rev": "5fd2" * 10,
            "code_rev": "12ab",
        }
        (logged,) = run.inputs.dataset_inputs
        assert (logged.dataset.name, logged.dataset.digest) == ("songs/data", digest)
        assert json.loads(logged.dataset.source) == {"uri": "git+https://host/team/songs@v3"}
        expected = {"clips": 40, "train": 30, "data_revision": "5fd2" * 10, "code_revision": "12ab"}
        assert json.loads(logged.dataset.profile) == expected
        assert {tag.key: tag.value for tag in logged.tags} == {"mlflow.data.context": "training"}
