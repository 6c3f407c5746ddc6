"""Configuration sections `containers` and `cluster`: where the steps of a run are executed."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from audioscore.files import lower_scheme

# The image of `make image`. Its name contains "python" because KFP's local runner warns otherwise.
IMAGE = "localhost/audioscore-python:dev"


def _matching(pattern: str, rule: str, longest: int) -> AfterValidator:
    """Check a value by the rule of the service that gets it; its own error would come after hours."""

    def check(value: str) -> str:
        if len(value) > longest or not re.fullmatch(pattern, value):
            raise ValueError(f"{value!r} is not valid; expected {rule}")
        return value

    return AfterValidator(check)


# Source: Kubernetes, apimachinery/pkg/util/validation.
WORD = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
MIXED = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
LETTERS = "lower-case letters, digits and hyphens"
Label = Annotated[str, _matching(WORD, f"at most 63 {LETTERS}", 63)]
Subdomain = Annotated[str, _matching(rf"{WORD}(\.{WORD})*", f"at most 253 {LETTERS}, and dots", 253)]
LabelKey = Annotated[
    str, _matching(rf"({WORD}(\.{WORD})*/)?{MIXED}", "a label key, [DOMAIN/]NAME with at most 63 characters", 317)
]
LabelValue = Annotated[str, _matching(f"({MIXED})?", "at most 63 letters, digits, '-', '_' and '.'", 63)]
SecretKey = Annotated[str, _matching(r"[-._a-zA-Z0-9]+", "letters, digits, '-', '_' and '.'", 253)]
Variable = Annotated[str, _matching("[A-Za-z_][A-Za-z0-9_]*", "a variable's name: letters, digits and '_'", 253)]
# Source: kfp.dsl.PipelineTask, set_cpu_limit and set_memory_limit.
Cpu = Annotated[str, _matching(r"[0-9]+(\.[0-9]+)?m?", "a number of cores, such as 2, 0.5 or 500m", 20)]
Memory = Annotated[str, _matching("[0-9]+([EPTGM]i?|Ki?)?", "an integer with a unit, such as 8Gi or 500M", 20)]
Size = Annotated[str, _matching(r"[0-9]+(\.[0-9]+)?(m|k|[KMGTPE]i|[MGTPE])?", "a quantity, such as 8Gi", 20)]
# Source: github.com/distribution/reference.
Image = Annotated[
    str,
    _matching(
        r"([A-Za-z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*(/[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*)*"
        r"(:\w[\w.-]{0,127})?(@sha256:[0-9a-f]{64})?",
        "[HOST/]NAME[:TAG][@sha256:DIGEST] in lower case", 500,
    ),
]  # fmt: skip
# Source: Amazon S3 User Guide, bucket naming rules.
S3 = r"s3://(?!.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?"
BUCKET_RULE = f"s3://BUCKET/PREFIX with a bucket of 3 to 63 {LETTERS}"
Storage = Annotated[str, _matching(rf"{S3}|/.*", f"a folder, or {BUCKET_RULE}", 1000)]
Location = Annotated[str, _matching(rf"{S3}|(?!s3:)[a-z0-9+.-]+:/.+|/.*|", f"a URI, such as {BUCKET_RULE}", 1000)]
# Existing buckets may have older names. Source: botocore, VALID_BUCKET.
DataUri = Annotated[
    str,
    AfterValidator(lower_scheme),
    _matching(r"s3://[A-Za-z0-9._-]{1,255}(/.*)?|(?!s3://).*", "s3://BUCKET/PREFIX with a valid bucket", 4096),
]
UNITS = {"m": 1e-3, "k": 1e3} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGTPE", start=1)
    for suffix, base in (("", 1000.0), ("i", 1024.0))
}
StepName = Literal[
    "fetch_data", "validate_data", "sort_data", "extract_shard", "extract_features", "train_scorer",
    "evaluate_scorers", "register_winner",
]  # fmt: skip


def _amount(quantity: str) -> float:
    """Convert a Kubernetes quantity to a number.

    >>> _amount("500m"), _amount("8Gi")
    (0.5, 8589934592.0)
    """
    number = quantity.rstrip("mkKMGTPEi")
    return float(number) * UNITS.get(quantity[len(number) :], 1.0)


class ConfigSection(BaseModel):
    """A part of the configuration: immutable, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ContainersSection(ConfigSection):
    """`run --on docker`: every step runs in a local container, with Docker or Podman."""

    image: Image = IMAGE
    gpus: bool = False  # make this machine's GPUs available to every step
    memory: Annotated[str, StringConstraints(pattern="^[0-9]+[kmg]$")] | None = (
        None  # limit of a step, in Docker's format
    )
    shm: Annotated[str, StringConstraints(pattern="^[0-9]+[kmg]$")] = "1g"  # size of /dev/shm


