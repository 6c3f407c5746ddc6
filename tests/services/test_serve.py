"""`audioscore serve` as a process: scores, documents, shutdown, and a change of the champion."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audioscore import load_scorer
from audioscore.tracking.connection import connect, initialise
from audioscore.tracking.runs import log_scorer
from benchmarks.serving import ROOT, SERVE, Load, RunningService, demo_clips, make_scorer, overload

pytestmark = pytest.mark.services

TOKEN = "a-token.of-letters"


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two scorers that differ in their heads."""
    folder = tmp_path_factory.mktemp("scorers")
    return make_scorer(folder / "first", seed=5), make_scorer(folder / "second", seed=6)


def scores_of(model: Path, clips: list[tuple[str, bytes]]) -> list[float]:
    scorer = load_scorer(model, device="cpu")
    return [scorer.score(data).score for _, data in clips]


@pytest.fixture(scope="module")
def served(scorers: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "token").write_text(f"{TOKEN}\n")
    options = ["--token-file", str(folder / "token"), "--queue", "8"]
    with RunningService(str(scorers[0]), folder / "log", *options) as running:
        yield running.ready()


def test_the_command_line_returns_the_same_scores(served: RunningService, scorers: tuple[Path, Path]) -> None:
    """Twelve recordings in one request, in twelve at once, and through `audioscore score`."""
    clips, key = demo_clips(12), {"Authorization": f"Bearer {TOKEN}"}
    status, together = served.score(*clips, path="/score?timeline=true", headers=key)
    assert status == 200
    assert together["model"] == {"name": "first", "version": None, "uri": "first"}
    assert [row["file"] for row in together["results"]] == [name for name, _ in clips]
    alone: dict[int, Any] = {}

    def one(number: int) -> None:
        while (found := served.score(clips[number], headers=key))[0] == 429:
            time.sleep(0.2)
        alone[number] = found[1]["results"][0]

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(clips))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    paths = [str(ROOT / "data" / "audio" / name) for name, _ in clips]
    command = [sys.executable, "-m", "audioscore.cli.app", "score", *paths, "--model", str(scorers[0]), "--json"]
    printed = subprocess.run(command, capture_output=True, check=True).stdout
    for number, row in enumerate(json.loads(printed)["results"]):
        for found in (together["results"][number], alone[number]):
            assert found["score"] == pytest.approx(row["score"], abs=1e-4)
            assert found["interval"] == pytest.approx(row["interval"], abs=1e-4)
            assert found["seconds"] == row["seconds"]
            assert found["error"] is None
        assert alone[number]["timeline"] is None
        segments = together["results"][number]["timeline"]
        assert segments[0]["start"] == 0
        assert segments[-1]["end"] == pytest.approx(row["seconds"], abs=0.01)


def test_the_service_describes_its_model(served: RunningService) -> None:
    status, headers, text = served.get("/model")
    assert status == 200
    card = json.loads(text)
    assert card["plan"] == "hybrid"
    assert card["scale"] == [50, 99]
    assert card["bands"][-1] == [95, 100]
    assert card["limits"] == {"megabytes": 100, "files": 32, "minutes": 15}
    assert card["token_required"] is True
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "media-src 'self' blob:" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert [served.get(path)[0] for path in ("/healthz", "/readyz", "/", "/openapi.json")] == [200] * 4
    figures = served.get("/metrics")[2].decode()
    assert 'audioscore_model_info{name="first",uri="first",version=""} 1.0' in figures
    assert "process_resident_memory_bytes" in figures


def test_a_token_is_required(served: RunningService) -> None:
    for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        status, document = served.score(demo_clips(1)[0], headers=given)
        assert status == 401
        assert "Authorization: Bearer TOKEN" in document["error"]


