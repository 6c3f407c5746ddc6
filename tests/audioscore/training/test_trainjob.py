"""A training on a cluster, from the step's side: a Kubernetes API on loopback answers the real SDK and client."""

import http.server
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from audioscore.errors import AudioscoreError
from audioscore.training import trainjob
from audioscore.training.launch import launch_plan
from audioscore.training.trainjob_exchange import Exchange

# The SDK's own, of pydantic.
pytestmark = pytest.mark.filterwarnings("ignore:Support for class-based `config`:DeprecationWarning")

GOLDEN = Path(__file__).with_name("trainjob.yaml")
JOBS = r"/apis/trainer\.kubeflow\.org/v1alpha1/namespaces/songs/trainjobs"
RUNTIME = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "ClusterTrainingRuntime",
    "metadata": {"name": "torch-distributed", "labels": {"trainer.kubeflow.org/framework": "torch"}},
    "spec": {
        "mlPolicy": {"numNodes": 1, "torch": {}},
        "template": {"spec": {"replicatedJobs": [{
            "name": "node",
            "template": {
                "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
                "spec": {"template": {"spec": {"containers": [{"name": "node", "image": "localhost/torch:1"}]}}},
            },
        }]}},
    },
}  # fmt: skip
TRAINJOB = {
    "exchange": "", "image": "localhost/audioscore-python@sha256:" + "ab" * 32, "num_nodes": 2,
    "resources_per_node": {"gpu": 1, "cpu": 8, "memory": "32Gi"}, "env": {"HF_HUB_OFFLINE": "1"},
}  # fmt: skip


def condition(kind: str, reason: str = "", message: str = "") -> dict[str, Any]:
    return {"conditions": [{"type": kind, "status": "True", "reason": reason, "message": message}]}


RUNNING = {"jobsStatus": [{"name": "node", "active": 1, "ready": 1, "failed": 0, "succeeded": 0, "suspended": 0}]}
COMPLETE, FAILED = condition("Complete", "JobsCompleted"), condition("Failed", "JobsFailed", "2 of 2 pods failed")


class Kubernetes:
    """An API server that holds TrainJobs and their pods' logs.

    Each time a job is read, its `story` goes on by one status; the last stays. `on_status` is told each. `refuse` are
    (pattern of "METHOD path", status, how often) that are answered with an error.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.created: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.story: list[dict[str, Any]] = []
        self.pods: dict[str, list[str]] = {}
        self.refuse: list[list[Any]] = []
        self.runtimes = {"torch-distributed": RUNTIME}
        self.on_status: Callable[[dict[str, Any]], object] = lambda status: None
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                status, value = api.answer(self.command, self.path, body)
                content = value.encode() if isinstance(value, str) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain" if isinstance(value, str) else "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_DELETE = answer  # noqa: N815

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def answer(self, method: str, address: str, body: Any) -> tuple[int, Any]:
        url = urlsplit(address)
        request = f"{method} {url.path}"
        self.asked.append(request)
        for one in self.refuse:
            if re.search(one[0], request) and one[2] > 0:
                one[2] -= 1
                return one[1], {"kind": "Status", "status": "Failure", "message": "no", "code": one[1]}
        name = url.path.rsplit("/", 1)[1]
        if request.startswith("POST") and re.search(f"{JOBS}$", request):
            if body["metadata"]["name"] in self.jobs:
                return 409, {"kind": "Status", "reason": "AlreadyExists"}
            self.created.append(body)
            self.add(body)
            return 201, body
        if re.search(f"{JOBS}/", request) and name in self.jobs:
            if method == "DELETE":
                del self.jobs[name]
                return 200, {"kind": "Status", "status": "Success"}
            self.jobs[name]["status"] = status = self.story.pop(0) if len(self.story) > 1 else self.story[0]
            self.on_status(status)
            return 200, self.jobs[name]
        if "/clustertrainingruntimes/" in request and name in self.runtimes:
            return 200, self.runtimes[name]
        if request.endswith("/namespaces/songs/pods"):
            return 200, {"kind": "PodList", "items": [self.pod(pod) for pod in sorted(self.pods, reverse=True)]}
        if request.endswith("/log"):
            lines = self.pods[url.path.split("/")[-2]]
            tail = parse_qs(url.query).get("tailLines")
            return 200, "".join(f"{line}\n" for line in (lines[-int(tail[0]) :] if tail else lines))
        return 404, {"kind": "Status", "reason": "NotFound", "code": 404}

    def add(self, job: dict[str, Any], age: timedelta = timedelta()) -> None:
        created = (datetime.now(UTC) - age).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.jobs[job["metadata"]["name"]] = {
            **job, "metadata": {**job["metadata"], "namespace": "songs", "creationTimestamp": created},
        }  # fmt: skip

    @staticmethod
    def pod(name: str) -> dict[str, Any]:
        labels = {"batch.kubernetes.io/job-completion-index": name.split("-")[-2]}
        created = f"2026-01-01T00:00:{'01' if name.endswith('new') else '00'}Z"
        metadata = {"name": name, "labels": labels, "creationTimestamp": created}
        return {"metadata": metadata, "status": {"phase": "Running"}}


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubernetes]:
    api = Kubernetes()
    use_kubeconfig(tmp_path / "kubeconfig", f"http://127.0.0.1:{api.server.server_address[1]}", monkeypatch)
    monkeypatch.setattr(trainjob, "POLL_SECONDS", 0.0)
    yield api
    api.server.shutdown()
    api.server.server_close()


def use_kubeconfig(path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = {
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": server}}], "users": [{"name": "me", "user": {}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "songs"}}],
    }  # fmt: skip
    path.write_text(yaml.safe_dump(value))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))


@pytest.fixture(scope="module")
def model(ground: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pods would have trained."""
    return Path(ground.train("campplus_only", tmp_path_factory.mktemp("trained") / "plan", seeds=[1], epochs=1).folder)


