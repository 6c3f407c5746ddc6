"""Train on a cluster's machines: a TrainJob is created, or found again, followed, and its model brought back."""

import hashlib
import json
import logging
import time
from datetime import UTC, datetime
from pathlib import Path

from audioscore.config import TrainJobSection
from audioscore.errors import AudioscoreError
from audioscore.files import atomic_folder, place
from audioscore.scoring.trained_plan import TrainedPlan, read_trained
from audioscore.training.recipe import Ground, read_ground
from audioscore.training.trainjob.cluster import Cluster, ClusterError, JobState, Unreachable
from audioscore.training.trainjob.exchange import Exchange
from audioscore.training.trainjob.pod import INPUT, MODEL, WORK, Asked, pack

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0
PATIENCE_SECONDS = 600.0  # for a cluster that does not answer, and for a deleted job to go
NAME_LENGTH = 20
LAST_LINES = 50  # of each pod, in which its error is looked for
POD = "audioscore.training.trainjob.pod"


class JobFailed(AudioscoreError):
    """A TrainJob ended without a model."""


def train_on_cluster(asked: Asked, target: Path) -> TrainedPlan:
    """Train by a TrainJob, and put at `target` what `train_plan` would have written there.

    The job's name follows from what is trained. A job of that name that runs is followed, one that has finished gives
    its model, one that failed is deleted and made again: a step that is started again goes on where it was. Where this
    process is stopped the job goes on; where the job fails, or takes longer than `hours`, it is deleted.

    Raises what `read_ground` raises, before anything is started; JobFailed with what a pod said last; ClusterError
    where the cluster refuses, or another training has the job's name; DataError for the exchange.
    """
    settings = asked.config.training.trainjob
    ground = read_ground(
        asked.plan, asked.index, asked.features, asked.config.training, asked.data_digest, asked.code_revision, "cpu"
    )
    training = identity(asked, ground)
    job = job_name(asked.plan, training)
    exchange = Exchange(str(settings.exchange))
    cluster = Cluster(settings, str(asked.config.trainjob_image))
    if exchange.has_folder(f"{job}/{MODEL}"):
        log.info("%s: trained before; its model is taken from %s/%s/%s", job, exchange.uri, job, MODEL)
    else:
        _start(cluster, exchange, job, training, asked, ground)
        _follow(cluster, exchange, job, settings)
    with atomic_folder(target) as temporary:
        _bring(exchange, job, temporary)
    _clean(cluster, exchange, job)
    return read_trained(target)