def test_schemathesis_finds_no_problem(served: RunningService, tmp_path: Path) -> None:
    tool = Path(sys.executable).with_name("schemathesis")
    done = subprocess.run(
        [
            str(tool), "run", f"http://127.0.0.1:{served.port}/openapi.json", "--checks", "all", "-n", "300",
            "--seed", "7", "--no-color", "-H", f"Authorization: Bearer {TOKEN}",
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_shutdown_loses_no_accepted_request(scorers: tuple[Path, Path], tmp_path: Path, sent: signal.Signals) -> None:
    """Accepted requests are completed, others get 503 or no connection, and the exit code is 0.

    A terminal sends SIGINT to all processes of the service.
    """
    clips = demo_clips(6)
    expected = scores_of(scorers[0], clips)
    responses: list[tuple[int, Any]] = []
    with RunningService(str(scorers[0]), tmp_path / "log") as running:
        running.ready()

        def client(number: int) -> None:
            for _ in range(200):
                try:
                    status, document = running.score(clips[number])
                except ConnectionRefusedError:
                    return
                if status == 200:
                    assert document["results"][0]["score"] == pytest.approx(expected[number], abs=2e-4)
                responses.append((status, document))
                if status == 503:
                    return

        threads = [threading.Thread(target=client, args=(number,)) for number in range(len(clips))]
        for thread in threads:
            thread.start()
        time.sleep(2)
        (os.killpg if sent == signal.SIGINT else os.kill)(running.process.pid, sent)
        for thread in threads:
            thread.join()
        assert running.process.wait(timeout=40) == 0
        log = (tmp_path / "log").read_text()
    assert {status for status, _ in responses} <= {200, 503}
    assert sum(status == 200 for status, _ in responses) >= 6
    assert sent.name in log
    assert "Traceback" not in log


def test_a_new_champion_is_loaded_without_a_failed_request(scorers: tuple[Path, Path], tmp_path: Path) -> None:
    """The champion changes to a second version, then to a broken one, which is not used; responses name the version."""
    tracking_uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    experiment = initialise(tracking_uri, "audioscore", tmp_path / "mlartifacts")
    client = connect(tracking_uri)
    run = client.create_run(experiment).info.run_id
    versions = [log_scorer(folder, run, "audioscore") for folder in scorers]
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "scorer.json").write_text("{}")
    versions.append(log_scorer(broken, run, "audioscore"))
    clips = demo_clips(4)
    expected = {version: scores_of(folder, clips) for version, folder in zip(versions, scorers, strict=False)}
    client.set_registered_model_alias("audioscore", "champion", str(versions[0]))
    failures: list[Any] = []
    seen: set[int] = set()
    end = threading.Event()
    home = {"AUDIOSCORE_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": ""}
    uri = "models:/audioscore@champion"
    with RunningService(uri, tmp_path / "log", "--watch", "1", environment=home) as running:
        running.ready()

        def client_loop(number: int) -> None:
            while not end.is_set():
                status, document = running.score(clips[number])
                version = document.get("model", {}).get("version")
                if status != 200 or abs(document["results"][0]["score"] - expected[version][number]) > 2e-4:
                    failures.append((status, document))
                seen.add(version)

        threads = [threading.Thread(target=client_loop, args=(number,)) for number in range(len(clips))]
        for thread in threads:
            thread.start()
        try:
            time.sleep(1)
            client.set_registered_model_alias("audioscore", "champion", str(versions[1]))
            until(lambda: json.loads(running.get("/model")[2])["version"] == versions[1])
            time.sleep(1)
            client.set_registered_model_alias("audioscore", "champion", str(versions[2]))
            until(lambda: 'switches_total{outcome="failed"} 1.0' in running.get("/metrics")[2].decode())
            time.sleep(2)
        finally:
            end.set()
            for thread in threads:
                thread.join()
        assert failures == []
        assert seen == set(versions[:2])
        card = json.loads(running.get("/model")[2])
        assert (card["name"], card["version"], card["uri"]) == ("audioscore", versions[1], uri)
        assert f'version="{versions[1]}"}} 1.0' in running.get("/metrics")[2].decode()
        log = running.log.read_text()
    assert len(re.findall("models:/audioscore/2 .*models:/audioscore/1", log)) == 1, log
    assert len(re.findall("models:/audioscore/2 .*/broken", log)) == 1, log


def until(check: Any, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_failed_start_is_one_error(served: RunningService, scorers: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    for options, message in (
        (["--port", str(served.port)], f"127.0.0.1:{served.port}: "),
        (["--model", str(tmp_path / "gone"), "--port", "0"], str(tmp_path / "gone")),
        (["--model", "models:/audioscore@champion", "--port", "0"], "registered"),
        (["--token-file", str(tmp_path / "empty"), "--port", "0"], "token"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", SERVE, "serve", "--model", str(scorers[0]), *options],
            capture_output=True, text=True, timeout=120, check=False, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_a_load_of_twice_the_capacity(scorers: tuple[Path, Path], tmp_path: Path) -> None:
    """A short form of benchmarks/serving.py: correct scores or status 429, constant memory, and recovery afterwards."""
    clips = demo_clips(12)
    with RunningService(str(scorers[0]), tmp_path / "log", "--queue", "16") as running:
        found = overload(Load(running.ready(), clips, scores_of(scorers[0], clips)), running, 10.0, 4.0)
    for phase in ("before", "during", "after"):
        assert found[phase].wrong == [], phase
        assert found[phase].statuses["lost"] == 0
    assert found["during"].statuses["429"] > 0
    assert set(found["after"].statuses) == {"200"}
    middle, last, most = found["rss"]
    assert last < 1.1 * middle + 20
    assert most < 1.2 * middle + 50
