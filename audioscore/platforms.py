"""Configuration sections `containers` and `cluster`: where the steps of a run are executed."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

# The image of `make image`. Its name contains "python" because KFP's local runner warns otherwise.
IMAGE = "localhost/audioscore-python:dev"
Quantity = Annotated[
    str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|Ki|Mi|Gi|Ti|k|M|G|T)?$")
]  # Kubernetes quantity
StepName = Literal[
    "fetch_data", "validate_data", "sort_data", "extract_shard", "extract_features", "train_scorer",
    "evaluate_scorers", "register_winner",
]  # fmt: skip


class ConfigSection(BaseModel):
    """A part of the configuration: immutable, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ContainersSection(ConfigSection):
    """`run --on docker`: every step runs in a local container, with Docker or Podman."""

    image: str = IMAGE
    gpus: bool = False  # make this machine's GPUs available to every step
    memory: Annotated[str, StringConstraints(pattern="^[0-9]+[kmg]$")] | None = (
        None  # limit of a step, in Docker's format
    )
    shm: Annotated[str, StringConstraints(pattern="^[0-9]+[kmg]$")] = "1g"  # size of /dev/shm


class TolerationSection(ConfigSection):
    """A Kubernetes toleration: a node taint that the pods accept."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class ResourcesSection(ConfigSection):
    """Resource requests and limits of a step's pod."""

    cpu: Quantity = "2"
    memory: Quantity = "8Gi"
    cpu_limit: Quantity | None = None  # default: the request
    memory_limit: Quantity | None = None


class SecretSection(ConfigSection):
    """A Kubernetes Secret whose keys become environment variables of every step: key -> variable."""

    name: str
    env: dict[str, str] = Field(min_length=1)


class VolumeSection(ConfigSection):
    """A PersistentVolumeClaim that every step mounts, for example with the downloaded encoders."""

    claim: str
    path: str = Field("/cache", pattern="^/")


class ClusterSection(ConfigSection):
    """`run --on cluster` and `compile`: Kubeflow Pipelines on Kubernetes. The values are fixed at compile time."""

    # The KFP service.
    host: str | None = None  # address of the KFP API; default: from the kubeconfig or the pod's cluster
    namespace: str | None = None
    experiment: str = "audioscore"
    service_account: str | None = None
    pipeline_root: str | None = None  # where KFP stores step outputs; default: KFP's own setting
    # Services and storage that all steps share.
    image: str | None = None
    feature_store: Annotated[str, StringConstraints(pattern="^(s3://[^/]+|/).*$")] | None = None
    tracking_uri: Annotated[str, StringConstraints(pattern="^https?://")] | None = None
    artifact_root: str = ""  # default: the artifact root of the MLflow server
    # Resources and environment of the pods.
    accelerator: str = "nvidia.com/gpu"
    gpus: int = Field(1, ge=0)  # of each step that runs encoders
    node_selector: dict[str, str] = {}  # of the steps with GPUs
    tolerations: list[TolerationSection] = []
    shm: Quantity = "8Gi"  # size of /dev/shm in the steps with GPUs
    light: ResourcesSection = ResourcesSection()  # fetch, validate, sort, register
    heavy: ResourcesSection = ResourcesSection(cpu="8", memory="48Gi")  # extract, train, evaluate
    secrets: list[SecretSection] = []
    volume: VolumeSection | None = None
    env: dict[str, str] = {}
    labels: dict[str, str] = {}
    pull_secrets: list[str] = []
    # Execution.
    shards: int = Field(1, ge=1)  # pods that extract features in parallel
    parallel_trainings: int = Field(0, ge=0)  # 0: all plans in parallel
    retries: int = Field(2, ge=0)  # of a step whose pod failed; finished parts of the step are not repeated
    hours: dict[StepName, float] = {"train_scorer": 48, "extract_features": 24, "extract_shard": 24}
    default_hours: float = Field(6, gt=0)

    @field_validator("image")
    @classmethod
    def _by_digest(cls, image: str | None) -> str | None:
        if image is not None and "@sha256:" not in image:
            raise ValueError(f"{image}: has no digest, so its content can change. Use REPOSITORY@sha256:…")
        return image
