"""Two machines on loopback: real processes, as the pods of a TrainJob start them, with its variables PET_*."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from audioscore.scoring.trained_plan import read_trained
from audioscore.training.launch import TrainingRequest, launch_plan
from audioscore.training.recipe import load_plan_data
from audioscore.training.trainjob.exchange import Exchange
from audioscore.training.trainjob.pod import MODEL, pack

pytestmark = pytest.mark.services

POD = [sys.executable, "-m", "audioscore.training.trainjob.pod"]
JOB = "hybrid-0123456789a"
CHANGED: dict[str, Any] = {
    "seeds": [1], "epochs": 2, "batch_clips": 10, "dropout": 0.3, "tuning": "lora", "lora": {"rank": 4, "alpha": 6},
}  # fmt: skip


def request(corpus: Any) -> TrainingRequest:
    return TrainingRequest(
        corpus.config(**CHANGED), ("hybrid",), Path("/unused"), "abc", index=corpus.index, features=corpus.features,
        single=True, data_digest="d.dir", device="cpu",
    )  # fmt: skip


def packed(exchange: str, wanted: TrainingRequest) -> int:
    assert wanted.index is not None
    assert wanted.features is not None
    data = load_plan_data("hybrid", wanted.index, wanted.features, wanted.config.training, "d.dir", "abc", "cpu")
    return pack(Exchange(exchange), JOB, wanted, data)


def run_pods(exchange: str, folder: Path) -> list[tuple[int, str]]:
    """Exit code and standard error of both pods; the environment is what Trainer's torch plugin sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "auto",
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": port,
    }
    pods = []
    for rank in range(2):
        (folder / f"tmp-{rank}").mkdir(parents=True)  # pods have no scratch folder in common
        own = {"PET_NODE_RANK": rank, "TMPDIR": folder / f"tmp-{rank}", "AUDIOSCORE_HOME": folder / f"home-{rank}"}
        command = [*POD, "--exchange", exchange, "--job", JOB]
        env = {**os.environ, **{name: str(value) for name, value in (machines | own).items()}}
        pods.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    logs = [pod.communicate(timeout=600)[1] for pod in pods]
    assert list(folder.glob("tmp-*/audioscore-*")) == [], "nothing is left behind"
    return [(pod.returncode, text) for pod, text in zip(pods, logs, strict=True)]


def same_scorers(ours: Path, wanted: Path) -> None:
    found, expected = read_trained(ours), read_trained(wanted)
    assert found.curves.keys() == expected.curves.keys()
    losses = [[entry["train_loss"] for entry in one.curves[1]] for one in (found, expected)]
    assert losses[0] == losses[1]
    assert found.validation == expected.validation
    weights = sorted(path.relative_to(wanted) for path in wanted.rglob("*.safetensors"))
    assert sorted(path.relative_to(ours) for path in ours.rglob("*.safetensors")) == weights
    for name in weights:
        mine, theirs = load_file(ours / name), load_file(wanted / name)
        assert {key for key in theirs if not (mine[key] == theirs[key]).all()} == set(), name


@pytest.fixture(scope="module")
def expected(corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same by torchrun's two processes on one machine."""
    target = tmp_path_factory.mktemp("expected") / "plan"
    launch_plan(
        "hybrid", corpus.index, corpus.features, target, corpus.config(**CHANGED, processes=2),
        data_digest="d.dir", code_revision="abc", device="cpu",
    )  # fmt: skip
    return target


def test_two_machines_with_a_shared_volume(corpus: Any, expected: Path, tmp_path: Path) -> None:
    exchange = Exchange(str(tmp_path / "exchange"))
    assert packed(exchange.uri, request(corpus)) > 0
    assert packed(exchange.uri, request(corpus)) == 0, "features are shared by all jobs"
    pods = run_pods(exchange.uri, tmp_path / "first")
    assert [code for code, _ in pods] == [0, 0], pods
    assert [text.count("hybrid, seed 1: 30 clips") for _, text in pods] == [1, 0], "only the main process logs"
    same_scorers(exchange.get_folder(f"{JOB}/{MODEL}", tmp_path / "unused"), expected)
    exchange.remove(f"{JOB}/{MODEL}")  # as if the first pod had been killed before it wrote its model
    again = run_pods(exchange.uri, tmp_path / "again")
    assert [code for code, _ in again] == [0, 0], again
    assert "hybrid, seed 1: 30 clips" not in again[0][1], "a finished seed is not trained again"
    same_scorers(exchange.get_folder(f"{JOB}/{MODEL}", tmp_path / "unused"), expected)


def test_two_machines_with_a_bucket(corpus: Any, expected: Path, tmp_path: Path, own_bucket: str) -> None:
    bucket = f"s3://{own_bucket}/team 1"
    assert packed(bucket, request(corpus)) > 0
    pods = run_pods(bucket, tmp_path)
    assert [code for code, _ in pods] == [0, 0], pods
    exchange = Exchange(bucket)
    same_scorers(exchange.get_folder(f"{JOB}/{MODEL}", tmp_path / "model"), expected)
