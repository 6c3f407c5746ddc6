"""The cluster's side of a training: TrainJobs of Kubeflow Trainer, by its Python SDK, and what they say."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from audioscore.errors import AudioscoreError, UsageError

if TYPE_CHECKING:
    from audioscore.config import TrainJobSection

TRAINING = "audioscore/training"  # annotation: which training a job is of, in full
PLAN = "audioscore/plan"  # label
PODS = "jobset.sigs.k8s.io/jobset-name={},jobset.sigs.k8s.io/replicatedjob-name=node"
RANK = "batch.kubernetes.io/job-completion-index"
CONTAINER = "node"  # what Trainer's runtimes call the container that trains
TRANSIENT = {408, 429, 500, 502, 503, 504}
REQUEST_SECONDS = 30.0
INSTALL = "launcher trainjob needs the package kubeflow. Install it: pip install 'audioscore[cluster]'."


class ClusterError(AudioscoreError):
    """The cluster said no."""


class Unreachable(ClusterError):
    """The cluster did not answer; it may later."""


@dataclass(frozen=True)
class JobState:
    """What a TrainJob says of itself: its phase (Created, Running, Suspended, Complete, Failed), why, which training it
    is of, and since when it is there."""

    phase: str
    why: str
    training: str | None
    created: datetime


class Cluster:
    """A namespace's TrainJobs, as the kubeconfig or the pod's service account may see them.

    Raises ClusterError, one sentence, for what is refused, and Unreachable where nothing answers.
    """

    def __init__(self, settings: "TrainJobSection", image: str) -> None:
        try:
            from kubeflow.trainer import KubernetesBackendConfig, TrainerClient
            from kubernetes.config import ConfigException
        except ImportError as fault:
            raise UsageError(INSTALL) from fault
        # It warns, at length, where it may not read which version of Trainer there is.
        logging.getLogger("kubeflow").setLevel(logging.ERROR)
        try:
            self._client: Any = TrainerClient(KubernetesBackendConfig(namespace=settings.namespace))
        except ConfigException as fault:
            raise ClusterError(
                "no cluster to train on: there is neither a kubeconfig nor a pod's service account. Set KUBECONFIG."
            ) from fault
        self._settings, self._image = settings, image
        self._api, self._core = self._client.backend.custom_api, self._client.backend.core_api
        self.namespace = str(self._client.backend.namespace)

    def find(self, job: str) -> JobState | None:
        """What a job says of itself; None where there is none of this name."""
        from kubeflow.trainer.constants import constants
        from kubernetes.client import ApiException

        with self._asking("read TrainJobs"):
            try:
                found = self._api.get_namespaced_custom_object(
                    constants.GROUP, constants.VERSION, self.namespace, constants.TRAINJOB_PLURAL, job,
                    _request_timeout=REQUEST_SECONDS,
                )  # fmt: skip
            except ApiException as fault:
                if fault.status == 404:
                    return None
                raise
        return _state(found)

    def create(self, job: str, plan: str, training: str, command: list[str]) -> bool:
        """Create a job; False where one of this name has come to be meanwhile."""
        from kubeflow.trainer import CustomTrainerContainer
        from kubeflow.trainer.options import ActiveDeadlineSeconds, Annotations, Labels, Name, TrainerCommand

        settings = self._settings
        container = CustomTrainerContainer(
            self._image, settings.num_nodes, dict(settings.resources_per_node), dict(settings.env)
        )
        options = [
            Name(job), Labels({PLAN: plan}), Annotations({TRAINING: training}), TrainerCommand(command),
            ActiveDeadlineSeconds(max(1, round(settings.hours * 3600))),
        ]  # fmt: skip
        try:
            with self._asking(f"find the runtime {settings.runtime}"):
                runtime = self._client.get_runtime(settings.runtime)
            with self._asking("create TrainJobs"):
                self._client.train(runtime=runtime, trainer=container, options=options)
        except ClusterError as fault:
            if _status(fault) == 409:
                return False
            raise
        return True

    def delete(self, job: str) -> None:
        """Delete a job and its pods; nothing where there is none."""
        try:
            with self._asking("delete TrainJobs"):
                self._client.delete_job(job)
        except ClusterError as fault:
            if _status(fault) != 404:
                raise

    def logs(self, job: str, lines: int | None = None) -> dict[str, list[str]]:
        """What each pod of a job has said so far, or its last `lines`, by its name.

        The first machine's come first, and of one machine's the newest: where pods fail, others may take their place.
        """
        with self._asking("read pods and their logs"):
            pods = self._core.list_namespaced_pod(
                self.namespace, label_selector=PODS.format(job), _request_timeout=REQUEST_SECONDS
            ).items
            said: dict[str, list[str]] = {}
            pods.sort(key=lambda pod: pod.metadata.creation_timestamp, reverse=True)
            for pod in sorted(pods, key=lambda pod: int(pod.metadata.labels.get(RANK, 0))):
                if pod.status.phase in ("Running", "Succeeded", "Failed"):
                    said[pod.metadata.name] = self._log(pod.metadata.name, lines)
        return said

    def _log(self, pod: str, lines: int | None) -> list[str]:
        from kubernetes.client import ApiException

        options = {} if lines is None else {"tail_lines": lines}
        try:
            text = self._core.read_namespaced_pod_log(
                pod, self.namespace, container=CONTAINER, _request_timeout=REQUEST_SECONDS, **options
            )
        except ApiException as fault:
            if fault.status in (400, 404):  # it is being made, or was just taken away
                return []
            raise
        return str(text).splitlines()

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Make one sentence of what goes wrong while the cluster is asked to do something."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except (ApiException, HTTPError, RuntimeError, ValueError, TimeoutError) as fault:
            cause = fault.__cause__ or fault  # the SDK wraps what the API answered, and what it cannot read of it
            if isinstance(cause, ApiException | HTTPError | TimeoutError):
                raise _explain(cause, what, self.namespace, self._host()) from cause
            told = " ".join(str(cause).split()).rstrip(".")
            raise ClusterError(
                f"cannot {what} in namespace {self.namespace} ({told}). Mend that, or training.trainjob."
            ) from cause

    def _host(self) -> str:
        return str(self._core.api_client.configuration.host)


def _state(found: dict[str, Any]) -> JobState:
    """A TrainJob's own words; its phase is what its conditions say, or, before they say, what its nodes do."""
    status, metadata = found.get("status") or {}, found["metadata"]
    phase, why = "Created", ""
    if any(job.get("name") == CONTAINER and job.get("ready") for job in status.get("jobsStatus") or []):
        phase = "Running"
    for condition in status.get("conditions") or []:
        if condition["status"] == "True" and condition["type"] in ("Complete", "Failed", "Suspended"):
            phase = condition["type"]
            why = ": ".join(filter(None, [condition.get("reason"), condition.get("message")]))
            if phase != "Suspended":
                break
    created = datetime.fromisoformat(metadata["creationTimestamp"])
    return JobState(phase, why, (metadata.get("annotations") or {}).get(TRAINING), created)


def _status(fault: BaseException) -> int | None:
    return getattr(fault.__cause__, "status", None)


def _explain(cause: BaseException, what: str, namespace: str, host: str) -> ClusterError:
    """One sentence for what the API answered, or did not."""
    status, reason = getattr(cause, "status", None), getattr(cause, "reason", None)
    if status is None or status in TRANSIENT:
        why = f"{status} {reason}" if status else " ".join(str(cause).split())
        return Unreachable(
            f"the Kubernetes API at {host} does not answer ({why}). Check the kubeconfig and the network."
        )
    if status in (401, 403):
        return ClusterError(
            f"may not {what} in namespace {namespace} ({status} {reason}). Give the kubeconfig's user, or the step's "
            f"service account, a role that may."
        )
    if status == 404:
        return ClusterError(
            f"the cluster cannot {what}: neither namespace {namespace} nor the whole cluster has it (404). Install "
            f"Kubeflow Trainer and its runtimes, or set training.trainjob.runtime."
        )
    body = " ".join(str(getattr(cause, "body", "") or "").split())
    return ClusterError(f"cannot {what} in namespace {namespace} ({status} {reason}: {body}). Mend training.trainjob.")
