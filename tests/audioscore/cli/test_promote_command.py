"""promote, rollback and models --history, on a registry whose scorers are as good as the test says."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from audioscore.cli.app import app
from audioscore.config import SMALL
from audioscore.data.clips import Clip
from audioscore.data.labels import read_labels
from audioscore.data.sort import write_sorted
from audioscore.data.split import assign_splits
from audioscore.data.versioning import folder_digest
from audioscore.errors import GateRefused, ModelError, UsageError
from audioscore.home import home
from audioscore.tracking import promotion, rescore
from audioscore.tracking.connection import connect, initialise
from audioscore.tracking.registry import promote, version_of

NOISE = {"v1": 9.0, "v2": 1.0, "v3": 30.0, "v4": 9.0}  # points by which each version misses people's scores
Call = Callable[..., Any]


@pytest.fixture(scope="module")
def data(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus, sorted, half of it for the test."""
    folder = tmp_path_factory.mktemp("promote") / "data"
    shutil.copytree(tiny_corpus, folder)
    clips = read_labels(folder / "labels.csv").clips  # without sha256, as an index from elsewhere
    hashed = [replace(clip, sha256=f"{place:064x}") for place, clip in enumerate(clips)]
    write_sorted(folder, clips, assign_splits(hashed, val=0.2, test=0.5, seed=7))
    return folder


