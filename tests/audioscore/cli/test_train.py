import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from typer.testing import CliRunner

from audioscore.cli.app import app
from audioscore.config import load_config
from audioscore.errors import AudioscoreError, UsageError
from audioscore.scoring.checkpoint import read_description
from audioscore.scoring.trained_plan import read_trained
from audioscore.training import launch


@pytest.fixture(autouse=True)
def _levels() -> Iterator[None]:
    logger = logging.getLogger("audioscore")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.fixture(scope="module")
def data(sorted_corpus: Callable[..., Path]) -> Path:
    return sorted_corpus(test=0.2)


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


def test_a_training_is_one_json_document(config: Path, data: Path, tmp_path: Path) -> None:
    plans = ["--plan", "hybrid", "--plan", "campplus_only"]
    result = CliRunner().invoke(app, options(config, data, tmp_path / "out", *plans, "--json"))
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
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
    assert f"{tmp_path / 'out' / 'hybrid' / 'seed-'}" in table.stdout


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls of the process launcher, which starts no process and fails."""
    calls: list[Any] = []

    def fail(request: launch.TrainingRequest, processes: int) -> None:
        calls.append((request, processes))
        failed = launch.ProcessesFailed("printed above")
        failed.exit_code = 2
        raise failed

    monkeypatch.setattr(launch, "train_together", fail)
    return calls


def test_several_processes_get_the_options_and_print_their_own_errors(
    config: Path, data: Path, tmp_path: Path, together: list[Any]
) -> None:
    more = ["--set", "training.processes=4", "--init", "warm:old", "--resume", "--mlflow", "trials", "--plan", "hybrid"]
    result = CliRunner().invoke(app, options(config, data, tmp_path, *more))
    assert result.exit_code == 2
    assert result.output == ""
    ((request, processes),) = together
    assert processes == 4
    assert (request.plans, request.resume, request.mlflow, request.device) == (("hybrid",), True, "trials", "cpu")
    assert request.config == load_config(config, ["training.processes=4", 'training.init="warm:old"'])
    assert (request.data, request.out, request.single) == (data, tmp_path, False)


def test_curves_are_logged_to_the_named_experiment(
    config: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    more = ["--plan", "campplus_only", "--set", "training.seeds=[4]", "--mlflow", "trials"]
    result = CliRunner().invoke(app, options(config, data, tmp_path / "out", *more))
    assert result.exit_code == 0, result.output
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("trials").experiment_id])
    assert (run.info.run_name, run.info.status) == ("campplus_only, seed 4", "FINISHED")
    (entry,) = read_trained(tmp_path / "out" / "campplus_only").curves[4]
    assert run.data.metrics["train_loss"] == entry["train_loss"]


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--device", "tpu"], "--device tpu: .*auto, cpu, cuda"),
        (["--plan", "x"], "'x': .*baseline, hybrid, campplus_only, muq_frozen"),
        (["--init", "cold"], r"\b1 \w+: training\.init: "),
        (["--set", "training.epoch=3"], r"\b1 \w+: training\.epoch: "),
        (["--data", "gone"], r"gone: .*index/train\.json.*`audioscore data sort gone`"),
    ],
)
def test_wrong_arguments_are_named(config: Path, data: Path, tmp_path: Path, more: list[str], part: str) -> None:
    with pytest.raises(AudioscoreError, match=part) as error:
        CliRunner().invoke(app, options(config, data, tmp_path / "out", *more), catch_exceptions=False)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_an_earlier_training_is_not_overwritten(config: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "baseline").mkdir()
    (tmp_path / "baseline" / "kept").touch()
    result = CliRunner().invoke(app, options(config, data, tmp_path, "--plan", "baseline"))
    assert isinstance(result.exception, UsageError)
    assert str(tmp_path / "baseline") in str(result.exception)
    assert "--resume" in str(result.exception)
    assert [path.name for path in (tmp_path / "baseline").iterdir()] == ["kept"]


def test_an_unusable_output_folder_is_reported_before_the_data_is_read(
    config: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file"):
        CliRunner().invoke(app, options(config, data / "gone", tmp_path / "file" / "out"), catch_exceptions=False)


def test_an_interrupt_names_the_option_that_continues(
    config: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "train_together", interrupt)
    result = CliRunner().invoke(app, options(config, data, tmp_path, "--set", "training.processes=2"))
    assert result.exit_code == 130
    assert "--resume" in result.output


def test_a_missing_gpu_is_an_error(config: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"device cuda: .*GPU"):
        CliRunner().invoke(app, options(config, data, tmp_path, "--device", "cuda"), catch_exceptions=False)


def test_a_failed_training_leaves_no_plan(config: Path, data: Path, tmp_path: Path) -> None:
    more = ["--plan", "campplus_only", "--set", "training.learning_rate=.inf"]
    with pytest.raises(AudioscoreError, match=r"not finite \(audio/c"):
        CliRunner().invoke(app, options(config, data, tmp_path / "out", *more), catch_exceptions=False)
    assert list((tmp_path / "out").glob("campplus_only/*")) == []
