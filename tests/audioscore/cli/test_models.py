import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from audioscore.cli.app import app
from audioscore.config import SMALL
from audioscore.data.audio import encode
from audioscore.data.clips import Clip
from audioscore.data.index import write_index
from audioscore.data.versions.revision import folder_digest
from audioscore.errors import AudioscoreError, GateRefused, ModelError, UsageError
from audioscore.files import sha256_of
from audioscore.home import home
from audioscore.model import SongEvalGenerator_audio_lora
from audioscore.tracking import compare, promotion
from audioscore.tracking.connection import connect, initialise
from audioscore.tracking.registry import promote, version_of

NOISE = {"v1": 9.0, "v2": 1.0, "v3": 30.0, "v4": 9.0}  # standard deviation of each version's error, in points
Call = Callable[..., Any]


@pytest.fixture(scope="module")
def data(sorted_corpus: Callable[..., Path]) -> Path:
    return sorted_corpus(test=0.5, with_hashes=False)


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
    """`audioscore …` in a home with that registry; a version's raw outputs are the labels plus its NOISE."""
    home().folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(registry, home().folder / "mlflow.db")

    for name in NOISE:  # the configurations of the versions' runs
        (home().runs / f"run-{name}").mkdir(parents=True)
        shutil.copyfile(SMALL, home().runs / f"run-{name}" / "config.json")

    def rescored(scorer: Path, clips: list[Clip], data: Path, store: object) -> np.ndarray[Any, Any]:
        noise = np.random.default_rng(int(scorer.name[1:])).normal(0, NOISE[scorer.name], len(clips))
        return np.array([clip.score for clip in clips]) + noise

    monkeypatch.setattr(compare, "rescore", rescored)
    return lambda *arguments: CliRunner().invoke(app, list(arguments), env={"COLUMNS": "400"})


def client() -> Any:
    return connect(home().tracking_uri)


def test_a_better_version_is_promoted_and_a_worse_one_refused(call: Call, data: Path) -> None:
    first = call("promote", "1", "--data", str(data), "--json")
    assert first.exit_code == 0, first.output
    document = json.loads(first.stdout)
    assert (document["name"], document["version"], document["compared_with"]) == ("audioscore", 1, "none")
    assert document["decision"]["promoted"] is True
    assert document["decision"]["delta"] is None

    better = call("promote", "2", "--data", str(data))
    assert better.exit_code == 0, better.output
    assert re.match("audioscore v2 .* v1.*Spearman", better.stdout)
    worse = call("promote", "3", "--data", str(data))
    assert (worse.exit_code, worse.stdout) == (1, "")
    assert re.match("audioscore v3 .*Spearman .* above 0", worse.stderr)
    itself = call("promote", "2", "--data", str(data))
    assert isinstance(itself.exception, GateRefused)
    assert "models:/audioscore/2" in str(itself.exception)

    versions = {number: version_of(client(), "audioscore", number) for number in (1, 2, 3)}
    assert versions[2].aliases == ("champion",)
    assert versions[1].aliases == ("previous",)
    assert versions[3].tags["judged_promoted"] == "false"
    assert versions[3].tags["judged_compared_with"] == "v2"
    assert versions[2].tags["judged_data_digest"] == folder_digest(data)


def test_a_refusal_as_json_is_one_document_and_exit_code_1(call: Call, data: Path) -> None:
    promote(client(), "audioscore", 2, expected=None)
    result = call("promote", "3", "--data", str(data), "--json")
    assert (result.exit_code, result.stderr) == (1, "")
    document = json.loads(result.stdout)
    assert document["decision"]["promoted"] is False
    assert document["gate"]["clips"] == 24
    assert {one["verdict"] for one in document["gate"]["slices"]} <= {"kept", "fell", "too small"}