class TolerationSection(ConfigSection):
    """A Kubernetes toleration: a node taint that the pods accept."""

    key: LabelKey | None = None
    operator: Literal["Exists", "Equal"] = "Exists"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    @model_validator(mode="after")
    def _check_operator(self) -> "TolerationSection":
        if (self.value and self.operator == "Exists") or (self.key is None and self.operator == "Equal"):
            raise ValueError("operator Exists takes no value, and operator Equal needs a key")
        return self


class ResourcesSection(ConfigSection):
    """Resource requests and limits of a step's pod."""

    cpu: Cpu = "2"
    memory: Memory = "8Gi"
    cpu_limit: Cpu | None = None  # default: the request
    memory_limit: Memory | None = None

    @model_validator(mode="after")
    def _check_limits(self) -> "ResourcesSection":
        for name, request, limit in (("cpu", self.cpu, self.cpu_limit), ("memory", self.memory, self.memory_limit)):
            if limit is not None and _amount(limit) < _amount(request):
                raise ValueError(f"{name}_limit {limit} is below {name} {request}")
        return self


class SecretSection(ConfigSection):
    """A Kubernetes Secret whose keys become environment variables of every step: key -> variable."""

    name: Subdomain
    env: dict[SecretKey, Variable] = Field(min_length=1)


class VolumeSection(ConfigSection):
    """A PersistentVolumeClaim that every step mounts, for example with the downloaded encoders."""

    claim: Subdomain
    path: str = Field("/cache", pattern="^/[^:]*$")


class ClusterSection(ConfigSection):
    """`run --on cluster` and `compile`: Kubeflow Pipelines on Kubernetes. The values are fixed at compile time."""

    # The KFP service.
    host: str | None = None  # address of the KFP API; default: from the kubeconfig or the pod's cluster
    namespace: Label | None = None
    experiment: str = Field("audioscore", min_length=1, max_length=128)
    service_account: Subdomain | None = None
    pipeline_root: Location | None = None  # where KFP stores step outputs; default: KFP's own setting
    # Services and storage that all steps share.
    image: Image | None = None
    feature_store: Storage | None = None
    tracking_uri: Annotated[str, StringConstraints(pattern=r"^https?://[^\s/]\S*$")] | None = None
    artifact_root: Location = ""  # default: the artifact root of the MLflow server
    # Resources and environment of the pods.
    accelerator: LabelKey = "nvidia.com/gpu"
    gpus: int = Field(1, ge=0)  # of each step that runs encoders
    node_selector: dict[LabelKey, LabelValue] = {}  # of the steps with GPUs
    tolerations: list[TolerationSection] = []
    shm: Size = "8Gi"  # size of /dev/shm in the steps with GPUs
    light: ResourcesSection = ResourcesSection()  # fetch, validate, sort, register
    heavy: ResourcesSection = ResourcesSection(cpu="8", memory="48Gi")  # extract, train, evaluate
    secrets: list[SecretSection] = []
    volume: VolumeSection | None = None
    env: dict[Variable, str] = {}
    labels: dict[LabelKey, LabelValue] = {}
    pull_secrets: list[Subdomain] = []
    # Execution.
    shards: int = Field(1, ge=1)  # pods that extract features in parallel
    parallel_trainings: int = Field(0, ge=0)  # 0: all plans in parallel
    retries: int = Field(2, ge=0)  # of a step whose pod failed; finished parts of the step are not repeated
    hours: dict[StepName, Annotated[float, Field(ge=0.001)]] = {
        "train_scorer": 48,
        "extract_features": 24,
        "extract_shard": 24,
    }
    default_hours: float = Field(6, ge=0.001)

    @field_validator("image")
    @classmethod
    def _by_digest(cls, image: str | None) -> str | None:
        if image is not None and "@sha256:" not in image:
            raise ValueError(f"{image}: has no digest, so its content can change. Use REPOSITORY@sha256:…")
        return image
