"""What differs between places a pipeline is compiled for, as compile-time constants; the DAG itself never does.

KFP's local runner cannot take accelerators from parameters inside a loop, and ignores nodes, volumes, secrets and
/dev/shm: none of them may decide what a step computes.
"""

from dataclasses import dataclass
from typing import Any

from audioscore.errors import UsageError
from audioscore.platforms import ClusterSection, ResourcesSection, StepName
from audioscore.units import HOUR_SECONDS

GPU_STEPS: tuple[StepName, ...] = ("extract_shard", "extract_features", "train_scorer", "evaluate_scorers")
RETRY_WAIT = "60s"  # before the first retry; it doubles, so that a node that is being drained has time to go
RETRY_WAIT_MOST = "900s"
UID = 10001  # that the image runs as
# Written by the steps beside their outputs. What KFP mounts is not theirs to write in.
SCRATCH = {"state": "/state", "cache": "/cache"}


@dataclass(frozen=True)
class Platform:
    """`parallel_trainings`: plans trained at the same time, 0 is no limit; `cluster`: what pods get, on a cluster."""

    parallel_trainings: int
    cluster: ClusterSection | None = None


LOCAL = Platform(parallel_trainings=1)  # one machine: a training already uses every core


def on_cluster(section: ClusterSection) -> Platform:
    """The platform of a configuration's cluster."""
    return Platform(section.parallel_trainings, section)


def place(task: Any, step: StepName, platform: Platform) -> None:
    """Give a task of KFP what the platform has for its step."""
    section = platform.cluster
    if section is None:
        return
    try:
        from kfp import kubernetes
    except ImportError as fault:
        raise UsageError(
            "a cluster needs the package kfp-kubernetes. Install it: pip install 'audioscore[cluster]'."
        ) from fault

    heavy = step in GPU_STEPS
    _resources(task, section.heavy if heavy else section.light)
    if section.retries:
        task.set_retry(
            section.retries, backoff_duration=RETRY_WAIT, backoff_factor=2.0, backoff_max_duration=RETRY_WAIT_MOST
        )
    kubernetes.set_timeout(task, round(section.hours.get(step, section.default_hours) * HOUR_SECONDS))
    kubernetes.set_security_context(task, run_as_user=UID, run_as_group=UID, run_as_non_root=True)
    for name, path in SCRATCH.items():
        if section.volume is None or section.volume.path != path:
            kubernetes.empty_dir_mount(task, volume_name=name, mount_path=path)
    if section.volume is not None:
        kubernetes.mount_pvc(task, pvc_name=section.volume.claim, mount_path=section.volume.path)
    for secret in section.secrets:
        kubernetes.use_secret_as_env(task, secret_name=secret.name, secret_key_to_env=dict(secret.env))
    for name, value in section.env.items():
        task.set_env_variable(name, value)
    for name, value in {"app.kubernetes.io/part-of": "audioscore", "audioscore/step": step, **section.labels}.items():
        kubernetes.add_pod_label(task, name, value)
    if section.pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(section.pull_secrets))
    if heavy and section.gpus:
        _gpus(task, section)


def _resources(task: Any, wanted: ResourcesSection) -> None:
    task.set_cpu_request(wanted.cpu).set_cpu_limit(wanted.cpu_limit or wanted.cpu)
    task.set_memory_request(wanted.memory).set_memory_limit(wanted.memory_limit or wanted.memory)


def _gpus(task: Any, section: ClusterSection) -> None:
    """Accelerators, and what only nodes with accelerators need."""
    from kfp import kubernetes

    task.set_accelerator_type(section.accelerator).set_accelerator_limit(section.gpus)
    kubernetes.empty_dir_mount(task, volume_name="dshm", mount_path="/dev/shm", medium="Memory", size_limit=section.shm)
    for name, value in section.node_selector.items():
        kubernetes.add_node_selector(task, name, value)
    for toleration in section.tolerations:
        kubernetes.add_toleration(
            task,
            key=toleration.key,
            operator=toleration.operator,
            value=toleration.value,
            effect=toleration.effect,
        )