def test_the_margin_comes_from_the_configuration(call: Call, data: Path, tmp_path: Path) -> None:
    promote(client(), "audioscore", 3, expected=None)
    config = tmp_path / "strict.yaml"
    encoders = {"muq": {"source": "m"}, "campplus": {"source": "c"}}
    config.write_text(json.dumps({"encoders": encoders, "registry": {"margin": 1.5}}))
    strict = call("promote", "2", "--data", str(data), "--config", str(config))
    assert strict.exit_code == 1
    assert "above 1.5" in strict.stderr
    run = home().runs / "run-v2"  # the run that registered the version: its data and its settings
    (run / "steps" / "p" / "sort-data").mkdir(parents=True)
    (run / "steps" / "p" / "fetch-data").mkdir()
    (run / "steps" / "p" / "sort-data" / "index").symlink_to(data)
    (run / "steps" / "p" / "fetch-data" / "data").symlink_to(data)
    (run / "config.json").write_text(config.read_text().replace("1.5", "0.1"))
    assert call("promote", "2", "--data", str(data), "--config", str(config)).exit_code == 1
    kept = call("promote", "2")
    assert kept.exit_code == 0, kept.output
    assert "above 0.1" in kept.stdout


def test_a_failed_robustness_test_refuses_a_later_promotion(call: Call, data: Path) -> None:
    client().set_model_version_tag("audioscore", "2", "probes", '{"flagged": ["clipping"], "refusing": ["clipping"]}')
    result = call("promote", "2", "--data", str(data))
    assert result.exit_code == 1
    assert "clipping" in result.stderr


