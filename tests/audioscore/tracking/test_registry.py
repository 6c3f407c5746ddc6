import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from audioscore.errors import GateRefused, ModelError
from audioscore.files import path_to_uri
from audioscore.tracking.connection import connect
from audioscore.tracking.registry import (
    ModelVersion,
    describe_version,
    has_champion,
    list_versions,
    newest_version,
    promote,
    read_changes,
    require_champion,
    rollback,
    scorer_folder,
    version_by_alias,
    version_of,
)


def number(client: MlflowClient, alias: str) -> int | None:
    found = version_by_alias(client, "singers", alias)
    return found.version if found else None


def test_a_new_champion_makes_the_old_one_previous(client: MlflowClient) -> None:
    promote(client, "singers", 1, expected=None)
    assert (number(client, "champion"), number(client, "previous")) == (1, None)
    client.set_registered_model_alias("singers", "challenger", "3")
    promote(client, "singers", 2, expected=1)
    assert (number(client, "champion"), number(client, "previous"), number(client, "challenger")) == (2, 1, 3)
    promote(client, "singers", 3, expected=2)
    assert (number(client, "champion"), number(client, "previous")) == (3, 2)
    assert version_of(client, "singers", 3).aliases == ("champion",)
    assert version_of(client, "singers", 1).aliases == ()


@pytest.mark.parametrize(("expected", "before"), [(None, "none"), (2, "v2")])
def test_a_champion_that_moved_stops_the_promotion(client: MlflowClient, expected: int | None, before: str) -> None:
    assert require_champion(client, "singers", None) is None
    with pytest.raises(GateRefused, match=r"\bv4 .*\bnone\b"):
        require_champion(client, "singers", 4)
    promote(client, "singers", 1, expected=None)
    with pytest.raises(GateRefused, match=rf"^singers: .*\b{before} .*\bv1\b") as refused:
        promote(client, "singers", 3, expected=expected)
    assert refused.value.exit_code == 1
    assert (number(client, "champion"), number(client, "previous")) == (1, None)


def test_the_champion_and_unknown_versions_are_not_promoted(client: MlflowClient) -> None:
    promote(client, "singers", 1, expected=None)
    with pytest.raises(GateRefused, match="models:/singers/1: "):
        promote(client, "singers", 1, expected=1)
    with pytest.raises(ModelError, match="models:/singers/9: "):
        promote(client, "singers", 9, expected=1)
    assert number(client, "previous") is None


def test_rolling_back_swaps_champion_and_previous(client: MlflowClient) -> None:
    with pytest.raises(ModelError, match=r"^singers: .*`audioscore models`"):
        rollback(client, "singers")
    promote(client, "singers", 1, expected=None)
    with pytest.raises(ModelError, match="models:/singers/1:"):
        rollback(client, "singers")
    promote(client, "singers", 3, expected=1)
    assert rollback(client, "singers") == (1, 3)
    assert (number(client, "champion"), number(client, "previous")) == (1, 3)
    assert rollback(client, "singers") == (3, 1)
    with pytest.raises(GateRefused, match=r"\bv1 .*\bv3\b"):
        promote(client, "singers", 2, expected=1)


RACE = """
import sys
from audioscore.errors import GateRefused
from audioscore.tracking.connection import connect
from audioscore.tracking.registry import promote
client = connect(sys.argv[1])
client.get_registered_model("singers")
print("ready", flush=True)
sys.stdin.readline()
try:
    promote(client, "singers", int(sys.argv[2]), expected=1, why="faster")
    print("promoted")
except GateRefused as refusal:
    print(refusal)
"""


