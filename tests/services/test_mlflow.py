"""The registered scorer, loaded and behind HTTP; an MLflow server with PostgreSQL and S3."""

import base64
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from typer.testing import CliRunner

from audioscore.cli.app import app
from audioscore.encoders.muq import load_muq
from audioscore.scoring.calibration import Calibration
from audioscore.scoring.checkpoint import load_scorer, save_scorer
from audioscore.scoring.head import ScoreHead
from audioscore.scoring.network import ScoreNetwork
from audioscore.scoring.scorer import Description
from audioscore.tracking.connection import connect, initialise
from audioscore.tracking.lock import promotion_lock
from audioscore.tracking.registry import champion_periods, promote, read_changes, rollback, scorer_folder
from audioscore.tracking.runs import log_scorer

pytestmark = pytest.mark.services

MODEL = "singers"
READY_SECONDS = 300.0
ROUNDS = 6
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1", "GIT_PYTHON_REFRESH": "quiet"}
# For an environment with the requirements of the version, without this repository.
ALONE = """
import importlib.util, json, sys
assert importlib.util.find_spec("audioscore") is None
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
sounds = [open(name, "rb").read() for name in sys.argv[3:]]
one, batch = (model.predict(pandas.DataFrame({"audio": part})) for part in (sounds[:1], sounds))
files = [module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "audioscore"]
print(json.dumps({"one": one["score"].tolist(), "batch": batch["score"].tolist(), "files": files}))
"""
RACER = """
import sys
from audioscore.errors import GateRefused
from audioscore.tracking.connection import connect
from audioscore.tracking.registry import promote
client, own = connect(sys.argv[1]), [int(version) for version in sys.argv[2:]]
client.get_registered_model("singers")
print("ready", flush=True)
for line in sys.stdin:
    champion = int(line)
    version = next(one for one in own if one != champion)
    try:
        promote(client, "singers", version, expected=champion, why="faster")
        print(version, flush=True)
    except GateRefused as refusal:
        print(refusal, flush=True)
"""
HOLDER = """
import sys
from audioscore.tracking.connection import connect
from audioscore.tracking.lock import promotion_lock
with promotion_lock(connect(sys.argv[1]), "singers"):
    print("held", flush=True)
    sys.stdin.read()
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def serving(command: list[str], url: str, log: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """Start a server and wait until it responds at `url`; stop it at the end of the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=log.parent, env={**os.environ, **QUIET, **environment},
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except (OSError, urllib.error.HTTPError):
                if time.monotonic() > deadline or process.poll() is not None:
                    raise RuntimeError(f"no answer at {url}:\n{log.read_text(errors='replace')[-3000:]}") from None
                time.sleep(0.5)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)  # including its workers
        process.wait()


@pytest.fixture(scope="module")
def scorer(tiny_encoders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scorer folder with an untrained head."""
    source = tiny_encoders / "muq-small"
    shape: dict[str, Any] = {"dims": {"muq": 32}, "width": 8, "hidden": 8, "dropout": 0.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = ScoreNetwork(ScoreHead(**shape))
    calibration = Calibration((-1.0, 1.0), (60.0, 90.0), 5.0)
    encoders = {"muq": load_muq(str(source), layer=2).reference}
    description = Description("baseline", 5, encoders, shape, calibration, (), "0.dir", "unknown")
    folder = tmp_path_factory.mktemp("scorer") / "baseline"
    save_scorer(network, description, {"muq": source}, folder)
    return folder


@pytest.fixture(scope="module")
def registered(scorer: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a SQLite registry with the scorer as version 1."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    run = connect(uri).create_run(initialise(uri, MODEL, folder / "artifacts")).info.run_id
    assert log_scorer(scorer, run, MODEL) == 1
    return uri


@pytest.fixture(scope="module")
def sounds(tiny_corpus: Path) -> list[Path]:
    return [tiny_corpus / "audio" / f"c00{number}.wav" for number in (3, 4, 5)]


@pytest.fixture(scope="module")
def alone(registered: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with only the requirements of version 1."""
    uv, folder = str(Path(sys.executable).parent / "uv"), tmp_path_factory.mktemp("alone")
    code = Path(registered.removeprefix("sqlite:///")).parent / "artifacts"
    (requirements,) = code.glob("**/requirements.txt")
    python = folder / "environment" / "bin" / "python"
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, str(python.parents[1])],
        [uv, "pip", "install", "--quiet", "--python", str(python), "--requirement", str(requirements)],
    ):
        subprocess.run(command, check=True)
    return python


def test_a_version_is_self_contained(
    registered: str, scorer: Path, sounds: list[Path], alone: Path, tmp_path: Path
) -> None:
    command = [str(alone), "-I", "-c", ALONE, registered, f"models:/{MODEL}/1", *map(str, sounds)]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **QUIET}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    printed = json.loads(done.stdout.splitlines()[-1])
    expected = [load_scorer(scorer).score(sound).score for sound in sounds]
    assert printed["batch"] == pytest.approx(expected, abs=1e-4)
    assert printed["one"] == pytest.approx(expected[:1], abs=1e-4)
    code = Path(registered.removeprefix("sqlite:///")).parent / "artifacts"
    assert [file for file in printed["files"] if Path(file).is_relative_to(code)] == printed["files"] != []


