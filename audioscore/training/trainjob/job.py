"""Train on a cluster: create or find a TrainJob, follow it, and fetch its model."""

import hashlib
import json
import logging
import time
from datetime import UTC, datetime
from pathlib import Path

from audioscore.config import TrainJobSection
from audioscore.errors import AudioscoreError
from audioscore.files import atomic_folder, link_or_copy
from audioscore.scoring.trained_plan import TrainedPlan, read_trained
from audioscore.training.launch import TrainingRequest
from audioscore.training.recipe import PlanData, load_plan_data
from audioscore.training.trainjob.cluster import Cluster, ClusterError, ClusterUnreachable, JobState
from audioscore.training.trainjob.exchange import Exchange
from audioscore.training.trainjob.pod import INPUT, MODEL, WORK, pack

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0
TIMEOUT_SECONDS = 600.0  # for a cluster that does not answer, and for a deleted job to disappear
NAME_LENGTH = 20
LAST_LINES = 50  # of each pod's log, searched for an error message
POD = "audioscore.training.trainjob.pod"


class JobFailed(AudioscoreError):
    """A TrainJob ended without a model."""


def train_on_cluster(request: TrainingRequest) -> TrainedPlan:
    """Train one plan in a TrainJob, and write to `request.out` what `train_plan` would write there.

    The job's name is derived from what is trained. A running job of that name is followed, the model of a finished one
    is fetched, and a failed one is deleted and created again: a step that is started again continues. If this process
    is stopped, the job runs on; if the job fails, or takes longer than `hours`, it is deleted.

    Raises: what `load_plan_data` raises, before anything is started; JobFailed with the error of a pod; ClusterError
        if the cluster refuses, or if another training has the job's name; DataError for the exchange.
    """
    assert request.index is not None
    assert request.features is not None
    (plan,), settings = request.plans, request.config.training
    data = load_plan_data(
        plan, request.index, request.features, settings, str(request.data_digest), request.code_revision, "cpu"
    )
    training = identity(request, data)
    job = job_name(plan, training)
    exchange = Exchange(str(settings.trainjob.exchange))
    cluster = Cluster(settings.trainjob, str(request.config.trainjob_image))
    if exchange.has_folder(f"{job}/{MODEL}"):
        log.info("%s: already trained; fetching its model from %s/%s/%s", job, exchange.uri, job, MODEL)
    else:
        _start(cluster, exchange, job, training, request, data)
        _follow(cluster, exchange, job, settings.trainjob)
    with atomic_folder(request.out) as temporary:
        _fetch(exchange, job, temporary)
    _clean(cluster, exchange, job)
    return read_trained(request.out)