class Step:
    """The step of a pipeline that trains on the cluster; it may be started again."""

    def __init__(self, ground: Any, folder: Path, model: Path) -> None:
        self.ground, self.folder, self.model = ground, folder, model
        self.exchange = Exchange(str(folder / "exchange"))

    def train(self, **changed: Any) -> Any:
        settings = {**TRAINJOB, "exchange": self.exchange.uri, **changed}
        config = self.ground.config(seeds=[1], epochs=1, launcher="trainjob", trainjob=settings)
        return launch_plan(
            "campplus_only", self.ground.index, self.ground.features, self.folder / "target", config,
            data_digest="d.dir", code_revision="abc", device="cpu",
        )  # fmt: skip

    def finish(self, status: dict[str, Any]) -> None:
        """The pods write their model before the job is complete."""
        if status is COMPLETE:
            assert self.exchange.folder is not None
            (job,) = (path.name for path in self.exchange.folder.iterdir() if path.name.startswith("campplus-"))
            self.exchange.put_folder(self.model, f"{job}/model")


@pytest.fixture
def step(ground: Any, tmp_path: Path, model: Path, kubernetes: Kubernetes) -> Step:
    kubernetes.story = [{}, RUNNING, RUNNING, COMPLETE]
    one = Step(ground, tmp_path, model)
    kubernetes.on_status = one.finish
    return one


def test_a_job_is_created_followed_and_cleaned_up(
    step: Step, kubernetes: Kubernetes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "audioscore")
    kubernetes.pods = {"x-node-0-0-aaaaa": ["epoch 1", "epoch 2"], "x-node-0-1-bbbbb": ["of no interest"]}
    trained = step.train()
    assert (trained.plan, list(trained.outcomes)) == ("campplus_only", [1])
    assert trained.scorer_folder().is_relative_to(step.folder / "target")
    assert (trained.scorer_folder() / "scorer.json").is_file()
    ((name, created),) = ((one["metadata"]["name"], one) for one in kubernetes.created)
    assert len(name) == 20
    assert kubernetes.jobs == {}, "the finished job is deleted"
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    said = [record.getMessage().removeprefix(f"{name}: ") for record in caplog.records if name in record.getMessage()]
    assert said[1:] == ["created in namespace songs", "Created", "epoch 1", "epoch 2", "Running",
                        "Complete (JobsCompleted)"]  # fmt: skip
    left = {path.name for path in (step.folder / "exchange" / name).iterdir()}
    assert left == {"model", "model.json"}, "the model stays, for a step that is started again"
    golden = yaml.safe_load(GOLDEN.read_text())
    created["metadata"] = {**created["metadata"], "name": "NAME", "annotations": {"audioscore/training": "TRAINING"}}
    assert created["spec"]["trainer"]["command"][4:] == [step.exchange.uri, "--job", name]
    created["spec"]["trainer"]["command"][4:] = ["EXCHANGE", "--job", "NAME"]
    assert created == golden


