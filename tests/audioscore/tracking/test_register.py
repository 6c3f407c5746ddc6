import json
from pathlib import Path
from typing import Any

from audioscore.config import parse_config
from audioscore.files import write_json
from audioscore.scoring.trained_plan import Outcome, TrainedPlan
from audioscore.tracking import runs
from audioscore.tracking.connection import connect
from audioscore.tracking.decide import robustness_outcome
from audioscore.tracking.provenance import Provenance, RobustnessOutcome
from audioscore.tracking.register import dataset_of


def test_every_run_of_a_training_names_its_data_and_its_code(tracking_uri: str, tmp_path: Path) -> None:
    client = connect(tracking_uri)
    experiment = client.get_experiment_by_name("singers").experiment_id
    encoders = {"muq": {"source": "m"}, "campplus": {"source": "c"}}
    config = parse_config({"encoders": encoders, "data": {"uri": "git+https://host/team/songs@v3"}})
    digest = "d751713988987e9331980363e24189ce.dir"
    provenance = Provenance("run-7", digest, "5fd2" * 10, "12ab")
    data = dataset_of(tmp_path, config, provenance, {"clips": 40, "train": 30})
    outcome = Outcome(0.6, 0.6, [], 321, ("b",))
    (tmp_path / "seed-2").mkdir()
    plans = [TrainedPlan(plan, tmp_path, 2, {2: outcome}) for plan in ("baseline", "hybrid")]
    figures: dict[str, Any] = {"baseline": {}, "hybrid": {}}
    winner = runs.log_run(client, experiment, plans, figures, config, provenance, "hybrid", [], data)
    logged_runs = client.search_runs([experiment], "tags.run_id = 'run-7'")
    parent = client.get_run(winner).data.tags["mlflow.parentRunId"]
    assert {run.info.run_name for run in logged_runs} == {"run-7", "baseline", "hybrid"}
    assert [run.info.run_id for run in logged_runs if "plan" not in run.data.tags] == [parent]
    revisions = {"data_digest": digest, "dvc_rev": "5fd2" * 10, "code_rev": "12ab"}
    for run in logged_runs:
        assert {name: run.data.tags[name] for name in revisions} == revisions
        (logged,) = run.inputs.dataset_inputs
        assert (logged.dataset.name, logged.dataset.digest) == ("songs/data", digest)
        assert json.loads(logged.dataset.source) == {"uri": "git+https://host/team/songs@v3"}
        expected = {"clips": 40, "train": 30, "data_revision": "5fd2" * 10, "code_revision": "12ab"}
        assert json.loads(logged.dataset.profile) == expected


def test_robustness_outcome_of_the_winner(tmp_path: Path) -> None:
    assert robustness_outcome(tmp_path, "hybrid", ["clipping"]) is None
    degradations = {"clipping": {"flagged": True}, "low_pass": {"flagged": True}, "detune_50": {"flagged": False}}
    document = {"reason": None, "plans": {"hybrid": {"degradations": degradations}}}
    write_json(tmp_path / "probes.json", document)
    found = robustness_outcome(tmp_path, "hybrid", ["clipping", "detune_50"])
    assert found == RobustnessOutcome(("clipping", "low_pass"), ("clipping",))
    write_json(tmp_path / "probes.json", {**document, "reason": "turned off"})
    assert robustness_outcome(tmp_path, "hybrid", ["clipping"]) is None
