import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from audioscore.cli.app import app
from audioscore.data.labels import read_labels
from audioscore.data.sort import write_sorted
from audioscore.data.split import assign_splits
from audioscore.errors import AudioscoreError, UsageError
from audioscore.files import sha256_of
from audioscore.scoring.checkpoint import read_description
from audioscore.scoring.trained import read_trained
from audioscore.training import launch


@pytest.fixture(autouse=True)
def _levels() -> Iterator[None]:
    logger = logging.getLogger("audioscore")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.fixture(scope="module")
def data(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus, sorted."""
    folder = tmp_path_factory.mktemp("train") / "data"
    shutil.copytree(tiny_corpus, folder)
    clips = [
        replace(clip, sha256=sha256_of(folder / clip.audio_file)) for clip in read_labels(folder / "labels.csv").clips
    ]
    write_sorted(folder, clips, assign_splits(clips, val=0.2, test=0.2, seed=7))
    return folder


@pytest.fixture(scope="module")
def config(tiny_encoders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = {
        "encoders": {
            "muq": {"source": str(tiny_encoders / "muq-small"), "layer": 2},
            "campplus": {"source": str(tiny_encoders / "campplus-small")},
        },
        "training": {"seeds": [1, 2], "epochs": 1, "width": 8, "hidden": 8},
    }
    file = tmp_path_factory.mktemp("config") / "config.yaml"
    file.write_text(json.dumps(values))
    return file


def options(config: Path, data: Path, out: Path, *more: str) -> list[str]:
    return ["train", "--config", str(config), "--data", str(data), "--out", str(out), "--device", "cpu", *more]


def test_one_document_says_what_was_trained_and_where(config: Path, data: Path, tmp_path: Path) -> None:
    plans = ["--plan", "hybrid", "--plan", "campplus_only"]
    said = CliRunner().invoke(app, options(config, data, tmp_path / "out", *plans, "--json"))
    assert said.exit_code == 0, said.output
    document = json.loads(said.stdout)
    assert list(document) == ["hybrid", "campplus_only"]
    for plan, figures in document.items():
        trained = read_trained(tmp_path / "out" / plan)
        assert set(figures) == {"representative", "validation", "speakers", "folder"}
        assert figures["representative"] == trained.representative
        assert figures["validation"] == {str(seed): value for seed, value in trained.validation.items()}
        assert set(figures["speakers"]) == {"before", "after", "singers"}
        assert figures["folder"] == str(tmp_path / "out" / plan)
    assert read_description(read_trained(tmp_path / "out" / "hybrid").scorer_folder()).data_digest.endswith(".dir")

    again = options(config, data, tmp_path / "out", *plans, "--resume", "--set", "training.seeds=[1,2]")
    table = CliRunner().invoke(app, again)
    assert table.exit_code == 0, table.output
    assert f"the scorer is {tmp_path / 'out' / 'hybrid' / 'seed-'}" in table.stdout
    assert "singers named from its features: " in table.stdout


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What several processes would have been asked; nothing is started."""
    asked: list[Any] = []

    def fail(given: list[str], processes: int) -> None:
        asked.append((given, processes))
        failed = launch.ProcessesFailed("said above")
        failed.exit_code = 2
        raise failed

    monkeypatch.setattr(launch, "train_together", fail)
    return asked


def test_several_processes_are_torchruns_and_say_themselves_what_failed(
    config: Path, data: Path, tmp_path: Path, together: list[Any]
) -> None:
    more = ["--set", "training.processes=4", "--init", "warm:old", "--resume", "--mlflow", "trials", "--plan", "hybrid"]
    said = CliRunner().invoke(app, options(config, data, tmp_path, *more))
    assert said.exit_code == 2
    assert said.output == ""
    ((given, processes),) = together
    assert processes == 4
    from audioscore.training.__main__ import parse

    asked = parse(given)
    assert (asked.plan, asked.resume, asked.mlflow, asked.device) == (["hybrid"], True, "trials", "cpu")
    assert asked.overrides == ["training.processes=4", 'training.init="warm:old"']
    assert (asked.config, asked.data, asked.out) == (config, data, tmp_path)


WRONG = {
    "device": (["--device", "tpu"], "--device tpu: there are auto, cpu and cuda."),
    "plan": (
        ["--plan", "x"],
        "plan 'x': there is no such plan; there are baseline, hybrid, campplus_only, muq_frozen.",
    ),
    "init": (["--init", "cold"], "1 wrong: training.init: String should match pattern"),
    "set": (["--set", "training.epoch=3"], "1 wrong: training.epoch: there is no such key"),
    "unsorted": (["--data", "gone"], "gone: has no index/train.json. Run `audioscore data sort gone` first."),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_sentence(config: Path, data: Path, tmp_path: Path, case: str) -> None:
    more, sentence = WRONG[case]
    with pytest.raises(AudioscoreError) as fault:
        CliRunner().invoke(app, options(config, data, tmp_path / "out", *more), catch_exceptions=False)
    assert sentence in str(fault.value)
    assert "\n" not in str(fault.value)
    assert fault.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_what_was_trained_there_is_not_overwritten(config: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "baseline").mkdir()
    (tmp_path / "baseline" / "kept").touch()
    found = CliRunner().invoke(app, options(config, data, tmp_path, "--plan", "baseline"))
    assert isinstance(found.exception, UsageError)
    assert str(found.exception).startswith(f"{tmp_path / 'baseline'}: there is a training already. --resume goes on")
    assert [path.name for path in (tmp_path / "baseline").iterdir()] == ["kept"]


def test_a_file_in_the_way_is_said_before_anything_is_heard(config: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file"):
        CliRunner().invoke(app, options(config, data / "gone", tmp_path / "file" / "out"), catch_exceptions=False)


def test_interrupted_it_says_how_to_go_on(
    config: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from audioscore.training import launch

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "train_together", interrupt)
    said = CliRunner().invoke(app, options(config, data, tmp_path, "--set", "training.processes=2"))
    assert said.exit_code == 130
    assert said.output.strip() == "interrupted: the same command with --resume goes on from the last checkpoint"


def test_a_gpu_that_is_not_there_is_said_before_anything_is_heard(
    config: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="device cuda: this machine has no GPU"):
        CliRunner().invoke(app, options(config, data, tmp_path, "--device", "cuda"), catch_exceptions=False)


def test_a_failed_fit_registers_nothing_and_leaves_no_plan(config: Path, data: Path, tmp_path: Path) -> None:
    more = ["--plan", "campplus_only", "--set", "training.learning_rate=.inf"]
    with pytest.raises(AudioscoreError, match=r"not finite \(audio/c"):
        CliRunner().invoke(app, options(config, data, tmp_path / "out", *more), catch_exceptions=False)
    assert not (tmp_path / "out" / "campplus_only").exists() or not any((tmp_path / "out" / "campplus_only").iterdir())