def identity(request: TrainingRequest, data: PlanData) -> str:
    """Return the SHA-256 of everything that decides what a job trains, and with which code."""
    settings = request.config.training
    decides = [
        data.identity, settings.seeds, settings.processes, settings.trainjob.num_nodes, request.config.trainjob_image,
        request.data_digest, request.code_revision, request.device,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def job_name(plan: str, training: str) -> str:
    """Return a name that Kubernetes accepts, of at most NAME_LENGTH characters.

    >>> job_name("campplus_only", "0123456789abcdef" * 4)
    'campplus-0123456789a'
    """
    start = plan.split("_")[0]
    return f"{start}-{training[: NAME_LENGTH - 1 - len(start)]}"


def _start(
    cluster: Cluster, exchange: Exchange, job: str, training: str, request: TrainingRequest, data: PlanData
) -> None:
    """Create the job, unless there is one that is still running."""
    found = cluster.find(job)
    if found is not None:
        _check_same(found, job, training, cluster.namespace)
        if found.phase not in ("Failed", "Complete"):
            log.info("%s: found in namespace %s; following it", job, cluster.namespace)
            return
        why = f"it failed ({found.why})" if found.phase == "Failed" else "its model is missing"
        log.info("%s: found in namespace %s, but %s; creating it again", job, cluster.namespace, why)
        cluster.delete(job)
        _wait_until_deleted(cluster, job)
    sent = pack(exchange, job, request, data)
    log.info("%s: %d features were missing in %s", job, sent, exchange.uri)
    command = ["python", "-m", POD, "--exchange", exchange.uri, "--job", job]
    if cluster.create(job, data.plan, training, command):
        log.info("%s: created in namespace %s", job, cluster.namespace)
    elif (other := cluster.find(job)) is not None:  # a parallel step created it first
        _check_same(other, job, training, cluster.namespace)
        log.info("%s: found in namespace %s; following it", job, cluster.namespace)


def _check_same(found: JobState, job: str, training: str, namespace: str) -> None:
    if found.training != training:
        raise ClusterError(
            f"TrainJob {job}: in namespace {namespace}, of another training ({found.training}). Delete it, or set "
            f"training.trainjob.namespace."
        )


def _wait_until_deleted(cluster: Cluster, job: str) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while cluster.find(job) is not None:
        if time.monotonic() > deadline:
            raise JobFailed(
                f"TrainJob {job}: failed before and was deleted, but still exists after {TIMEOUT_SECONDS:.0f} s. "
                f"Check its finalizers."
            )
        time.sleep(POLL_SECONDS)


def _follow(cluster: Cluster, exchange: Exchange, job: str, settings: TrainJobSection) -> None:
    """Log the progress of a job until its model is there. Raises JobFailed, and deletes the job, if it has failed."""
    logged, phase, silent_since = dict[str, int](), "", None
    while True:
        try:
            found = cluster.find(job)
            if found is None:
                if exchange.has_folder(f"{job}/{MODEL}"):  # finished, and deleted after its time to live
                    return
                raise JobFailed(f"TrainJob {job}: was deleted while it ran, not by this step. Start the step again.")
            if found.phase != phase:
                phase = found.phase
                log.info("%s: %s", job, f"{phase} ({found.why})" if found.why else phase)
            _log_new_lines(cluster, job, logged)
            if phase in ("Complete", "Failed"):
                _check_model(cluster, exchange, job, found)
                return
            _check_time(cluster, job, found, settings.hours)
            silent_since = None
        except ClusterUnreachable as error:
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > TIMEOUT_SECONDS:
                raise
            log.warning("%s: %s Trying again.", job, error)
        time.sleep(POLL_SECONDS)


def _check_time(cluster: Cluster, job: str, found: JobState, hours: float) -> None:
    """Raise JobFailed, and delete the job, after `hours` since its creation, also if the step was started again."""
    if (datetime.now(UTC) - found.created).total_seconds() > hours * 3600:
        cluster.delete(job)
        raise JobFailed(
            f"TrainJob {job}: was still {found.phase} after {hours:g} hours, and was deleted. Raise "
            f"training.trainjob.hours, or find out what it waited for."
        )


def _check_model(cluster: Cluster, exchange: Exchange, job: str, ended: JobState) -> None:
    """Raise JobFailed, and delete the job, if a job that ended left no model."""
    if exchange.has_folder(f"{job}/{MODEL}"):
        return
    if ended.phase == "Complete":
        why = f"completed without a model at {exchange.uri}/{job}/{MODEL}. Check that its pods and this step share it."
    else:
        why = f"failed: {_error_of(cluster, job) or ended.why or 'its pods logged nothing.'}"
    cluster.delete(job)
    raise JobFailed(f"TrainJob {job}: {why}")


def _log_new_lines(cluster: Cluster, job: str, logged: dict[str, int]) -> None:
    """Log the new lines of the first machine; `logged` counts the lines of each pod that were logged before."""
    for pod, lines in list(cluster.logs(job).items())[:1]:
        for line in lines[logged.get(pod, 0) :]:
            log.info("%s: %s", job, line)
        logged[pod] = max(len(lines), logged.get(pod, 0))


def _error_of(cluster: Cluster, job: str) -> str:
    """Return the error message of the machine that failed first, the only one that prints one; else a last line."""
    logs = [[line for line in lines if line.strip()] for lines in cluster.logs(job, LAST_LINES).values()]
    errors = [line.removeprefix("error: ") for lines in logs for line in lines if line.startswith("error: ")]
    return (errors or [lines[-1] for lines in logs if lines] or [""])[0]


def _fetch(exchange: Exchange, job: str, target: Path) -> None:
    found = exchange.get_folder(f"{job}/{MODEL}", target)
    if found != target:
        for path in sorted(found.rglob("*")):
            if path.is_file():
                link_or_copy(path, target / path.relative_to(found))


def _clean(cluster: Cluster, exchange: Exchange, job: str) -> None:
    """Delete what a finished job left, except its model. An error is only logged."""
    try:
        cluster.delete(job)
        for name in (INPUT, WORK):
            exchange.remove(f"{job}/{name}")
    except AudioscoreError as error:
        log.warning("%s: finished, but not cleaned up: %s", job, error)