@pytest.fixture(scope="module")
def registry(scorer_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with four versions of `audioscore`, each a scorer in a folder of its own, and no champion."""
    folder = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    initialise(uri, "audioscore", folder / "artifacts")
    client = connect(uri)
    client.create_registered_model("audioscore")
    for name in NOISE:
        source = folder / name
        shutil.copytree(scorer_directory, source / "artifacts" / name)
        flavors = {"python_function": {"artifacts": {"scorer": {"path": f"artifacts/{name}", "uri": "x"}}}}
        (source / "MLmodel").write_text(json.dumps({"flavors": flavors}), encoding="utf-8")
        client.create_model_version("audioscore", source.as_uri(), tags={"run_id": f"run-{name}"})
    return folder / "mlflow.db"


@pytest.fixture
def call(registry: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """`audioscore …` in a home with that registry; a version's raw outputs are the scores, missed by its NOISE."""
    home().folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(registry, home().folder / "mlflow.db")

    for name in NOISE:  # what the versions' runs were configured to
        (home().runs / f"run-{name}").mkdir(parents=True)
        shutil.copyfile(SMALL, home().runs / f"run-{name}" / "config.json")

    def heard(scorer: Path, clips: list[Clip], data: Path, store: object) -> np.ndarray[Any, Any]:
        noise = np.random.default_rng(int(scorer.name[1:])).normal(0, NOISE[scorer.name], len(clips))
        return np.array([clip.score for clip in clips]) + noise

    monkeypatch.setattr(rescore, "rescore", heard)
    return lambda *arguments: CliRunner().invoke(app, list(arguments), env={"COLUMNS": "400"})


def client() -> Any:
    return connect(home().tracking_uri)


def test_better_is_promoted_worse_and_itself_are_refused(call: Call, data: Path) -> None:
    first = call("promote", "1", "--data", str(data), "--json")
    assert first.exit_code == 0, first.output
    document = json.loads(first.stdout)
    assert (document["name"], document["version"], document["compared_with"]) == ("audioscore", 1, "none")
    assert document["decision"]["promoted"] is True
    assert document["decision"]["delta"] is None

    better = call("promote", "2", "--data", str(data))
    assert better.exit_code == 0, better.output
    assert better.stdout.startswith("audioscore v2 is champion, in place of v1: Spearman ")
    worse = call("promote", "3", "--data", str(data))
    assert (worse.exit_code, worse.stdout) == (1, "")
    assert worse.stderr.startswith("audioscore v3 is not promoted: Spearman ")
    assert "not shown to be above 0" in worse.stderr
    itself = call("promote", "2", "--data", str(data))
    assert isinstance(itself.exception, GateRefused)
    assert str(itself.exception) == "models:/audioscore/2 is the champion already."

    versions = {number: version_of(client(), "audioscore", number) for number in (1, 2, 3)}
    assert versions[2].aliases == ("champion",)
    assert versions[1].aliases == ("previous",)
    assert versions[3].tags["judged_promoted"] == "false"
    assert versions[3].tags["judged_compared_with"] == "v2"
    assert versions[2].tags["judged_data_digest"] == folder_digest(data)


def test_a_refusal_as_json_is_one_document_and_exit_code_1(call: Call, data: Path) -> None:
    promote(client(), "audioscore", 2, expected=None)
    said = call("promote", "3", "--data", str(data), "--json")
    assert said.exit_code == 1
    document = json.loads(said.stdout)
    assert document["decision"]["promoted"] is False
    assert document["gate"]["clips"] == 24
    assert {one["verdict"] for one in document["gate"]["slices"]} <= {"kept", "fell", "too small"}
    assert said.stderr == ""


def test_the_margin_is_the_configurations(call: Call, data: Path, tmp_path: Path) -> None:
    promote(client(), "audioscore", 3, expected=None)
    config = tmp_path / "strict.yaml"
    encoders = {"muq": {"source": "m"}, "campplus": {"source": "c"}}
    config.write_text(json.dumps({"encoders": encoders, "registry": {"margin": 1.5}}))
    said = call("promote", "2", "--data", str(data), "--config", str(config))
    assert said.exit_code == 1
    assert "not shown to be above 1.5" in said.stderr
    run = home().runs / "run-v2"  # the run that registered it: its data, and its settings
    (run / "steps" / "p" / "sort-data").mkdir(parents=True)
    (run / "steps" / "p" / "fetch-data").mkdir()
    (run / "steps" / "p" / "sort-data" / "index").symlink_to(data)
    (run / "steps" / "p" / "fetch-data" / "data").symlink_to(data)
    (run / "config.json").write_text(config.read_text().replace("1.5", "0.1"))
    assert call("promote", "2", "--data", str(data), "--config", str(config)).exit_code == 1
    kept = call("promote", "2")
    assert kept.exit_code == 0, kept.output
    assert "above 0.1" in kept.stdout


def test_a_failed_probe_refuses_later_too(call: Call, data: Path) -> None:
    client().set_model_version_tag("audioscore", "2", "probes", '{"flagged": ["clipping"], "refusing": ["clipping"]}')
    said = call("promote", "2", "--data", str(data))
    assert said.exit_code == 1
    assert said.stderr.endswith("it fails the probes clipping.\n")


def test_a_champion_that_moved_meanwhile(call: Call, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(client(), "audioscore", 1, expected=None)
    judge = promotion.judge

    def slow(*arguments: Any) -> Any:
        found = judge(*arguments)
        promote(client(), "audioscore", 4, expected=1)
        return found

    monkeypatch.setattr(promotion, "judge", slow)
    said = call("promote", "2", "--data", str(data))
    assert said.exit_code == 1
    moved = "audioscore: champion moved from v1 to v4 since the comparison. Compare again"
    assert said.stderr == f"audioscore v2 is not promoted: {moved}.\n"
    tags = version_of(client(), "audioscore", 2).tags
    assert (tags["judged_promoted"], tags["judged_decision"]) == ("false", moved)


def test_rollback_and_history(call: Call) -> None:
    promote(client(), "audioscore", 1, expected=None, why="first model")
    promote(client(), "audioscore", 2, expected=1, why="better")
    said = call("rollback", "--why", "hisses are liked")
    assert (said.exit_code, said.stdout) == (0, "audioscore v1 is champion again; v2 is previous.\n")
    rows = json.loads(call("models", "--history", "--json").stdout)
    assert [(row["champion"], row["beaten"], row["kind"], row["why"]) for row in rows] == [
        (1, 2, "rollback", "hisses are liked"),
        (2, 1, "promote", "better"),
        (1, None, "promote", "first model"),
    ]
    assert [row["until"] for row in rows] == [None, rows[0]["since"], rows[1]["since"]]
    table = call("models", "--history").stdout
    assert all(len(line) <= 80 for line in table.splitlines())
    assert "audioscore v1" in table
    assert "rollback in place of v2" in table
    assert "hisses are liked" in table
    again = call("rollback", "--json")
    assert json.loads(again.stdout) == {"name": "audioscore", "champion": 2, "previous": 1}


def test_bad_input_is_one_sentence(call: Call, data: Path, tmp_path: Path) -> None:
    unknown = call("promote", "9", "--data", str(data))
    assert isinstance(unknown.exception, ModelError)
    assert "models:/audioscore/9: no such version." in str(unknown.exception)
    for folder, said in ((tmp_path / "gone", "no such folder"), (tmp_path, "is not sorted, index/ missing")):
        found = call("promote", "1", "--data", str(folder))
        assert isinstance(found.exception, UsageError)
        assert said in str(found.exception)
    gone = call("promote", "1")
    assert isinstance(gone.exception, UsageError)
    assert "run-v1: the run's data are there no longer. Name a sorted data folder with --data." in str(gone.exception)
    assert call("promote", "0", "--data", str(data)).exit_code == 2
    nobody = call("rollback", "--model", "nobody")
    assert isinstance(nobody.exception, ModelError)
    assert "nobody has no champion" in str(nobody.exception)


def test_without_a_registry(data: Path) -> None:
    for arguments in (["promote", "1", "--data", str(data)], ["rollback"]):
        found = CliRunner().invoke(app, arguments)
        assert isinstance(found.exception, ModelError)
        assert "no model has been registered there yet" in str(found.exception)
    said = CliRunner().invoke(app, ["models", "--history"])
    assert (said.exit_code, said.stdout) == (0, "")
    assert said.stderr.startswith("no champion was ever named; ")
