"""Training on a cluster, seen from its step: the real SDK and client talk to a Kubernetes API on loopback."""

import http.server
import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from kubeflow_trainer_api import models

from audioscore.errors import AudioscoreError
from audioscore.training.launch import launch_plan
from audioscore.training.trainjob import job as trainjob
from audioscore.training.trainjob.exchange import Exchange

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

    Each time a job is read, it gets the next status of `story`; the last one stays. `on_status` is called with each.
    `refuse` lists (pattern of "METHOD path", status, count) of requests that get an error response.
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
def model(corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pods would have trained."""
    return Path(corpus.train("campplus_only", tmp_path_factory.mktemp("trained") / "plan", seeds=[1], epochs=1).folder)


class Step:
    """The step of a pipeline that trains on the cluster; it may be started again."""

    def __init__(self, corpus: Any, folder: Path, model: Path) -> None:
        self.corpus, self.folder, self.model = corpus, folder, model
        self.exchange = Exchange(str(folder / "exchange"))

    def train(self, **changed: Any) -> Any:
        settings = {**TRAINJOB, "exchange": self.exchange.uri, **changed}
        config = self.corpus.config(seeds=[1], epochs=1, launcher="trainjob", trainjob=settings)
        return launch_plan(
            "campplus_only", self.corpus.index, self.corpus.features, self.folder / "target", config,
            data_digest="d.dir", code_revision="abc", device="cpu",
        )  # fmt: skip

    def finish(self, status: dict[str, Any]) -> None:
        """The pods write their model before the job is complete."""
        if status is COMPLETE:
            assert self.exchange.folder is not None
            (job,) = (path.name for path in self.exchange.folder.iterdir() if path.name.startswith("campplus-"))
            self.exchange.put_folder(self.model, f"{job}/model")


@pytest.fixture
def step(corpus: Any, tmp_path: Path, model: Path, kubernetes: Kubernetes) -> Step:
    kubernetes.story = [{}, RUNNING, RUNNING, COMPLETE]
    one = Step(corpus, tmp_path, model)
    kubernetes.on_status = one.finish
    return one


def test_a_job_from_creation_to_deletion(step: Step, kubernetes: Kubernetes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "audioscore")
    kubernetes.pods = {"x-node-0-0-aaaaa": ["epoch 1", "epoch 2"], "x-node-0-1-bbbbb": ["not logged"]}
    trained = step.train()
    assert (trained.plan, list(trained.outcomes)) == ("campplus_only", [1])
    assert trained.scorer_folder().is_relative_to(step.folder / "target")
    assert (trained.scorer_folder() / "scorer.json").is_file()
    ((name, created),) = ((one["metadata"]["name"], one) for one in kubernetes.created)
    assert len(name) == 20
    assert kubernetes.jobs == {}, "the finished job is deleted"
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    lines = [record.getMessage().removeprefix(f"{name}: ") for record in caplog.records if name in record.getMessage()]
    assert "songs" in lines[1]
    assert lines[2:] == ["Created", "epoch 1", "epoch 2", "Running", "Complete (JobsCompleted)"]
    left = {path.name for path in (step.folder / "exchange" / name).iterdir()}
    assert left == {"model", "model.json"}, "the model stays, for a step that is started again"
    golden = yaml.safe_load(GOLDEN.read_text())
    assert models.TrainerV1alpha1TrainJob.from_dict(golden).to_dict() == golden
    created["metadata"] = {**created["metadata"], "name": "NAME", "annotations": {"audioscore/training": "TRAINING"}}
    assert created["spec"]["trainer"]["command"][4:] == [step.exchange.uri, "--job", name]
    created["spec"]["trainer"]["command"][4:] = ["EXCHANGE", "--job", "NAME"]
    assert created == golden


def interrupted(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the step while its job runs."""
    with monkeypatch.context() as patch:
        patch.setattr(trainjob.time, "sleep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            step.train()


def refused(step: Step, *names: str, **changed: Any) -> None:
    """Train, and expect one error that contains all these names and figures."""
    with pytest.raises(AudioscoreError) as error:
        step.train(**changed)
    assert error.value.exit_code == 2
    text = re.sub(r"campplus-\w{11}", "JOB", str(error.value))
    assert [name for name in names if name not in text] == [], text


@pytest.mark.parametrize("at_once", [False, True])
def test_a_step_follows_a_job_that_runs(
    step: Step, kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """A step that is started again; and one of two at once, where the job does not exist yet when it looks."""
    interrupted(step, monkeypatch)
    (name,) = kubernetes.jobs
    kubernetes.story = [RUNNING, RUNNING, COMPLETE]
    kubernetes.refuse = [[f"GET {JOBS}/{name}", 404, 1]] if at_once else []
    step.train()
    assert len(kubernetes.created) == 1
    assert kubernetes.jobs == {}


def test_a_step_started_after_success(step: Step, kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(step, monkeypatch)
    step.finish(COMPLETE)
    for _ in range(2):  # with the job still there, and without
        assert step.train().plan == "campplus_only"
        assert kubernetes.jobs == {}
    assert len(kubernetes.created) == 1


def test_a_job_that_failed_is_created_again(
    step: Step, kubernetes: Kubernetes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(step, monkeypatch)
    caplog.set_level(logging.INFO, "audioscore")
    kubernetes.story = [FAILED, RUNNING, COMPLETE]
    step.train()
    assert len(kubernetes.created) == 2
    assert "(JobsFailed: 2 of 2 pods failed)" in caplog.text


def test_the_log_of_a_replaced_pod(step: Step, kubernetes: Kubernetes, caplog: pytest.LogCaptureFixture) -> None:
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
    lines = [record.getMessage().split(": ")[1] for record in caplog.records if record.name.endswith("trainjob.job")]
    assert lines[2:] == ["Running", "first", "Created", "second", "Running", "Complete (JobsCompleted)", "third"]


@pytest.mark.parametrize(
    ("logs", "reason"),
    [
        (
            {
                "x-node-0-0-aaaaa": ["campplus_only, seed 1: 30 clips to train on"],
                "x-node-0-1-bbbbb": ["error: epoch 1: the loss is nan. Lower it.", "", "Exception ignored in: x"],
            },
            "epoch 1: the loss is nan. Lower it.",
        ),
        ({"x-node-0-0-aaaaa": ["RuntimeError: CUDA out of memory", ""]}, "RuntimeError: CUDA out of memory"),
        ({}, "JobsFailed: 2 of 2 pods failed"),
    ],
)
def test_the_error_of_a_failed_pod(step: Step, kubernetes: Kubernetes, logs: dict[str, list[str]], reason: str) -> None:
    kubernetes.story, kubernetes.pods = [RUNNING, FAILED], logs
    refused(step, f"TrainJob JOB: failed: {reason}")
    assert kubernetes.jobs == {}


def test_a_job_that_left_no_model_or_is_deleted(step: Step, kubernetes: Kubernetes) -> None:
    kubernetes.on_status = lambda status: None
    refused(step, "TrainJob JOB: ", f"{step.exchange.uri}/JOB/model")
    assert kubernetes.jobs == {}
    kubernetes.story, kubernetes.on_status = [{}, {}], lambda status: kubernetes.jobs.clear()
    refused(step, "TrainJob JOB: ", "deleted")


@pytest.mark.parametrize(("hours", "too_long"), [(25, True), (23, False)])
def test_the_time_limit_counts_from_the_jobs_creation(
    step: Step, kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch, hours: int, too_long: bool
) -> None:
    interrupted(step, monkeypatch)
    kubernetes.add(kubernetes.created[0], age=timedelta(hours=hours))
    kubernetes.story = [RUNNING] if too_long else [RUNNING, COMPLETE]
    if too_long:
        refused(step, "TrainJob JOB: ", "Running", "24 hours", "training.trainjob.hours")
    else:
        step.train()
    assert kubernetes.jobs == {}


def test_a_job_of_another_training(step: Step, kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(step, monkeypatch)
    (job,) = kubernetes.jobs.values()
    job["metadata"]["annotations"]["audioscore/training"] = "other"
    refused(step, "TrainJob JOB: ", "songs", "(other)", "training.trainjob.namespace")
    assert len(kubernetes.jobs) == len(kubernetes.created) == 1


def test_failed_requests_are_repeated(step: Step, kubernetes: Kubernetes, caplog: pytest.LogCaptureFixture) -> None:
    kubernetes.on_status = lambda status: (
        step.finish(status),
        kubernetes.refuse.extend([[f"GET {JOBS}/", 503, 2]] if not kubernetes.refuse else []),
    )
    step.train()
    assert caplog.text.count("(503 Service Unavailable)") == 2


def test_a_cluster_that_does_not_answer_at_all(step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_kubeconfig(tmp_path / "gone", "http://127.0.0.1:9", monkeypatch)
    refused(step, "http://127.0.0.1:9", "onnection refused", "kubeconfig")
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    refused(step, "kubeconfig", "service account", "KUBECONFIG")


@pytest.mark.parametrize(
    ("asking", "what"),
    [
        (f"GET {JOBS}", "read TrainJobs"),
        ("GET .*/clustertrainingruntimes/", "runtime torch-distributed"),
        (f"POST {JOBS}", "create TrainJobs"),
        ("GET .*/pods$", "pods"),
    ],
    ids=["find", "runtime", "create", "logs"],
)
def test_a_forbidden_request_is_named(step: Step, kubernetes: Kubernetes, asking: str, what: str) -> None:
    kubernetes.refuse = [[asking, 403, 1]]
    refused(step, what, "songs", "(403 Forbidden)")


def test_a_missing_runtime_and_a_rejected_job(step: Step, kubernetes: Kubernetes) -> None:
    refused(step, "runtime torch", "songs", "(404)", "training.trainjob.runtime", runtime="torch")
    kubernetes.runtimes["torch"] = {**RUNTIME, "metadata": {"name": "torch"}}
    refused(step, "runtime torch", "songs", "trainer.kubeflow.org/framework", runtime="torch")
    kubernetes.refuse = [[f"POST {JOBS}", 422, 1]]
    refused(step, "create TrainJobs", "songs", "(422 Unprocessable Entity: {")


def test_a_job_that_cannot_be_deleted(step: Step, kubernetes: Kubernetes, caplog: pytest.LogCaptureFixture) -> None:
    kubernetes.refuse = [[f"DELETE {JOBS}", 403, 1]]
    assert step.train().plan == "campplus_only"
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert re.search(r"songs: .*delete TrainJobs.*\(403", record.getMessage())


def test_the_package_that_is_missing_is_named(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubeflow.trainer", None)
    refused(step, "trainjob", "kubeflow", "pip install 'audioscore[cluster]'")