def test_of_two_processes_at_once_one_promotes(client: MlflowClient, tracking_uri: str) -> None:
    promote(client, "singers", 1, expected=None)
    command = [sys.executable, "-c", RACE, tracking_uri]
    racers = [
        subprocess.Popen([*command, version], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for version in ("2", "3")
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    lines = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    winner = lines.index("promoted") + 2
    (refusal,) = [line for line in lines if line != "promoted"]
    assert re.match(rf"singers: .*\bv1 .*\bv{winner}\b", refusal)
    assert (number(client, "champion"), number(client, "previous")) == (winner, 1)
    assert [change.champion for change in read_changes(client, "singers")] == [1, winner]


def test_missing_aliases_and_versions(client: MlflowClient) -> None:
    assert version_by_alias(client, "singers", "champion") is None
    assert version_by_alias(client, "no such model", "champion") is None
    for name, version in (("singers", 9), ("missing", 1)):
        with pytest.raises(ModelError, match=f"^models:/{name}/{version}: .*`audioscore models`"):
            version_of(client, name, version)


def test_having_a_champion(client: MlflowClient, tracking_uri: str, tmp_path: Path) -> None:
    assert not has_champion(tracking_uri, "singers")
    promote(client, "singers", 2, expected=None)
    assert has_champion(tracking_uri, "singers")
    assert not has_champion(f"sqlite:///{tmp_path / 'gone.db'}", "singers")
    assert not (tmp_path / "gone.db").exists()


def test_versions_are_listed_newest_first(client: MlflowClient, tracking_uri: str) -> None:
    client.create_registered_model("duets")
    client.create_model_version("duets", "file:///nowhere")
    client.set_registered_model_alias("singers", "champion", "2")
    found = list_versions(tracking_uri)
    assert [(one.name, one.version) for one in found] == [("duets", 1), ("singers", 3), ("singers", 2), ("singers", 1)]
    assert found[2].aliases == ("champion",)
    assert found[2].tags == {"plan": "plan 2"}


def test_a_version_is_described_for_the_result() -> None:
    version = ModelVersion("singers", 4, ("previous", "champion"), {}, "run")
    assert version.uri == "models:/singers/4"
    assert describe_version(version) == {"name": "singers", "version": 4, "aliases": ["champion", "previous"]}


def test_a_scorer_folder_of_a_database_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"^{tmp_path}: "):
        scorer_folder(f"sqlite:///{tmp_path / 'mlflow.db'}", "models:/singers@champion")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["models:/singers@champion", "models:/singers/9", "models:/missing@champion"])
def test_a_scorer_folder_of_nothing_registered(client: MlflowClient, tracking_uri: str, uri: str) -> None:
    with pytest.raises(ModelError, match=rf"^{uri}: .*\(.+\)\. .*`audioscore models`"):
        scorer_folder(tracking_uri, uri)


def test_a_version_that_is_no_scorer_is_refused(client: MlflowClient, tracking_uri: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^models:/singers/1: .*\(.*MLmodel"):
        scorer_folder(tracking_uri, "models:/singers/1")
    (tmp_path / "model-2" / "MLmodel").write_text(json.dumps({"flavors": {"sklearn": {}}}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"^models:/singers/2: (?!.*MLmodel)"):
        scorer_folder(tracking_uri, "models:/singers/2")


def test_a_scorer_in_a_moved_home_that_cannot_be_written(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded, home = tmp_path / "gone/mlartifacts/m", tmp_path / "C#proj %20"
    scorer = home / "mlartifacts/m/artifacts/seed-1"
    scorer.mkdir(parents=True)
    flavors = {"python_function": {"artifacts": {"scorer": {"path": "artifacts/seed-1", "uri": "x"}}}}
    (home / "mlartifacts/m/MLmodel").write_text(json.dumps({"flavors": flavors}), encoding="utf-8")
    client.create_model_version("singers", recorded.as_uri())
    (tmp_path / "mlflow.db").rename(home / "mlflow.db")
    monkeypatch.setattr("audioscore.tracking.connection.relocate", lambda database: None)
    uri = path_to_uri(home / "mlflow.db", "sqlite")
    assert scorer_folder(uri, "models:/singers/4") == scorer
    (home / "mlartifacts").rename(home / "lost")
    with pytest.raises(ModelError, match=rf"^models:/singers/4: .*{re.escape(str(home))}"):
        scorer_folder(uri, "models:/singers/4")


def test_the_newest_version(client: MlflowClient, tracking_uri: str, tmp_path: Path) -> None:
    found = newest_version(tracking_uri, "singers")
    assert found is not None
    assert found.version == 3
    assert newest_version(tracking_uri, "duets") is None
    assert newest_version(f"sqlite:///{tmp_path / 'gone.db'}", "singers") is None
    assert not (tmp_path / "gone.db").exists()


def test_the_scorer_folder_named_by_the_model_file(client: MlflowClient, tracking_uri: str, tmp_path: Path) -> None:
    flavors = {"python_function": {"artifacts": {"scorer": {"path": "artifacts/seed-5", "uri": "x"}}}}
    model = tmp_path / "model-3"
    (model / "artifacts" / "seed-5").mkdir(parents=True)
    (model / "MLmodel").write_text(json.dumps({"flavors": flavors}), encoding="utf-8")
    promote(connect(tracking_uri), "singers", 3, expected=None)
    for uri in ("models:/singers/3", "models:/singers@champion"):
        assert scorer_folder(tracking_uri, uri) == model / "artifacts" / "seed-5"