def test_the_golden_job_is_wholly_known_to_the_api_models() -> None:
    from kubeflow_trainer_api import models

    golden = yaml.safe_load(GOLDEN.read_text())
    assert models.TrainerV1alpha1TrainJob.from_dict(golden).to_dict() == golden
    assert models.TrainerV1alpha1ClusterTrainingRuntime.from_dict(RUNTIME).to_dict() == RUNTIME


def interrupted(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step's process ends while its job runs: as by SIGTERM, nothing of it is run any more."""
    with monkeypatch.context() as patch:
        patch.setattr(trainjob.time, "sleep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            step.train()


def refused(step: Step, **changed: Any) -> str:
    with pytest.raises(AudioscoreError) as fault:
        step.train(**changed)
    assert fault.value.exit_code == 2
    return re.sub(r"campplus-\w{11}", "JOB", str(fault.value))


def test_a_step_that_is_started_again_follows_the_job_that_runs(
    step: Step, kubernetes: Kubernetes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(step, monkeypatch)
    assert len(kubernetes.jobs) == 1, "the job goes on"
    caplog.set_level(logging.INFO, "audioscore")
    kubernetes.story = [RUNNING, RUNNING, COMPLETE]
    step.train()
    assert len(kubernetes.created) == 1
    assert "found in namespace songs, and followed" in caplog.text
    assert kubernetes.jobs == {}


def test_a_step_that_is_started_again_after_success_takes_the_model(
    step: Step, kubernetes: Kubernetes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(step, monkeypatch)
    step.finish(COMPLETE)
    caplog.set_level(logging.INFO, "audioscore")
    for _ in range(2):  # with the job still there, and without
        assert step.train().plan == "campplus_only"
        assert kubernetes.jobs == {}
    assert len(kubernetes.created) == 1
    assert caplog.text.count("trained before; its model is taken from") == 2


def test_a_job_that_failed_is_made_again(
    step: Step, kubernetes: Kubernetes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(step, monkeypatch)
    caplog.set_level(logging.INFO, "audioscore")
    kubernetes.story = [FAILED, RUNNING, COMPLETE]
    step.train()
    assert len(kubernetes.created) == 2
    assert "but it failed (JobsFailed: 2 of 2 pods failed): made again" in caplog.text


def test_the_log_goes_on_with_the_pod_that_took_a_failed_ones_place(
    step: Step, kubernetes: Kubernetes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "audioscore")
    kubernetes.story = [RUNNING, {}, RUNNING, COMPLETE]
    kubernetes.pods = {"x-node-0-0-zzold": ["first"]}

    def replaced(status: dict[str, Any]) -> None:
        step.finish(status)
        if not status:
            kubernetes.pods["x-node-0-0-aanew"] = ["second"]
        if status is COMPLETE:
            kubernetes.pods["x-node-0-0-aanew"].append("third")

    kubernetes.on_status = replaced
    step.train()
    said = [record.getMessage().split(": ")[1] for record in caplog.records if record.name.endswith("trainjob")]
    assert said[2:] == ["Running", "first", "Created", "second", "Running", "Complete (JobsCompleted)", "third"]


def test_a_failure_is_said_in_the_words_of_the_machine_that_failed(step: Step, kubernetes: Kubernetes) -> None:
    kubernetes.story = [RUNNING, FAILED]
    kubernetes.pods = {
        "x-node-0-0-aaaaa": ["campplus_only, seed 1: 30 clips to train on"],
        "x-node-0-1-bbbbb": ["error: seed 1, epoch 1: the loss is nan. Lower it.", "", "Exception ignored in: x"],
    }
    assert refused(step) == "TrainJob JOB failed: seed 1, epoch 1: the loss is nan. Lower it."
    assert kubernetes.jobs == {}
    kubernetes.pods = {"x-node-0-0-aaaaa": ["RuntimeError: CUDA out of memory", ""]}
    kubernetes.story = [FAILED]
    assert refused(step) == "TrainJob JOB failed: RuntimeError: CUDA out of memory"
    kubernetes.pods = {}
    assert refused(step) == "TrainJob JOB failed: JobsFailed: 2 of 2 pods failed"


def test_a_job_that_left_no_model_or_is_gone(step: Step, kubernetes: Kubernetes) -> None:
    kubernetes.on_status = lambda status: None
    assert refused(step) == (
        f"TrainJob JOB ended well, but left no model at {step.exchange.uri}/JOB/model. Do its pods and this step share "
        f"that?"
    )
    assert kubernetes.jobs == {}
    kubernetes.story, kubernetes.on_status = [{}, {}], lambda status: kubernetes.jobs.clear()
    kubernetes.jobs.clear()
    assert refused(step) == "TrainJob JOB was deleted while it ran, and not by this step. Start it again."


def test_the_time_limit_counts_from_the_jobs_creation(
    step: Step, kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(step, monkeypatch)
    kubernetes.add(kubernetes.created[0], age=timedelta(hours=25))
    kubernetes.story = [RUNNING]
    assert refused(step) == (
        "TrainJob JOB was Running still after 24 hours, and was deleted. Raise training.trainjob.hours, or look for "
        "what it waited for."
    )
    assert kubernetes.jobs == {}


def test_a_job_of_another_training_is_not_touched(
    step: Step, kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(step, monkeypatch)
    (job,) = kubernetes.jobs.values()
    job["metadata"]["annotations"]["audioscore/training"] = "other"
    assert refused(step) == (
        "TrainJob JOB in namespace songs is of another training (other). Delete it, or set training.trainjob.namespace."
    )
    assert len(kubernetes.jobs) == len(kubernetes.created) == 1


def test_two_steps_at_once_share_a_job(
    step: Step, kubernetes: Kubernetes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(step, monkeypatch)
    (name,) = kubernetes.jobs
    kubernetes.story = [RUNNING, COMPLETE]
    kubernetes.refuse = [[f"GET {JOBS}/{name}", 404, 1]]  # it was not there yet when this step looked
    caplog.set_level(logging.INFO, "audioscore")
    step.train()
    assert len(kubernetes.created) == 1
    assert "found in namespace songs, and followed" in caplog.text


def test_a_cluster_that_does_not_answer_for_a_while_is_asked_again(
    step: Step, kubernetes: Kubernetes, caplog: pytest.LogCaptureFixture
) -> None:
    kubernetes.on_status = lambda status: (
        step.finish(status),
        kubernetes.refuse.extend([[f"GET {JOBS}/", 503, 2]] if not kubernetes.refuse else []),
    )
    step.train()
    assert caplog.text.count("does not answer (503 Service Unavailable). Check") == 2


def test_a_cluster_that_does_not_answer_at_all(
    step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use_kubeconfig(tmp_path / "gone", "http://127.0.0.1:9", monkeypatch)
    assert re.fullmatch(
        r"the Kubernetes API at http://127\.0\.0\.1:9 does not answer \(.*[Cc]onnection refused.*\)\. "
        r"Check the kubeconfig and the network\.",
        refused(step),
    )
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    assert refused(step) == (
        "no cluster to train on: there is neither a kubeconfig nor a pod's service account. Set KUBECONFIG."
    )


@pytest.mark.parametrize(
    ("asking", "what"),
    [
        (f"GET {JOBS}", "read TrainJobs"),
        ("GET .*/clustertrainingruntimes/", "find the runtime torch-distributed"),
        (f"POST {JOBS}", "create TrainJobs"),
        ("GET .*/pods$", "read pods and their logs"),
    ],
    ids=["find", "runtime", "create", "logs"],
)
def test_what_is_forbidden_is_said(step: Step, kubernetes: Kubernetes, asking: str, what: str) -> None:
    kubernetes.refuse = [[asking, 403, 1]]
    assert refused(step) == (
        f"may not {what} in namespace songs (403 Forbidden). Give the kubeconfig's user, or the step's service "
        f"account, a role that may."
    )


def test_a_runtime_that_is_not_there_and_a_job_that_is_not_taken(step: Step, kubernetes: Kubernetes) -> None:
    assert refused(step, runtime="torch") == (
        "the cluster cannot find the runtime torch: neither namespace songs nor the whole cluster has it (404). "
        "Install Kubeflow Trainer and its runtimes, or set training.trainjob.runtime."
    )
    kubernetes.runtimes["torch"] = {**RUNTIME, "metadata": {"name": "torch"}}
    assert refused(step, runtime="torch") == (
        "cannot find the runtime torch in namespace songs (Runtime torch must have trainer.kubeflow.org/framework "
        "label). Mend that, or training.trainjob."
    )
    kubernetes.refuse = [[f"POST {JOBS}", 422, 1]]
    assert refused(step).startswith("cannot create TrainJobs in namespace songs (422 Unprocessable Entity: {")


def test_what_cannot_be_cleaned_up_fails_nothing(
    step: Step, kubernetes: Kubernetes, caplog: pytest.LogCaptureFixture
) -> None:
    kubernetes.refuse = [[f"DELETE {JOBS}", 403, 1]]
    assert step.train().plan == "campplus_only"
    assert "is finished, but was not cleaned up: may not delete TrainJobs in namespace songs (403" in caplog.text


def test_the_package_that_is_missing_is_named(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubeflow.trainer", None)
    assert (
        refused(step) == "launcher trainjob needs the package kubeflow. Install it: pip install 'audioscore[cluster]'."
    )


@pytest.mark.services
def test_the_pods_that_a_job_asks_for_train_what_torchrun_does(
    step: Step, kubernetes: Kubernetes, ground: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way, but for Kubernetes: the command of the created job is really run, by two processes as machines."""
    monkeypatch.setattr(trainjob, "POLL_SECONDS", 0.5)
    pods: list[subprocess.Popen[bytes]] = []

    def controller(_: dict[str, Any]) -> None:
        if not pods:
            ((spec, port),) = ((one["spec"]["trainer"], free_port()) for one in kubernetes.created)
            for rank in range(spec["numNodes"]):
                place = {
                    "PET_NNODES": "2", "PET_NODE_RANK": str(rank), "PET_MASTER_ADDR": "127.0.0.1",
                    "PET_MASTER_PORT": str(port), "PET_NPROC_PER_NODE": "1",
                }  # fmt: skip
                with (tmp_path / f"log-{rank}").open("wb") as log:
                    command = [sys.executable, *spec["command"][1:]]
                    pods.append(subprocess.Popen(command, env={**os.environ, **place}, stderr=log))
        kubernetes.pods = {f"x-node-0-{rank}-a": (tmp_path / f"log-{rank}").read_text().splitlines() for rank in (0, 1)}
        codes = {pod.poll() for pod in pods}
        kubernetes.story = [RUNNING if None in codes else COMPLETE if codes == {0} else FAILED]

    kubernetes.story, kubernetes.on_status = [RUNNING], controller
    found = step.train()
    assert [pod.wait() for pod in pods] == [0, 0]
    judge = launch_plan(
        "campplus_only", ground.index, ground.features, tmp_path / "judge",
        ground.config(seeds=[1], epochs=1, processes=2), data_digest="d.dir", code_revision="abc", device="cpu",
    )  # fmt: skip
    assert found.validation == judge.validation
    ours, wanted = ((one.scorer_folder() / "head.safetensors").read_bytes() for one in (found, judge))
    assert ours == wanted


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
