"""Nothing that users rely on is missing: the list of commit 1bcff8a against the code, documents, files and service."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audioscore.evaluation.gate import decision


@pytest.fixture(scope="module")
def listed(interface: Any) -> dict[str, Any]:
    document: dict[str, Any] = interface.recorded()
    return document


def test_commands_options_and_arguments(interface: Any, listed: Any) -> None:
    assert len(listed["commands"]) > 20
    assert interface.missing_in("commands", listed["commands"], interface.commands()) == []


def test_programs(interface: Any, listed: Any) -> None:
    assert interface.missing_in("programs", listed["programs"], interface.programs()) == []


def test_python_names_and_parameters(interface: Any, listed: Any) -> None:
    assert interface.missing_in("python", listed["python"], interface.python_names()) == []


def test_environment_variables(interface: Any, listed: Any) -> None:
    assert set(listed["environment"]) <= set(interface.environment())


def test_old_configuration_keys_and_choices_are_accepted(interface: Any, listed: Any, state: Any) -> None:
    assert len(listed["configuration"]) > 150
    assert interface.refused_keys(state.root / "configs/every.yaml", listed["configuration"]) == []


def test_the_check_finds_what_is_missing(interface: Any, state: Any) -> None:
    assert interface.refused_keys(state.root / "configs/every.yaml", {"training.nothing": []})
    assert interface.refused_keys(state.root / "configs/every.yaml", {"training.head": ["nothing"]})
    assert interface.missing_in("x", {"a": ["b", "c"], "d": []}, {"a": ["c"]}) == ["x: a: b", "x: d"]
    assert interface.keys_in({"a": [{"b": 1}, {"c": {"singer01": {"d": None}}}]}) == {
        "a", "a[].b", "a[].c", "a[].c.*", "a[].c.*.d"
    }  # fmt: skip


EVALUATE = ("evaluate", "scorers/hybrid", "--data", "data")
DOCUMENTS = {
    "score": ("score", "clips/good.flac", "--model", "scorers/hybrid", "--timeline", "--json"),
    "models": ("models", "--json"),
    "models --history": ("models", "--history", "--json"),
    "evaluate": (*EVALUATE, "--config", "configs/run.yaml", "--json"),
    "compare": (
        "compare", "scorers/baseline", "scorers/hybrid", "--data", "data", "--config", "configs/run.yaml", "--json"
    ),
    "data validate": ("data", "validate", "data", "--config", "configs/run.yaml", "--json"),
    "data status": ("data", "status", "data", "--json"),
    "doctor": ("doctor", "--json"),
    "suggest": ("suggest", "clips", "--json"),
    "encoders pull": ("encoders", "pull", "--config", "configs/run.yaml", "--json"),
    "promote": ("promote", "1", "--data", "data", "--config", "configs/run.yaml", "--json"),
    "rollback": ("rollback", "--json"),
    "convert": (
        "convert", "legacy/adapters", "new", "--muq", "legacy/muq", "--lora-r", "2", "--lora-alpha", "3", "--json"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DOCUMENTS)
def test_keys_of_json_documents(interface: Any, state: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        decision, "MIN_SINGERS", 3
    )  # the fixture's data have fewer test singers than the gate needs now
    result = state.call(*DOCUMENTS[name])
    assert result.code in (0, 1, 3), result.err
    assert interface.missing_keys(name, result.document) == []


def test_keys_of_add_and_remove(interface: Any, state: Any) -> None:
    new = state.root / "new"
    new.mkdir()
    (state.root / "clips/good.flac").rename(new / "good.flac")
    (new / "labels.csv").write_text(
        "audio_file,score,singer_id,song_id,source\ngood.flac,90,new1,song1,ktv\nmissing.flac,80,new1,song1,ktv\n"
    )
    options = ("--data", "data", "--no-version", "--config", state.run_yaml, "--json")
    added = state.call("data", "add", "new/labels.csv", *options)
    assert added.code == 3, added.err
    assert interface.missing_keys("data add", added.document) == []
    removed = state.call("data", "remove", "audio/c000.m4a", *options)
    assert removed.code == 0, removed.err
    assert interface.missing_keys("data remove", removed.document) == []


def test_keys_of_train_and_what_it_writes(interface: Any, state: Any) -> None:
    settings = (
        "tuning=lora", "lora.rank=2", "lora.alpha=3", "layers=mix", "head=songeval", "attention_heads=4",
        "attention_layers=1", "head_epochs=1", "epochs=2",
    )  # fmt: skip
    result = state.call(
        "train", "--data", "data", "--config", state.run_yaml, "--out", "out", "--plan", "hybrid", "--device", "cpu",
        *(part for setting in settings for part in ("--set", f"training.{setting}")), "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert interface.missing_keys("train", result.document) == []
    trained = Path(result.document["hybrid"]["folder"])
    for name, path in (("plan.json", "plan.json"), ("scorer.json of tuned", "seed-1/scorer.json")):
        document = json.loads((trained / path).read_text())
        assert interface.missing_keys(name, document, kind="files") == []


def test_keys_of_scorers_over_frozen_encoders(interface: Any, state: Any) -> None:
    plans = ("baseline", "hybrid")
    result = state.call(
        "train", "--data", "data", "--config", state.run_yaml, "--out", "out", "--device", "cpu", "--set",
        "training.epochs=1", *(part for plan in plans for part in ("--plan", plan)),
    )  # fmt: skip
    assert result.code == 0, result.err
    for plan in plans:
        document = json.loads((state.root / f"out/{plan}/seed-1/scorer.json").read_text())
        assert interface.missing_keys(f"scorer.json of {plan}", document, kind="files") == []


def test_columns_of_tables_and_keys_of_evaluation_json(interface: Any, state: Any) -> None:
    result = state.call(*EVALUATE, "--config", "configs/run.yaml", "--out", "out")
    assert result.code == 0, result.err
    columns = (state.root / "out/predictions.csv").read_text().splitlines()[0].split(",")
    assert interface.missing_keys("predictions.csv", columns, kind="files") == []
    figures = json.loads((state.root / "out/evaluation.json").read_text())
    assert interface.missing_keys("evaluation.json", figures, kind="files") == []
    table = state.call("score", "clips/good.flac", "--model", "scorers/hybrid", "--csv")
    assert interface.missing_keys("score --csv", table.out.splitlines()[0].split(",")) == []


def test_keys_of_sorted_data(interface: Any, state: Any) -> None:
    assert state.call("data", "sort", "data", "--config", state.run_yaml).code == 0
    for name in ("splits.json", "index/train.json"):
        document = json.loads((state.root / "data" / name).read_text())
        assert interface.missing_keys(name, document, kind="files") == []


def test_keys_of_a_dry_run(interface: Any, state: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "audioscore.cli.app", "run", "--config", state.run_yaml, "--dry-run", "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert interface.missing_keys("run --dry-run", json.loads(done.stdout)) == []


@pytest.fixture
def service(state: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a service that scores with the baseline."""
    monkeypatch.setenv("NO_PROXY", "*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (state.root / "serve.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "audioscore.cli.app", "serve", "--model", "scorers/baseline", "--port", str(port)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 120
        while not answers(f"{address}/readyz"):
            assert process.poll() is None, (state.root / "serve.log").read_text()
            assert time.monotonic() < until
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        assert process.wait(60) == 0
        log.close()


def answers(url: str) -> bool:
    try:
        return bool(json.loads(get(url))["status"] == "ok")
    except (urllib.error.URLError, ConnectionError):
        return False


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())