def test_a_champion_that_changed_during_the_comparison(call: Call, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(client(), "audioscore", 1, expected=None)
    decide = promotion.decide_on_unseen

    def slow(*arguments: Any) -> Any:
        outcome = decide(*arguments)
        promote(client(), "audioscore", 4, expected=1)
        return outcome

    monkeypatch.setattr(promotion, "decide_on_unseen", slow)
    result = call("promote", "2", "--data", str(data))
    assert result.exit_code == 1
    tags = version_of(client(), "audioscore", 2).tags
    assert tags["judged_promoted"] == "false"
    assert re.search("champion .*v1 .*v4", tags["judged_decision"])
    assert result.stderr.count("\n") == 1
    assert tags["judged_decision"] in result.stderr
    assert version_of(client(), "audioscore", 4).aliases == ("champion",)


def test_rollback_and_history(call: Call) -> None:
    promote(client(), "audioscore", 1, expected=None, why="first model")
    promote(client(), "audioscore", 2, expected=1, why="better")
    result = call("rollback", "--why", "complaints")
    assert result.exit_code == 0
    assert re.match("audioscore v1 .*champion.* v2 .*previous", result.stdout)
    rows = json.loads(call("models", "--history", "--json").stdout)
    assert [(row["champion"], row["beaten"], row["kind"], row["why"]) for row in rows] == [
        (1, 2, "rollback", "complaints"),
        (2, 1, "promote", "better"),
        (1, None, "promote", "first model"),
    ]
    assert [row["until"] for row in rows] == [None, rows[0]["since"], rows[1]["since"]]
    table = call("models", "--history").stdout
    assert all(len(line) <= 80 for line in table.splitlines())
    for part in ("audioscore v1", "rollback", " v2", "complaints"):
        assert part in table
    again = call("rollback", "--json")
    assert json.loads(again.stdout) == {"name": "audioscore", "champion": 2, "previous": 1}


@pytest.mark.parametrize(
    ("arguments", "kind", "part"),
    [
        ("promote 9 --data {data}", ModelError, "models:/audioscore/9"),
        ("promote 1 --data {tmp}/gone", UsageError, "gone"),
        ("promote 1 --data {tmp}", UsageError, "index/"),
        ("promote 1", UsageError, "run-v1: .*--data"),
        ("promote 0 --data {data}", SystemExit, "2"),
        ("rollback --model other", ModelError, "other: .*champion"),
    ],
)
def test_wrong_arguments_are_named(
    call: Call, data: Path, tmp_path: Path, arguments: str, kind: type[BaseException], part: str
) -> None:
    result = call(*arguments.format(data=data, tmp=tmp_path).split())
    assert type(result.exception) is kind
    assert re.search(part, str(result.exception))


@pytest.mark.parametrize("arguments", ["promote 1 --data {data}", "rollback"])
def test_a_missing_registry_is_an_error(data: Path, arguments: str) -> None:
    result = CliRunner().invoke(app, arguments.format(data=data).split())
    assert isinstance(result.exception, ModelError)
    assert "registered" in str(result.exception)


def test_history_without_a_registry_is_empty() -> None:
    result = CliRunner().invoke(app, ["models", "--history"])
    assert (result.exit_code, result.stdout) == (0, "")
    assert "champion" in result.stderr


def convert(legacy: Any, old: Path, new: Path, *options: str) -> Result:
    sizes = ("--muq", str(legacy.muq), "--lora-r", "4", "--lora-alpha", "6")
    return CliRunner().invoke(app, ["convert", str(old), str(new), *sizes, *options])


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve recordings, 1.2 to 2.3 s, from clean to noisy."""
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(8)
    for number in range(12):
        time = np.arange(round((1.2 + 0.1 * number) * 24_000)) / 24_000
        tone = np.sin(2 * np.pi * (180 + 40 * number) * time + 2 * np.sin(2 * np.pi * 5 * time))
        wave = 0.2 * tone + 0.01 * number * rng.normal(size=len(time))
        encode(wave.astype(np.float32), 24_000, folder / f"clip{number:02d}.wav", codec="pcm_s16le")
    return sorted(folder.iterdir())


def test_a_converted_scorer_ranks_like_generate_tag(legacy: Any, recordings: list[Path], tmp_path: Path) -> None:
    result = convert(legacy, legacy.full, tmp_path / "new")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("\n") == 1
    assert "25 x generate_tag" in result.stderr
    assert "--data" in result.stderr
    hashed = sha256_of(legacy.muq / "config.json", legacy.muq / "model.safetensors")
    for part in (str(tmp_path / "new"), "layer 6", hashed, "rank 4", "alpha 6", "0 to 5"):
        assert part in result.stdout
    scored = CliRunner().invoke(app, ["score", *map(str, recordings), "--model", str(tmp_path / "new"), "--json"])
    assert scored.exit_code == 0, scored.output
    results = json.loads(scored.stdout)["results"]
    model = SongEvalGenerator_audio_lora(lora_r=4, lora_alpha=6, muq=legacy.muq)
    model.load_model(legacy.full)
    tags = np.array([model.generate_tag(path) for path in recordings])
    for figure in ("raw", "score"):
        assert np.argsort([row[figure] for row in results]).tolist() == np.argsort(tags).tolist()
    assert 2 + 2 * np.tanh([row["raw"] for row in results]) == pytest.approx(tags, abs=1e-4)
    assert [row["score"] for row in results] == pytest.approx(25 * tags, abs=0.03)
    assert {tuple(row["interval"]) for row in results} == {(0.0, 100.0)}


def test_data_calibrates_the_scores(legacy: Any, recordings: list[Path], tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(recordings[0].parent, data / "audio")
    clips = [
        Clip(f"audio/{path.name}", 95.0 - 3 * number, f"s{number % 4}", sha256=sha256_of(path))
        for number, path in enumerate(recordings)
    ]
    for split, part in (("val", clips), ("train", []), ("test", [])):
        write_index(data / "index" / f"{split}.json", [part])
    result = convert(legacy, legacy.adapters, tmp_path / "new", "--data", str(data), "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    row = json.loads(result.stdout)
    described = json.loads((tmp_path / "new" / "scorer.json").read_text())
    assert row == {
        "scorer": str(tmp_path / "new"), "muq": described["encoders"]["muq"], "licence": "unknown",
        "tuning": {"mode": "lora", "from_layer": 0, "rank": 4, "alpha": 6, "mix": False}, "calibration_clips": 12,
        "half_width": described["calibration"]["half_width"], "calibrated": True,
    }  # fmt: skip
    assert 0 < row["half_width"] < 100
    assert described["seen_clips"] == sorted(str(clip.sha256) for clip in clips)
    assert described["code_revision"]


def test_a_discriminator_is_left_out_with_a_note(legacy: Any, tmp_path: Path) -> None:
    import torch

    shutil.copytree(legacy.adapters, tmp_path / "old")
    sizes = {"0.weight": (20, 64), "0.bias": (20,), "3.weight": (10, 20), "3.bias": (10,)}
    speaker = {f"speaker_discriminator.{name}": torch.zeros(size) for name, size in sizes.items()}
    torch.save({**legacy.head, **speaker}, tmp_path / "old" / "weights.pt")
    result = convert(legacy, tmp_path / "old", tmp_path / "new")
    assert result.exit_code == 0
    assert "discriminator" in result.stderr
    refused = convert(legacy, tmp_path / "old", tmp_path / "other", "--no-use-grl")
    assert isinstance(refused.exception, ModelError)
    assert "use_grl=True" in str(refused.exception)


MISSING = r"type\.txt and weights\.pt and muq_lora\.pt"


@pytest.mark.parametrize(
    ("old", "new", "options", "kind", "part"),
    [
        ("none", "new", "", ModelError, f"none: {MISSING}"),
        ("muq", "new", "", ModelError, f"muq: {MISSING}"),
        ("full", "used", "", UsageError, "used"),
        ("full", "new", "--lora-r 5", ModelError, "lora_r=4.* lora_alpha"),
        ("full", "new", "--lora-alpha 0", UsageError, r"lora_r .*lora_alpha.*4 and 0\.0"),
        ("full", "new", "--muq /nowhere", ModelError, "/nowhere"),
        ("full", "new", "--data {tmp}/gone", UsageError, "gone"),
        ("full", "new", "--data {tmp}/data", UsageError, "data: .*index/"),
    ],
)
def test_wrong_arguments_are_named_and_write_nothing(
    legacy: Any, tmp_path: Path, old: str, new: str, options: str, kind: type[AudioscoreError], part: str
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    (tmp_path / "data").mkdir()
    folder = tmp_path / old if old == "none" else getattr(legacy, old)
    result = convert(legacy, folder, tmp_path / new, *options.format(tmp=tmp_path).split())
    assert type(result.exception) is kind, result.output
    assert result.exception.exit_code == 2
    assert re.search(part, str(result.exception)), result.exception
    assert result.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "used"]


@pytest.mark.parametrize("name", ["a/b", "a:b", "", " x", "x" * 201, "models:/audioscore"])
@pytest.mark.parametrize("command", [("promote", "1"), ("rollback",)])
def test_a_name_that_no_model_can_have_is_refused(name: str, command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*command, "--model", name])
    assert isinstance(result.exception, UsageError)
    assert str(result.exception).startswith("--model ")
    assert not home().folder.joinpath("mlflow.db").exists()


def test_a_version_number_that_a_database_cannot_hold() -> None:
    assert CliRunner().invoke(app, ["promote", str(10**20)]).exit_code == 2


@pytest.mark.parametrize("kind", ["file", "byte"])
@pytest.mark.parametrize("command", ["models", "score x.wav", "promote 1", "rollback"])
def test_a_home_that_cannot_hold_a_registry_has_exit_code_2(kind: str, command: str) -> None:
    folder = home().folder
    if kind == "file":
        folder.rmdir()
    named = folder if kind == "file" else folder / "mlflow.db"
    named.write_bytes(b"x")
    result = CliRunner().invoke(app, command.split())
    assert isinstance(result.exception, AudioscoreError)
    assert result.exception.exit_code == 2
    assert str(result.exception).startswith(f"{named}: ")
    assert named.read_bytes() == b"x"


def test_an_empty_database_has_no_models_and_is_not_changed() -> None:
    (home().folder / "mlflow.db").touch()
    result = CliRunner().invoke(app, ["models", "--json"])
    assert (result.exit_code, result.stdout) == (0, "[]\n")
    assert (home().folder / "mlflow.db").read_bytes() == b""
