import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from audioscore.config import CONFIGS, Config, Plan, load_config
from audioscore.encoders.extract import extract_folder
from audioscore.scoring.checkpoint import load_scorer
from audioscore.training import launch
from audioscore.training.launch import REQUEST_FILE, ProcessesFailed, TrainingRequest, launch_plan, train_together


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[TrainingRequest]:
    """The requests of processes that would have been started; they succeed."""
    found: list[TrainingRequest] = []

    def run(command: list[str], env: dict[str, str]) -> Any:
        assert command == [sys.executable, "-m", "audioscore.training"]
        found.append(TrainingRequest.from_json(json.loads(Path(env[REQUEST_FILE]).read_text())))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(launch, "read_trained", lambda folder: folder)
    return found


OPTIONS: dict[str, Any] = {"data_digest": "d.dir", "code_revision": "abc", "device": "cpu"}


def test_one_process_trains_here(corpus: Any, tmp_path: Path) -> None:
    config = corpus.config(seeds=[1], epochs=1)
    found = launch_plan("campplus_only", corpus.index, corpus.features, tmp_path / "plan", config, **OPTIONS)
    assert (found.plan, list(found.outcomes)) == ("campplus_only", [1])


def test_several_processes_get_the_whole_request(corpus: Any, tmp_path: Path, requests: list[TrainingRequest]) -> None:
    config, target = corpus.config(seeds=[1], epochs=1, processes=3), tmp_path / "plan"
    assert launch_plan("hybrid", corpus.index, corpus.features, target, config, **OPTIONS, resume=True) == target
    assert requests == [
        TrainingRequest(
            config, ("hybrid",), target, "abc", index=corpus.index, features=corpus.features, single=True,
            data_digest="d.dir", device="cpu", resume=True, processes=3,
        )
    ]  # fmt: skip


def test_torchrun_starts_one_process_too_if_it_is_the_launcher(
    corpus: Any, tmp_path: Path, requests: list[TrainingRequest]
) -> None:
    config = corpus.config(seeds=[1], epochs=1, launcher="torchrun")
    launch_plan("campplus_only", corpus.index, corpus.features, tmp_path / "plan", config, **OPTIONS)
    assert [request.processes for request in requests] == [1]


@pytest.mark.parametrize(("returned", "code"), [(2, 2), (70, 70), (-9, 137)])
def test_the_exit_code_of_failed_processes_is_kept(
    corpus: Any, monkeypatch: pytest.MonkeyPatch, returned: int, code: int
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=returned))
    with pytest.raises(ProcessesFailed, match=r"\b4\b") as error:
        train_together(TrainingRequest(corpus.config(), ("hybrid",), Path("x"), "abc"), 4)
    assert error.value.exit_code == code
    assert ProcessesFailed.exit_code == 2, "the class is unchanged"


def test_a_request_as_json_is_the_same_request(corpus: Any) -> None:
    request = TrainingRequest(
        corpus.config(init="warm:old", learning_rate=0.1), ("baseline", "hybrid"), Path("out"), "abc", data=Path("d"),
        store="s3://b/x", mlflow="trials", resume=True,
    )  # fmt: skip
    assert TrainingRequest.from_json(json.loads(json.dumps(request.to_json()))) == request


SMALLER = [
    "encoders.muq.revision=null", "encoders.campplus.revision=null", "encoders.muq.layer=2", "training.width=16",
    "training.hidden=16", "training.lora.rank=4", "training.lora.alpha=2", "training.batch_clips=8",
    "training.epochs=2", "training.seeds=[1]",
]  # fmt: skip


def small(encoders: Path) -> Config:
    sources = [f"encoders.{kind}.source={encoders / f'{kind}-small'}" for kind in ("muq", "campplus")]
    return load_config(CONFIGS / "full.yaml", [*SMALLER, *sources, "training.processes=1"])


def train_small(corpus: Any, encoders: Path, target: Path, plans: Sequence[Plan]) -> None:
    config = small(encoders)
    extract_folder(
        corpus.data, corpus.index, target / "features", corpus.store, config.encoders, config.training, device="cpu"
    )
    for plan in plans:
        trained = launch_plan(
            plan, corpus.index, target / "features", target / plan, config,
            data_digest="d.dir", code_revision="abc", device="cpu",
        )  # fmt: skip
        scorer = load_scorer(trained.scorer_folder())
        assert scorer.description.tuning is not None
        assert (scorer.description.tuning.mode, scorer.description.tuning.from_layer) == ("lora", 0)
        assert scorer.description.head["kind"] == "songeval"
        assert (trained.scorer_folder() / "encoders" / "muq" / "model.safetensors").is_file()  # save: full
        assert any(".lora_A." in name for name in trained.chosen.trainable)


def test_the_production_configuration_at_small_size(corpus: Any, tiny_encoders: Path, tmp_path: Path) -> None:
    train_small(corpus, tiny_encoders, tmp_path, ["baseline", "hybrid"])