def test_routes_and_answers_of_the_service(interface: Any, listed: Any, state: Any, service: str) -> None:
    openapi, metrics = json.loads(get(f"{service}/openapi.json")), get(f"{service}/metrics")
    assert interface.missing_in("service", listed["service"], interface.routes(openapi, metrics)) == []
    assert json.loads(get(f"{service}/healthz")) == {"status": "ok"}
    assert {"name", "version", "uri", "plan", "scale", "bands", "limits", "token_required"} <= set(
        json.loads(get(f"{service}/model"))
    )
    assert "<html" in get(f"{service}/").lower()
    name = "clips/good.flac"
    body = b"".join((
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="good.flac"\r\n\r\n',
        (state.root / name).read_bytes(), b"\r\n--x--\r\n",
    ))  # fmt: skip
    request = urllib.request.Request(
        f"{service}/score?timeline=true", body, {"Content-Type": "multipart/form-data; boundary=x"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        document = json.loads(answer.read())
    (row,) = document["results"]
    assert set(document["model"]) >= {"name", "version", "uri"}
    assert set(row) >= {"file", "score", "interval", "raw", "seconds", "error", "timeline"}
    assert row["score"] == pytest.approx(state.expected["scores"]["scorers/baseline"][name]["score"], abs=1e-3)
    with pytest.raises(urllib.error.HTTPError) as refused:
        get(f"{service}/nothing")
    assert refused.value.code == 404
    assert set(json.loads(refused.value.read())) == {"error"}
    refused.value.close()
