"""What a user of commit 1bcff8a has still works: registry, scorers, features, splits, configuration, legacy models."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CLIPS = ("clips/good.flac", "clips/poor.flac")
NEAR = 1e-3
MODELS = (
    "models:/audioscore@champion", "models:/audioscore/1", "models:/audioscore/2", "scorers/baseline", "scorers/hybrid",
    "scorers/tuned",
)  # fmt: skip


def same_scores(found: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    assert [row["file"] for row in found] == list(CLIPS)
    for row in found:
        recorded = expected[row["file"]]
        assert row["error"] is None
        for key in recorded:
            assert row[key] == pytest.approx(recorded[key], abs=NEAR), (row["file"], key)


@pytest.mark.parametrize("model", MODELS)
def test_scores_are_the_recorded_ones(state: Any, model: str) -> None:
    result = state.call("score", *CLIPS, "--model", model, "--json")
    assert result.code == 0, result.err
    assert result.document["model"] == model
    same_scores(result.document["results"], state.expected["scores"][model])


def test_the_champion_is_the_default_model(state: Any) -> None:
    result = state.call("score", *CLIPS, "--json")
    assert result.code == 0, result.err
    assert result.document["model"] == MODELS[0]
    same_scores(result.document["results"], state.expected["scores"][MODELS[0]])


def test_a_home_that_was_moved_scores_as_before(state: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (state.root / "home").rename(state.root / "home 二 #2")
    monkeypatch.setenv("AUDIOSCORE_HOME", str(state.root / "home 二 #2"))
    for model in MODELS[:2]:
        result = state.call("score", *CLIPS, "--model", model, "--json")
        assert result.code == 0, result.err
        same_scores(result.document["results"], state.expected["scores"][model])
    assert not (state.root / "home").exists()


def test_load_scorer_takes_a_registered_model_and_a_folder(state: Any) -> None:
    from audioscore import load_scorer

    for model in (MODELS[0], "scorers/tuned"):
        expected = state.expected["scores"][model][CLIPS[0]]
        scored = load_scorer(model, device="cpu").score(CLIPS[0])
        assert scored.score == pytest.approx(expected["score"], abs=NEAR)
        assert scored.interval == pytest.approx(expected["interval"], abs=NEAR)
        assert (scored.raw, scored.seconds) == pytest.approx((expected["raw"], expected["seconds"]), abs=NEAR)


def test_versions_aliases_and_history(state: Any) -> None:
    listed = state.call("models", "--json")
    assert listed.code == 0, listed.err
    keys = ("name", "version", "aliases", "plan")
    assert [{key: row[key] for key in keys} for row in listed.document] == state.expected["models"]
    history = state.call("models", "--history", "--json")
    assert history.code == 0, history.err
    keys = ("champion", "kind", "beaten", "carried_out")
    assert [{key: row[key] for key in keys} for row in history.document] == state.expected["history"]


def test_rollback_restores_the_champion_before(state: Any) -> None:
    result = state.call("rollback", "--why", "test", "--json")
    assert result.code == 0, result.err
    assert result.document == {"name": "audioscore", "champion": 1, "previous": 2}
    aliases = {row["version"]: row["aliases"] for row in state.call("models", "--json").document}
    assert aliases == {1: ["champion"], 2: ["previous"]}
    latest = state.call("models", "--history", "--json").document[0]
    assert (latest["champion"], latest["beaten"], latest["kind"], latest["why"]) == (1, 2, "rollback", "test")
    scored = state.call("score", *CLIPS, "--json").document["results"]
    same_scores(scored, state.expected["scores"]["models:/audioscore/1"])


@pytest.mark.parametrize("version", ["@champion", "/1"])
def test_mlflow_loads_a_registered_model(state: Any, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow.pyfunc
    import pandas as pd

    monkeypatch.setattr(sys, "path", list(sys.path))  # loading a model puts its own code first
    mlflow.set_tracking_uri(state.tracking_uri)
    mlflow.set_registry_uri(state.tracking_uri)
    model = mlflow.pyfunc.load_model(f"models:/audioscore{version}")
    rows = model.predict(pd.DataFrame({"audio": [(state.root / name).read_bytes() for name in CLIPS] + [b"no audio"]}))
    assert list(rows.columns) == ["score", "lo", "hi", "raw", "seconds", "error"]
    *good, bad = rows.to_dict("records")
    for row, name in zip(good, CLIPS, strict=True):
        expected = state.expected["scores"][f"models:/audioscore{version}"][name]
        found = [float(row[key]) for key in ("score", "lo", "hi", "raw", "seconds")]
        assert found == pytest.approx(
            [expected["score"], *expected["interval"], expected["raw"], expected["seconds"]], abs=NEAR
        )
        assert pd.isna(row["error"])
    assert pd.isna(bad["score"])
    assert isinstance(bad["error"], str)


def test_features_of_the_old_store_are_reused(state: Any) -> None:
    before = state.features()
    assert sorted(name for name in before if name.endswith(".safetensors")) == state.expected["features"]
    trained = state.call(
        "train", "--data", "data", "--config", state.run_yaml, "--out", "out", "--plan", "hybrid", "--device", "cpu",
        "--set", "training.epochs=1", "--json",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    evaluated = state.call("evaluate", "scorers/hybrid", "--data", "data", "--config", state.run_yaml, "--json")
    assert evaluated.code == 0, evaluated.err
    for key, value in state.expected["evaluate"].items():
        assert evaluated.document["plans"]["scorers/hybrid"][key]["value"] == pytest.approx(value, abs=NEAR)
    assert state.features() == before


def test_sorting_again_keeps_the_splits(state: Any) -> None:
    before = state.features()
    sorted_again = state.call("data", "sort", "data", "--config", other_split(state))
    assert sorted_again.code == 0, sorted_again.err
    assert splits(state.root / "data") == state.expected["index"]
    groups = json.loads((state.root / "data/splits.json").read_text())["groups"]
    assert groups == state.expected["splits"]["groups"]
    assert state.features() == before


def other_split(state: Any) -> str:
    """The run's configuration with another seed, with which new data would be split differently."""
    import yaml

    path = Path(state.run_yaml).with_name("other.yaml")
    values = yaml.safe_load(Path(state.run_yaml).read_text())
    values["split"]["seed"] += 1
    path.write_text(yaml.safe_dump(values))
    return str(path)


