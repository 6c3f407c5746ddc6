"""Where a run's steps can run, and what they get there: containers of this machine, pods of a cluster."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

STRICT = ConfigDict(extra="forbid", frozen=True)  # keys that nobody knows are refused

# What `make image` builds. The name holds "python" because KFP's local runner warns otherwise.
IMAGE = "localhost/audioscore-python:dev"
Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|Ki|Mi|Gi|Ti|k|M|G|T)?$")]  # of Kubernetes
StepName = Literal[
    "fetch_data", "validate_data", "sort_data", "extract_shard", "extract_features", "train_scorer",
    "evaluate_scorers", "register_winner",
]  # fmt: skip


class Section(BaseModel):
    """A part of the configuration."""

    model_config = STRICT


class ContainersSection(Section):
    """`run --on docker`: every step in a container of this machine, by Docker or Podman."""

    image: str = IMAGE
    gpus: bool = False  # give every step this machine's GPUs
    memory: Annotated[str, StringConstraints(pattern="^[0-9]+[kmg]$")] | None = None  # of a step, as Docker writes it
    shm: Annotated[str, StringConstraints(pattern="^[0-9]+[kmg]$")] = "1g"  # /dev/shm


class TolerationSection(Section):
    """A taint of the nodes that a pod puts up with, as Kubernetes writes it."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class ResourcesSection(Section):
    """What a step's pod asks for, and may use at most."""

    cpu: Quantity = "2"
    memory: Quantity = "8Gi"
    cpu_limit: Quantity | None = None  # as much as asked for, unless named
    memory_limit: Quantity | None = None


class SecretSection(Section):
    """A Secret of the namespace whose keys become variables of every step: key -> variable."""

    name: str
    env: dict[str, str] = Field(min_length=1)


class VolumeSection(Section):
    """A claim of the namespace that every step sees, for instance with the encoders that were pulled once."""

    claim: str
    path: str = Field("/cache", pattern="^/")


class ClusterSection(Section):
    """`run --on cluster` and `compile`: Kubeflow Pipelines on Kubernetes. All of it is fixed when compiling."""

    # Where.
    host: str | None = None  # address of the KFP API; the kubeconfig's context, or the pod's own cluster, by default
    namespace: str | None = None
    experiment: str = "audioscore"
    service_account: str | None = None
    pipeline_root: str | None = None  # where KFP keeps what steps put out; its own default, unless named
    # What the steps share, which are in no machine's folder there.
    image: str | None = None
    feature_store: Annotated[str, StringConstraints(pattern="^(s3://[^/]+|/).*$")] | None = None
    tracking_uri: Annotated[str, StringConstraints(pattern="^https?://")] | None = None
    artifact_root: str = ""  # the MLflow server's own, unless named
    # What pods get.
    accelerator: str = "nvidia.com/gpu"
    gpus: int = Field(1, ge=0)  # of each step that computes with encoders
    node_selector: dict[str, str] = {}  # of the steps that have GPUs
    tolerations: list[TolerationSection] = []
    shm: Quantity = "8Gi"  # /dev/shm of the steps that have GPUs
    light: ResourcesSection = ResourcesSection()  # fetch, validate, sort, register
    heavy: ResourcesSection = ResourcesSection(cpu="8", memory="48Gi")  # extract, train, evaluate
    secrets: list[SecretSection] = []
    volume: VolumeSection | None = None
    env: dict[str, str] = {}
    labels: dict[str, str] = {}
    pull_secrets: list[str] = []
    # How they go about it.
    shards: int = Field(1, ge=1)  # pods that extract features at the same time
    parallel_trainings: int = Field(0, ge=0)  # 0: all plans at once
    retries: int = Field(2, ge=0)  # of a step whose pod failed; what it finished before is not repeated
    hours: dict[StepName, float] = {"train_scorer": 48, "extract_features": 24, "extract_shard": 24}
    default_hours: float = Field(6, gt=0)

    @field_validator("image")
    @classmethod
    def _by_digest(cls, image: str | None) -> str | None:
        if image is not None and "@sha256:" not in image:
            raise ValueError(f"{image} may be another image tomorrow: name it by digest, REPOSITORY@sha256:…")
        return image
