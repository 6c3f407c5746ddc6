import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from audioscore.config import parse_config
from audioscore.files import write_json
from audioscore.scoring.trained_plan import Outcome, TrainedPlan
from audioscore.tracking import register
from audioscore.tracking.connection import connect
from audioscore.tracking.provenance import Probed, Provenance
from audioscore.tracking.register import RunFolders


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
    (tmp_path / "seed-2").mkdir()
    plans = [TrainedPlan(plan, tmp_path, 2, {2: outcome}) for plan in ("baseline", "hybrid")]
    evaluation: Any = SimpleNamespace(figures={"plans": {"baseline": {}, "hybrid": {}}})
    winner = register._log_runs(client, experiment, plans, evaluation, config, provenance, "hybrid", [], data)
    runs = client.search_runs([experiment], "tags.run_id = 'run-7'")
    parent = client.get_run(winner).data.tags["mlflow.parentRunId"]
    assert {run.info.run_name for run in runs} == {"run-7", "baseline", "hybrid"}
    assert [run.info.run_id for run in runs if "plan" not in run.data.tags] == [parent]
    revisions = {"data_digest": digest, "dvc_rev": "5fd2" * 10, "code_rev": "12ab"}
    for run in runs:
        assert {name: run.data.tags[name] for name in revisions} == revisions
        (logged,) = run.inputs.dataset_inputs
        assert (logged.dataset.name, logged.dataset.digest) == ("songs/data", digest)
        assert json.loads(logged.dataset.source) == {"uri": "git+https://host/team/songs@v3"}
        expected = {"clips": 40, "train": 30, "data_revision": "5fd2" * 10, "code_revision": "12ab"}
        assert json.loads(logged.dataset.profile) == expected


def test_the_probes_of_the_winner(tmp_path: Path) -> None:
    assert register._probed(tmp_path, "hybrid", ["clipping"]) is None
    degradations = {"clipping": {"flagged": True}, "low_pass": {"flagged": True}, "detune_50": {"flagged": False}}
    document = {"reason": None, "plans": {"hybrid": {"degradations": degradations}}}
    write_json(tmp_path / "probes.json", document)
    found = register._probed(tmp_path, "hybrid", ["clipping", "detune_50"])
    assert found == Probed(("clipping", "low_pass"), ("clipping",))
    write_json(tmp_path / "probes.json", {**document, "reason": "turned off"})
    assert register._probed(tmp_path, "hybrid", ["clipping"]) is None