def splits(data: Path) -> dict[str, list[str]]:
    """Names of the clips of each split, in the order of the index."""
    found = {}
    for name in ("train", "val", "test"):
        index = json.loads((data / f"index/{name}.json").read_text())
        found[name] = [row["audio_file"] for group in index for row in group]
    return found


def test_every_key_of_an_old_configuration_takes_effect(state: Any) -> None:
    import yaml

    every = state.root / "configs/every.yaml"
    shown = state.call("config", "show", "--config", str(every), "--resolved", "--json")
    assert shown.code == 0, shown.err
    wanted = numbers(yaml.safe_load(every.read_text()))
    assert not [value for value in wanted if value not in numbers(shown.document)]
    small = state.call("config", "show", "--config", state.run_yaml)
    assert small.code == 0, small.err
    overridden = state.call(
        "config", "show", "--config", state.run_yaml, "--set", "training.head_epochs=137", "--set",
        "evaluation.probes.clips=139", "--resolved", "--json",
    )  # fmt: skip
    assert overridden.code == 0, overridden.err
    assert {137, 139} <= set(numbers(overridden.document))


def numbers(value: Any) -> list[float]:
    """Every number of nested values: a renamed key still has its number."""
    if isinstance(value, dict):
        return [number for below in value.values() for number in numbers(below)]
    if isinstance(value, list):
        return [number for below in value for number in numbers(below)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_a_legacy_model_gives_its_tag_and_is_converted(state: Any) -> None:
    from audioscore.model import SongEvalGenerator_audio_lora

    model = SongEvalGenerator_audio_lora(lora_r=2, lora_alpha=3, muq=state.root / "legacy/muq")
    model.load_model(state.root / "legacy/adapters")
    for name, tag in state.expected["generate_tag"].items():
        assert model.generate_tag(state.root / name) == pytest.approx(tag, abs=NEAR)
    converted = state.call(
        "convert", "legacy/adapters", "new", "--muq", "legacy/muq", "--lora-r", "2", "--lora-alpha", "3", "--json"
    )
    assert converted.code == 0, converted.err
    scored = state.call("score", *CLIPS, "--model", "new", "--json")
    same_scores(scored.document["results"], state.expected["scores"]["converted"])


def test_exit_codes(state: Any) -> None:
    (state.root / "broken.wav").write_bytes(b"no audio")
    some = state.call("score", CLIPS[0], "broken.wav", "--model", "scorers/baseline", "--json")
    assert some.code == 3
    assert [row["score"] is None for row in some.document["results"]] == [False, True]
    assert isinstance(some.document["results"][1]["error"], str)
    assert state.call("score", CLIPS[0], "--model", "models:/audioscore/9").code == 2
    assert state.call("score", CLIPS[0], "--model", "no/folder").code == 2
    assert state.call("config", "show", "--config", state.run_yaml, "--set", "training.nothing=1").code == 2
    for name in ("c000.m4a", "c001.m4a"):
        shutil.copyfile(state.root / "broken.wav", state.root / "data/audio" / name)
    refused = state.call("data", "validate", "data", "--json")  # at least 30 clips; other contents than the index's
    assert refused.code in (0, 1)
    assert {one["audio_file"] for one in refused.document["rejected"]} == {"audio/c000.m4a", "audio/c001.m4a"}
    few = Path(state.run_yaml).with_name("few.yaml")
    few.write_text(Path(state.run_yaml).read_text().replace("min_clips: 10", "min_clips: 1000"))
    assert state.call("data", "validate", "data", "--config", str(few)).code == 1


@pytest.mark.services
def test_a_run_keeps_splits_features_and_registry(state: Any, interface: Any) -> None:
    """`run --data` on the old data in the old home: a third version, trained on features that were there."""
    before = state.features()
    done = subprocess.run(
        [sys.executable, "-m", "audioscore.cli.app", "run", "--data", "data", "--config", state.run_yaml, "--json",
         "--set", "training.seeds=[2]", "--set", "training.epochs=5"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert interface.missing_keys("run", result) == []
    assert (result["registered"]["name"], result["registered"]["version"]) == ("audioscore", 3)
    folder = state.root / "home/runs" / result["run_id"]
    indexes = sorted(folder.glob("steps/**/index/train.json"))  # of the data and of the step that sorts
    assert [splits(index.parents[1]) == state.expected["index"] for index in indexes] == [True, True]
    after = state.features()
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if name.endswith(".safetensors") and name not in before]
    versions = {row["version"]: row["aliases"] for row in state.call("models", "--json").document}
    assert sorted(versions) == [1, 2, 3]
    assert [version for version, aliases in versions.items() if "champion" in aliases] in ([2], [3])