def identity(asked: Asked, ground: Ground) -> str:
    """SHA-256 of all that decides what a job trains, and by which code."""
    settings = asked.config.training
    decides = [
        ground.identity, settings.seeds, settings.processes, settings.trainjob.num_nodes, asked.config.trainjob_image,
        asked.data_digest, asked.code_revision, asked.device,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def job_name(plan: str, training: str) -> str:
    """A name that Kubernetes takes, of at most NAME_LENGTH characters.

    >>> job_name("campplus_only", "0123456789abcdef" * 4)
    'campplus-0123456789a'
    """
    start = plan.split("_")[0]
    return f"{start}-{training[: NAME_LENGTH - 1 - len(start)]}"


def _start(cluster: Cluster, exchange: Exchange, job: str, training: str, asked: Asked, ground: Ground) -> None:
    """Create the job, unless one of its name is there that does not need to be made again."""
    found = cluster.find(job)
    if found is not None:
        _check_same(found, job, training, cluster.namespace)
        if found.phase not in ("Failed", "Complete"):
            log.info("%s: found in namespace %s, and followed", job, cluster.namespace)
            return
        why = f"it failed ({found.why})" if found.phase == "Failed" else "its model is gone"
        log.info("%s: found in namespace %s, but %s: made again", job, cluster.namespace, why)
        cluster.delete(job)
        _wait_until_gone(cluster, job)
    sent = pack(exchange, job, asked, ground)
    log.info("%s: %d features were not yet at %s", job, sent, exchange.uri)
    command = ["python", "-m", POD, "--exchange", exchange.uri, "--job", job]
    if cluster.create(job, asked.plan, training, command):
        log.info("%s: created in namespace %s", job, cluster.namespace)
    elif (other := cluster.find(job)) is not None:  # a step beside this one was faster
        _check_same(other, job, training, cluster.namespace)
        log.info("%s: found in namespace %s, and followed", job, cluster.namespace)


def _check_same(found: JobState, job: str, training: str, namespace: str) -> None:
    if found.training != training:
        raise ClusterError(
            f"TrainJob {job} in namespace {namespace} is of another training ({found.training}). Delete it, or set "
            f"training.trainjob.namespace."
        )


def _wait_until_gone(cluster: Cluster, job: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while cluster.find(job) is not None:
        if time.monotonic() > deadline:
            raise JobFailed(f"TrainJob {job} failed before, was deleted, and is still there. Look at its finalizers.")
        time.sleep(POLL_SECONDS)


def _follow(cluster: Cluster, exchange: Exchange, job: str, settings: TrainJobSection) -> None:
    """Say what a job does, until its model is there. Raises JobFailed, with the job deleted, where it never will be."""
    said, phase, silent_since = dict[str, int](), "", None
    while True:
        try:
            found = cluster.find(job)
            if found is None:
                if exchange.has_folder(f"{job}/{MODEL}"):  # finished, and its time to live was over
                    return
                raise JobFailed(f"TrainJob {job} was deleted while it ran, and not by this step. Start it again.")
            if found.phase != phase:
                phase = found.phase
                log.info("%s: %s", job, f"{phase} ({found.why})" if found.why else phase)
            _say_new_lines(cluster, job, said)
            if phase in ("Complete", "Failed"):
                _judge(cluster, exchange, job, found)
                return
            _check_time(cluster, job, found, settings.hours)
            silent_since = None
        except Unreachable as fault:
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > PATIENCE_SECONDS:
                raise
            log.warning("%s: %s It is asked again.", job, fault)
        time.sleep(POLL_SECONDS)


def _check_time(cluster: Cluster, job: str, found: JobState, hours: float) -> None:
    """Raises JobFailed, with the job deleted, where its time is over; a step that is started again gives it no more."""
    if (datetime.now(UTC) - found.created).total_seconds() > hours * 3600:
        cluster.delete(job)
        raise JobFailed(
            f"TrainJob {job} was {found.phase} still after {hours:g} hours, and was deleted. Raise "
            f"training.trainjob.hours, or look for what it waited for."
        )


def _judge(cluster: Cluster, exchange: Exchange, job: str, ended: JobState) -> None:
    """Whether a job that ended left its model. Raises JobFailed, with the job deleted, where it did not."""
    if exchange.has_folder(f"{job}/{MODEL}"):
        return
    if ended.phase == "Complete":
        why = f"ended well, but left no model at {exchange.uri}/{job}/{MODEL}. Do its pods and this step share that?"
    else:
        why = f"failed: {_last_words(cluster, job) or ended.why or 'its pods said nothing.'}"
    cluster.delete(job)
    raise JobFailed(f"TrainJob {job} {why}")


def _say_new_lines(cluster: Cluster, job: str, said: dict[str, int]) -> None:
    """Log what the first machine has said since; `said` counts the lines of each pod that were logged."""
    for pod, lines in list(cluster.logs(job).items())[:1]:
        for line in lines[said.get(pod, 0) :]:
            log.info("%s: %s", job, line)
        said[pod] = max(len(lines), said.get(pod, 0))


def _last_words(cluster: Cluster, job: str) -> str:
    """The sentence of the machine that failed first, which alone says one; else the first machine's last line."""
    logs = [[line for line in said if line.strip()] for said in cluster.logs(job, LAST_LINES).values()]
    sentences = [line.removeprefix("error: ") for said in logs for line in said if line.startswith("error: ")]
    return (sentences or [said[-1] for said in logs if said] or [""])[0]


def _bring(exchange: Exchange, job: str, target: Path) -> None:
    found = exchange.get_folder(f"{job}/{MODEL}", target)
    if found != target:
        for path in sorted(found.rglob("*")):
            if path.is_file():
                place(path, target / path.relative_to(found))


def _clean(cluster: Cluster, exchange: Exchange, job: str) -> None:
    """Take away what a finished job left, but for its model. What cannot be is said, and fails nothing."""
    try:
        cluster.delete(job)
        for name in (INPUT, WORK):
            exchange.remove(f"{job}/{name}")
    except AudioscoreError as fault:
        log.warning("%s: is finished, but was not cleaned up: %s", job, fault)
