"""TrainJobs of Kubeflow Trainer, their states and their logs, by its Python SDK."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from audioscore.errors import AudioscoreError, UsageError

if TYPE_CHECKING:
    from audioscore.config import TrainJobSection

TRAINING = "audioscore/training"  # annotation: the full identity of a job's training
PLAN = "audioscore/plan"  # label
PODS = "jobset.sigs.k8s.io/jobset-name={},jobset.sigs.k8s.io/replicatedjob-name=node"
RANK = "batch.kubernetes.io/job-completion-index"
CONTAINER = "node"  # name of the training container in Trainer's runtimes
TRANSIENT = {408, 429, 500, 502, 503, 504}
REQUEST_SECONDS = 30.0
INSTALL = "launcher trainjob needs the package kubeflow. Install it: pip install 'audioscore[cluster]'."


class ClusterError(AudioscoreError):
    """The cluster refused a request."""


class ClusterUnreachable(ClusterError):
    """The cluster did not answer; the request can be repeated."""


@dataclass(frozen=True)
class JobState:
    """The state of a TrainJob: its phase (Created, Running, Suspended, Complete, Failed), the reason, the identity of
    its training, and when it was created."""

    phase: str
    why: str
    training: str | None
    created: datetime


class Cluster:
    """The TrainJobs of a namespace, with the access of the kubeconfig or of the pod's service account.

    Raises: ClusterError if a request is refused, ClusterUnreachable if there is no answer.
    """

    def __init__(self, settings: "TrainJobSection", image: str) -> None:
        try:
            from kubeflow.trainer import KubernetesBackendConfig, TrainerClient
            from kubernetes.config import ConfigException
        except ImportError as error:
            raise UsageError(INSTALL) from error
        # It logs long warnings if it may not read the version of Trainer.
        logging.getLogger("kubeflow").setLevel(logging.ERROR)
        try:
            self._client: Any = TrainerClient(KubernetesBackendConfig(namespace=settings.namespace))
        except ConfigException as error:
            raise ClusterError(
                "launcher trainjob: there is neither a kubeconfig nor a pod's service account. Set KUBECONFIG."
            ) from error
        self._settings, self._image = settings, image
        self._api, self._core = self._client.backend.custom_api, self._client.backend.core_api
        self.namespace = str(self._client.backend.namespace)

    def find(self, job: str) -> JobState | None:
        """Return the state of a job; None if no job has this name."""
        from kubeflow.trainer.constants import constants
        from kubernetes.client import ApiException

        with self._explained("read TrainJobs"):
            try:
                found = self._api.get_namespaced_custom_object(
                    constants.GROUP, constants.VERSION, self.namespace, constants.TRAINJOB_PLURAL, job,
                    _request_timeout=REQUEST_SECONDS,
                )  # fmt: skip
            except ApiException as error:
                if error.status == 404:
                    return None
                raise
        return _state(found)

    def create(self, job: str, plan: str, training: str, command: list[str]) -> bool:
        """Create a job; return False if a job of this name exists by now."""
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
            with self._explained(f"find the runtime {settings.runtime}"):
                runtime = self._client.get_runtime(settings.runtime)
            with self._explained("create TrainJobs"):
                self._client.train(runtime=runtime, trainer=container, options=options)
        except ClusterError as error:
            if _status(error) == 409:
                return False
            raise
        return True

    def delete(self, job: str) -> None:
        """Delete a job and its pods, if it exists."""
        try:
            with self._explained("delete TrainJobs"):
                self._client.delete_job(job)
        except ClusterError as error:
            if _status(error) != 404:
                raise

    def logs(self, job: str, lines: int | None = None) -> dict[str, list[str]]:
        """Return the log of each pod of a job, or its last `lines`, by the pod's name.

        The pods of the first machine come first, the newest first: a failed pod may be replaced by another.
        """
        with self._explained("read pods and their logs"):
            pods = self._core.list_namespaced_pod(
                self.namespace, label_selector=PODS.format(job), _request_timeout=REQUEST_SECONDS
            ).items
            logs: dict[str, list[str]] = {}
            pods.sort(key=lambda pod: pod.metadata.creation_timestamp, reverse=True)
            for pod in sorted(pods, key=lambda pod: int(pod.metadata.labels.get(RANK, 0))):
                if pod.status.phase in ("Running", "Succeeded", "Failed"):
                    logs[pod.metadata.name] = self._log(pod.metadata.name, lines)
        return logs

    def _log(self, pod: str, lines: int | None) -> list[str]:
        from kubernetes.client import ApiException

        options = {} if lines is None else {"tail_lines": lines}
        try:
            text = self._core.read_namespaced_pod_log(
                pod, self.namespace, container=CONTAINER, _request_timeout=REQUEST_SECONDS, **options
            )
        except ApiException as error:
            if error.status in (400, 404):  # it is being created, or was just deleted
                return []
            raise
        return str(text).splitlines()

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn an error of the API into a ClusterError; `what` names the request."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except (ApiException, HTTPError, RuntimeError, ValueError, TimeoutError) as error:
            cause = error.__cause__ or error  # the SDK wraps the API's errors, and its own when it parses a response
            if isinstance(cause, ApiException | HTTPError | TimeoutError):
                raise _explain(cause, what, self.namespace, str(self._core.api_client.configuration.host)) from cause
            reason = " ".join(str(cause).split()).rstrip(".")
            raise ClusterError(
                f"namespace {self.namespace}: cannot {what} ({reason}). Correct that, or training.trainjob."
            ) from cause


def _state(found: dict[str, Any]) -> JobState:
    """Read a TrainJob's state: its conditions decide the phase, or the state of its nodes before there are any."""
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


def _status(error: BaseException) -> int | None:
    return getattr(error.__cause__, "status", None)


def _explain(cause: BaseException, what: str, namespace: str, host: str) -> ClusterError:
    """Describe an error response of the API, or a missing one."""
    status, reason = getattr(cause, "status", None), getattr(cause, "reason", None)
    if status is None or status in TRANSIENT:
        why = f"{status} {reason}" if status else " ".join(str(cause).split())
        return ClusterUnreachable(
            f"Kubernetes API at {host}: does not answer ({why}). Check the kubeconfig and the network."
        )
    if status in (401, 403):
        return ClusterError(
            f"namespace {namespace}: not allowed to {what} ({status} {reason}). Give the kubeconfig's user, or the "
            f"step's service account, a role with this permission."
        )
    if status == 404:
        return ClusterError(
            f"namespace {namespace}: cannot {what}, which exists neither there nor in the cluster (404). Install "
            f"Kubeflow Trainer and its runtimes, or set training.trainjob.runtime."
        )
    body = " ".join(str(getattr(cause, "body", "") or "").split())
    return ClusterError(f"namespace {namespace}: cannot {what} ({status} {reason}: {body}). Correct training.trainjob.")
