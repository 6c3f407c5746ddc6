"""What differs between the platforms a pipeline is compiled for, as compile-time constants; the DAG is the same.

KFP's local runner cannot read accelerators from parameters inside a loop, and ignores nodes, volumes, secrets and
/dev/shm. A platform therefore must not change what a step computes.
"""

from dataclasses import dataclass
from typing import Any

from audioscore.errors import UsageError
from audioscore.platforms import ClusterSection, ResourcesSection, StepName
from audioscore.units import HOUR_SECONDS

GPU_STEPS: tuple[StepName, ...] = ("extract_shard", "extract_features", "train_scorer", "evaluate_scorers")
RETRY_WAIT = "60s"  # before the first retry; it doubles, which leaves a draining node time to go away
RETRY_WAIT_MAX = "900s"
UID = 10001  # the user of the image
# Folders that the steps write to beside their outputs; volumes that KFP mounts are not writable for them.
SCRATCH = {"state": "/state", "cache": "/cache"}
# Environment of steps on this machine: no telemetry, and no progress bars, which write a line per update into a log.
OFFLINE = {
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}


@dataclass(frozen=True)
class Platform:
    """Compile-time constants of a platform.

    Args:
        parallel_trainings: plans that are trained at the same time; 0 means no limit.
        cluster: settings of the pods; None on this machine.
    """

    parallel_trainings: int
    cluster: ClusterSection | None = None


LOCAL = Platform(parallel_trainings=1)  # one training already uses every core


def on_cluster(section: ClusterSection) -> Platform:
    """The platform of a configuration's section `cluster`."""
    return Platform(section.parallel_trainings, section)


def apply_platform(task: Any, step: StepName, platform: Platform) -> None:
    """Set a KFP task's resources, volumes, secrets and retries for its step; nothing on this machine."""
    section = platform.cluster
    if section is None:
        return
    try:
        from kfp import kubernetes
    except ImportError as error:
        raise UsageError(
            "kfp-kubernetes: not installed, but cluster pipelines need it. Run: pip install 'audioscore[cluster]'."
        ) from error

    heavy = step in GPU_STEPS
    _set_resources(task, section.heavy if heavy else section.light)
    if section.retries:
        task.set_retry(
            section.retries, backoff_duration=RETRY_WAIT, backoff_factor=2.0, backoff_max_duration=RETRY_WAIT_MAX
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
        _set_gpus(task, section)


def _set_resources(task: Any, resources: ResourcesSection) -> None:
    task.set_cpu_request(resources.cpu).set_cpu_limit(resources.cpu_limit or resources.cpu)
    task.set_memory_request(resources.memory).set_memory_limit(resources.memory_limit or resources.memory)


def _set_gpus(task: Any, section: ClusterSection) -> None:
    """Set accelerators, and what only nodes with accelerators need."""
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