def test_mlflow_serve_gives_the_same_score(registered: str, scorer: Path, sounds: list[Path], tmp_path: Path) -> None:
    port = free_port()
    command = [
        sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{MODEL}/1",
        "--env-manager", "local", "-h", "127.0.0.1", "-p", str(port),
    ]  # fmt: skip
    base = f"http://127.0.0.1:{port}"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it looks for uvicorn there
    environment = {"MLFLOW_TRACKING_URI": registered, "PATH": path}
    with serving(command, f"{base}/ping", tmp_path / "log", environment):
        rows = [{"audio": base64.b64encode(content).decode()} for content in (sounds[0].read_bytes(), b"no audio")]
        request = urllib.request.Request(
            f"{base}/invocations",
            json.dumps({"dataframe_records": rows}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            good, bad = json.load(response, parse_constant=pytest.fail)["predictions"]
    scored = CliRunner().invoke(app, ["score", str(sounds[0]), "--model", str(scorer), "--json"])
    (row,) = json.loads(scored.stdout)["results"]
    assert good["score"] == pytest.approx(row["score"], abs=1e-4)
    assert [good["lo"], good["hi"]] == pytest.approx(row["interval"], abs=1e-4)
    assert good["error"] is None
    assert bad["score"] is None
    assert "decode" in bad["error"]


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """A PostgreSQL server on loopback; SQLAlchemy's address of an empty database."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("PostgreSQL is not installed: see .ci/packages")
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # it refuses to run as root
    folder, port = Path(tempfile.mkdtemp(prefix="postgresql-", dir="/tmp")), free_port()
    if as_user:
        shutil.chown(folder, "postgres")

    def run(program: str, *arguments: str) -> None:
        command = [*as_user, str(programs[-1] / program), *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    cluster, settings = str(folder / "cluster"), f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    run("initdb", "-D", cluster, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
    try:
        run("pg_ctl", "-D", cluster, "-l", str(folder / "log"), "-o", settings, "-w", "-t", "120", "start")
        run("createdb", "-h", str(folder), "-p", str(port), "-U", "postgres", "mlflow")
        yield f"postgresql+psycopg2://postgres@127.0.0.1:{port}/mlflow"
    finally:
        subprocess.run([*as_user, str(programs[-1] / "pg_ctl"), "-D", cluster, "-m", "immediate", "stop"], check=False,
                       cwd=folder, capture_output=True)  # fmt: skip
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def server(postgresql: str, s3_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an `mlflow server` on PostgreSQL with its artifacts in the S3 bucket `mlflow`."""
    environment = s3_server.environment
    session = boto3.session.Session(environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])
    s3 = session.client("s3", endpoint_url=environment["AWS_ENDPOINT_URL"], region_name="us-east-1")
    s3.create_bucket(Bucket="mlflow")
    port = free_port()
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", postgresql,
        "--artifacts-destination", "s3://mlflow/artifacts", "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1",
    ]  # fmt: skip
    for_mlflow = {
        **environment,
        "MLFLOW_S3_ENDPOINT_URL": environment["AWS_ENDPOINT_URL"],
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes that these tests do not need
    }
    address, log = f"http://127.0.0.1:{port}", tmp_path_factory.mktemp("server") / "log"
    with serving(command, f"{address}/health", log, for_mlflow):
        yield address
        stored = s3.list_objects_v2(Bucket="mlflow")["Contents"]
        assert any(one["Key"].endswith("head.safetensors") for one in stored)
    s3.close()


def test_a_server_registers_promotes_concurrently_and_rolls_back(
    server: str, scorer: Path, sounds: list[Path], tmp_path: Path
) -> None:
    client = connect(server)
    run = client.create_run(initialise(server, MODEL, tmp_path)).info.run_id
    assert log_scorer(scorer, run, MODEL) == 1
    for version in (2, 3, 4, 5):
        assert int(client.create_model_version(MODEL, f"models:/{MODEL}/1").version) == version
    promote(client, MODEL, 1, expected=None, why="first model")
    folders = scorer, scorer_folder(server, f"models:/{MODEL}@champion")
    assert len({load_scorer(folder).score(sounds[0]).raw for folder in folders}) == 1
    champions = [1, *race(server, ROUNDS)]
    found = champion_periods(read_changes(client, MODEL), champions[-1])
    assert [one.champion for one in found] == champions
    assert all(one.carried_out for one in found)
    assert rollback(client, MODEL, "as a drill") == (champions[-2], champions[-1])
    assert int(client.get_model_version_by_alias(MODEL, "champion").version) == champions[-2]
    assert [one.name for one in client.search_registered_models()] == [MODEL]  # no lock is left


def race(server: str, rounds: int) -> list[int]:
    """Two processes promote at the same time in each round; returns the champion of each round."""
    champions = [1]
    commands = [[sys.executable, "-c", RACER, server, *own] for own in (("2", "4"), ("3", "5"))]
    with contextlib.ExitStack() as stack:
        racers = [
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
            )
            for command in commands
        ]
        streams = [(one.stdin, one.stdout) for one in racers if one.stdin is not None and one.stdout is not None]
        assert [out.readline() for _, out in streams] == ["ready\n"] * 2
        for _ in range(rounds):
            for into, _out in streams:
                into.write(f"{champions[-1]}\n")
            printed = [out.readline().strip() for _, out in streams]
            (winner,) = [int(one) for one in printed if one.isdigit()]
            (refusal,) = [one for one in printed if not one.isdigit()]
            assert re.match(rf"{MODEL}: .*v{champions[-1]} .*v{winner}\b", refusal)
            champions.append(winner)
        for into, _out in streams:
            into.close()
    return champions[1:]


def test_the_lock_of_a_killed_process_expires(server: str) -> None:
    command = [sys.executable, "-c", HOLDER, server]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.kill()
    client, left = connect(server), "singers.promotion-lock"
    assert client.get_registered_model(left).tags["holder"]
    with promotion_lock(client, MODEL, lease=10):
        pass
    assert not [one.name for one in client.search_registered_models() if left in one.name]
