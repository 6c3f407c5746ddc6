import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from audioscore.cli.app import app
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
    """Arguments of the process launcher; no process is started."""
    calls: list[Any] = []

    def fail(given: list[str], processes: int) -> None:
        calls.append((given, processes))
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
    ((given, processes),) = together
    assert processes == 4
    from audioscore.training.__main__ import parse

    parsed = parse(given)
    assert (parsed.plan, parsed.resume, parsed.mlflow, parsed.device) == (["hybrid"], True, "trials", "cpu")
    assert parsed.overrides == ["training.processes=4", 'training.init="warm:old"']
    assert (parsed.config, parsed.data, parsed.out) == (config, data, tmp_path)


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--device", "tpu"], "--device tpu: .*auto, cpu and cuda"),
        (["--plan", "x"], "'x': .*baseline, hybrid, campplus_only, muq_frozen"),
        (["--init", "cold"], r"1 wrong: training\.init: "),
        (["--set", "training.epoch=3"], r"1 wrong: training\.epoch: "),
        (["--data", "gone"], r"gone: .*index/train\.json.*`audioscore data sort gone`"),
    ],
)
def test_wrong_arguments_are_named(config: Path, data: Path, tmp_path: Path, more: list[str], part: str) -> None:
    with pytest.raises(AudioscoreError, match=part) as fault:
        CliRunner().invoke(app, options(config, data, tmp_path / "out", *more), catch_exceptions=False)
    assert "\n" not in str(fault.value)
    assert fault.value.exit_code == 2
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
