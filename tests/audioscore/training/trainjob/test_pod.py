from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from audioscore.errors import DataError
from audioscore.files import read_json
from audioscore.scoring.trained_plan import read_trained
from audioscore.training.launch import TrainingRequest
from audioscore.training.recipe import load_plan_data
from audioscore.training.train import train_plans
from audioscore.training.trainjob import pod
from audioscore.training.trainjob.exchange import Exchange
from audioscore.training.trainjob.pod import TORCHRUN_VARIABLES, main, pack, unpack

TRAINJOB = {"exchange": "/unused", "image": "x"}


def packed(corpus: Any, exchange: Exchange, plan: Any, **changed: Any) -> TrainingRequest:
    """Return what a pod unpacks of a packed training."""
    config = corpus.config(seeds=[1], epochs=1, launcher="trainjob", trainjob=TRAINJOB, **changed)
    request = TrainingRequest(
        config, (plan,), Path("/unused"), "abc", index=corpus.index, features=corpus.features, single=True,
        data_digest="d.dir", device="cpu",
    )  # fmt: skip
    data = load_plan_data(plan, corpus.index, corpus.features, config.training, "d.dir", "abc", "cpu")
    pack(exchange, "job", request, data)
    return unpack(exchange, "job", Path("/unused"))


@pytest.mark.parametrize(
    ("plan", "changed"),
    [
        ("campplus_only", {}),
        ("hybrid", {"tuning": "lora", "lora": {"rank": 4, "alpha": 6}, "adversary": {"weight": 0.5}}),
    ],
)
def test_a_package_contains_all_that_training_reads(corpus: Any, tmp_path: Path, plan: str, changed: Any) -> None:
    """Training on the package gives the same figures as training on its sources."""
    request = packed(corpus, Exchange(str(tmp_path)), plan, **changed)
    assert (request.processes, request.out) == (1, tmp_path / "job" / "work")
    assert (request.plans, request.single, request.resume) == ((plan,), True, True)
    assert (request.data_digest, request.code_revision, request.device) == ("d.dir", "abc", "cpu")
    assert request.config.training.resolved_launcher == "inproc"
    assert request.index is not None
    assert request.features is not None
    assert all(path.is_relative_to(tmp_path) for path in (request.index, request.features, request.out))
    assert read_json(request.features / "extraction.json")["store"] == f"{tmp_path}/features"
    train_plans(request)
    expected = corpus.train(plan, tmp_path / "expected", seeds=[1], epochs=1, folds=None, **changed)
    found = read_trained(request.out)
    assert found.curves[1][0]["train_loss"] == expected.curves[1][0]["train_loss"]
    assert found.validation == expected.validation


def test_the_model_to_start_from_is_in_the_package(corpus: Any, tmp_path: Path) -> None:
    start = corpus.train("baseline", tmp_path / "start", seeds=[1], epochs=1).scorer_folder()
    request = packed(corpus, Exchange(str(tmp_path / "exchange")), "baseline", init=f"warm:{start}")
    copied = Path(request.config.training.init.removeprefix("warm:"))
    assert (copied.name, copied.is_relative_to(tmp_path / "exchange")) == (start.name, True)
    train_plans(request)
    described = read_json(read_trained(request.out).scorer_folder() / "scorer.json")
    assert described["training"]["init"] == f"warm: {start.name}", "without a path"


def test_a_package_with_a_changed_file_is_refused(corpus: Any, tmp_path: Path) -> None:
    packed(corpus, Exchange(str(tmp_path)), "campplus_only")
    (tmp_path / "job" / "input" / "request.json").write_text("{}")
    with pytest.raises(DataError, match=rf"^{tmp_path}/job/input/request\.json: "):
        unpack(Exchange(str(tmp_path)), "job", Path("/unused"))


def test_features_in_a_bucket_stay_there(corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = SimpleNamespace(is_bucket=True, uri="s3://songs/features")
    monkeypatch.setattr(pod, "FeatureStore", lambda uri: bucket)
    request = packed(corpus, Exchange(str(tmp_path)), "campplus_only")
    assert request.features is not None
    assert read_json(request.features / "extraction.json")["store"] == bucket.uri
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize("file_instead_of_folder", [False, True])
def test_an_exchange_without_a_training(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, file_instead_of_folder: bool
) -> None:
    for name, value in zip(TORCHRUN_VARIABLES, ("2", "0", "127.0.0.1", "29500"), strict=True):
        monkeypatch.setenv(name, value)
    if file_instead_of_folder:
        (tmp_path / "hybrid-1").write_text("a file where a folder should be")
    assert main(["--exchange", str(tmp_path), "--job", "hybrid-1"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert f"{tmp_path}/hybrid-1/input" in line


def test_outside_a_trainjob(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PET_NNODES", "2")
    for name in TORCHRUN_VARIABLES[1:]:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as stopped:
        main(["--exchange", "/x", "--job", "y"])
    assert stopped.value.code == 2
    assert "PET_NODE_RANK, PET_MASTER_ADDR, PET_MASTER_PORT" in capfd.readouterr().err
