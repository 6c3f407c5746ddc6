"""One YAML file per run, checked: unknown keys are refused, and the resolved copy travels with the run.

Configuration stops at the builders: they read these models and pass plain numbers on.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, Field, StringConstraints, ValidationError, model_validator

from audioscore.errors import UsageError, shorten
from audioscore.platforms import STRICT, ClusterSection, ContainersSection

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

CONFIGS = Path(__file__).resolve().parents[1] / "pipelines" / "configs"
SMALL = CONFIGS / "small.yaml"  # what `run` uses unless told otherwise: encoders that ship with the repository
DEMO = CONFIGS / "demo.yaml"

Share = Annotated[float, Field(ge=0, le=1)]
Plan = Literal["baseline", "hybrid", "campplus_only", "muq_frozen"]
# What is done to held-out clips to see which way their scores move: evaluation/degradations.py.
ProbeName = Literal[
    "noise_30db", "noise_20db", "noise_10db", "clipping", "low_pass", "detune_25", "detune_50", "detune_100",
    "gain_up", "gain_down", "trailing_silence", "reencoding",
]  # fmt: skip
# YAML reads a bare `off` as false.
Severity = Annotated[
    Literal["error", "warning", "off"], BeforeValidator(lambda value: "off" if value is False else value)
]


class Section(BaseModel):
    """A part of the configuration: immutable, and refusing keys it does not know."""

    model_config = STRICT


class DataSection(Section):
    uri: str | None = None  # folder | s3://bucket/prefix | git URL@rev
    column_map: dict[str, str] = {}  # our name -> header in the table
    singer_from: str | None = None  # regular expression with one group, applied to the file name


class ValidationSection(Section):
    max_rejected_share: Share = 0.1
    min_clips: int = Field(30, ge=3)
    min_seconds: float = Field(1.0, ge=0.25)  # what the encoders' convolutions need
    max_seconds: float = Field(3600.0, gt=0, le=3600.0)  # what the decoder takes
    allowed_sources: list[str] | None = None
    # Limits of single recordings; `severity` says what follows from each.
    max_dc_offset: float = Field(0.02, gt=0, le=1)  # of full scale
    min_mono_loss_db: float = Field(-15.0, le=0)  # level of the channels' mean below that of the channels
    min_bandwidth_hz: float = Field(8_100.0, ge=0)
    min_voiced_share: Share = 0.15
    # Fewer usable clips than these fail the gate; 0 asks for nothing.
    min_per_source: int = Field(0, ge=0)
    min_per_band: int = Field(0, ge=0)
    min_singers: int = Field(0, ge=0)
    min_per_singer: int = Field(0, ge=0)
    max_shift: float = Field(0.2, gt=0)  # nats between a source's scores and those of the last accepted version
    severity: dict[str, Severity] = {}  # rule of the gate -> error | warning | off; the rest weigh what rules.py says


class SplitSection(Section):
    """How the data are split, and who is taken for one singer where nobody said who sings.

    Clips without a singer whose voices' mean CAM++ cosine reaches `same_voice_cosine` count as one singer's. The right
    value depends on the encoder. The default is the demo encoder's: with every singer_id of the demo corpus removed,
    9 % of the test clips had their true singer in train, 31 % at 0.5, 48 % at 0.8, and 97 % without; it gets there by
    a few large groups, since that encoder hardly tells similar voices apart. The authors of the published CAM++ take
    two spoken recordings for one speaker's from 0.31 on; measure a value for singing where some singers are known.
    """

    val: Share = 0.2
    test: Share = 0.2
    seed: int = 7
    pseudo_singers: bool = True  # group clips without a singer by their CAM++ embeddings
    same_voice_cosine: float = Field(0.6, gt=0, lt=1)

    @model_validator(mode="after")
    def _leave_something_to_train_on(self) -> "SplitSection":
        if self.val <= 0 or self.test <= 0 or self.val + self.test >= 1:
            raise ValueError(f"val {self.val} and test {self.test} must be above 0 and leave a share for training")
        return self


class EncoderSection(Section):
    """Where an encoder's weights come from: a hub id with its pinned revision, or a folder in the hub's layout."""

    source: str
    revision: str | None = None
    layer: int | None = Field(None, ge=1)  # MuQ only: which hidden state is read
    # What its weights must have, as `encoders pull` prints it.
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-fA-F]{64}$", to_lower=True)] | None = None


class EncodersSection(Section):
    muq: EncoderSection
    campplus: EncoderSection
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # on a GPU; a CPU always computes in fp32


class LoraSection(Section):
    rank: int = Field(128, ge=1)
    alpha: int = Field(48, ge=1)  # adapters count by alpha / rank
    dropout: float = Field(0.0, ge=0, lt=1)


class AdversarySection(Section):
    """Unlearn who sings: a discriminator guesses the speaker's embedding, and its gradient is reversed."""

    weight: float = Field(0.0, ge=0)  # of the reversed gradient once the ramp is over; 0 trains no adversary
    target: Literal["campplus", "ge2e", "samoye"] = "campplus"
    source: str | None = None  # ge2e: pretrained.pt of Resemblyzer; samoye: folder of best_model.pth.tar, config.json
    hidden: int = Field(256, ge=1)

    @model_validator(mode="after")
    def _source_where_needed(self) -> "AdversarySection":
        if self.weight > 0 and self.target != "campplus" and self.source is None:
            raise ValueError(f"target {self.target} needs source: where its weights lie")
        return self


class TrainJobSection(Section):
    """A training on several machines of a cluster: a TrainJob of Kubeflow Trainer.

    Placement, volumes and credentials are the runtime's, on the cluster: nothing secret is written here.
    """

    # What step and pods share: s3://BUCKET/PREFIX, or a folder that all see under this path.
    exchange: Annotated[str, StringConstraints(pattern="^(s3://[^/]+|/).*$")] | None = None
    image: str | None = None  # that the pods run, with this code in it; cluster.image by default
    runtime: str = "torch-distributed"
    namespace: str | None = None  # that of the step's pod, or of the kubeconfig's context, by default
    num_nodes: int = Field(2, ge=1)
    resources_per_node: dict[str, int | str] = {}  # {gpu: 4, cpu: 16, memory: 64Gi}, requested and the limit
    env: dict[str, str] = {}  # of the pods, beside the runtime's
    hours: float = Field(24.0, gt=0)  # from its creation on, waiting for nodes included; then the job is deleted

    @model_validator(mode="after")
    def _leave_torchrun_its_own(self) -> "TrainJobSection":
        if reserved := sorted(name for name in self.env if name.startswith("PET_")):
            raise ValueError(f"env must not set {', '.join(reserved)}: the cluster tells torchrun its place by PET_*")
        return self

    @property
    def gpus(self) -> int | None:
        """GPUs of a node; None where they are not counted whole."""
        found = self.resources_per_node.get("gpu", self.resources_per_node.get("nvidia.com/gpu", 0))
        return int(found) if str(found).isdigit() else None


class TrainingSection(Section):
    """How plans are trained. Controls are trained beside A and B with the encoders frozen and a light head."""

    plans: list[Plan] = ["baseline", "hybrid", "campplus_only", "muq_frozen"]
    seeds: list[int] = Field([1, 2, 3], min_length=1)
    init: str = Field("scratch", pattern="^(scratch|warm:.+)$")  # warm:FOLDER of a scorer, or of the predecessor
    # The network.
    head: Literal["light", "songeval", "predecessor"] = "light"
    fusion: Literal["frames", "pooled"] = "frames"  # where the timbre joins: at every frame, or after pooling
    layers: Literal["last", "mix"] = "last"  # read encoders.muq.layer alone, or a learned mix up to it
    width: int = Field(64, ge=1)  # channels each branch is projected to
    hidden: int = Field(64, ge=1)
    attention_heads: int = Field(8, ge=1)  # of the SongEval-style head
    attention_layers: int = Field(4, ge=1)
    dropout: float = Field(0.2, ge=0, lt=1)
    # What of MuQ is trained beside the head.
    tuning: Literal["frozen", "lora", "full"] = "frozen"
    tune_from: int = Field(0, ge=0)  # first layer that is tuned; what is below it is heard once and kept
    lora: LoraSection = LoraSection()
    head_epochs: int = Field(0, ge=0)  # of the head alone, on what was heard once, before `epochs` that tune
    gradient_checkpointing: bool = False  # less memory, a second forward pass
    # What is minimised.
    loss: Literal["pairwise", "list_mle"] = "pairwise"
    margin_per_point: float = Field(0.1, ge=0)  # wanted difference of raw scores per point of human score
    order_margin: float = Field(0.5, ge=0)  # the same between two clips of an order without scores
    absolute_weight: float = Field(0.0, ge=0)  # of the SmoothL1 term on absolute scores, beside the ranking loss
    absolute_beta: float = Field(2.0, gt=0)  # points up to which that term is quadratic
    adversary: AdversarySection = AdversarySection()
    # How.
    epochs: int = Field(60, ge=1)
    patience: int = Field(12, ge=1)  # epochs without a better validation figure before training stops
    batch_clips: int = Field(32, ge=2)  # clips whose pairs are compared, over all processes
    micro_clips: int | None = Field(None, ge=1)  # clips in memory at once; all pairs of the batch are compared still
    learning_rate: float = Field(1e-3, gt=0)
    encoder_learning_rate: float = Field(1e-4, gt=0)  # of what is tuned of MuQ
    weight_decay: float = Field(0.05, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_share: Share = 0.0  # of all steps, in which the rate rises from 0
    clip_norm: float = Field(1.0, gt=0)  # gradients are scaled down to this length
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # on a GPU; a CPU always computes in fp32
    # Where: in this process, in several of this machine, or in several machines of a cluster. By default, one process
    # is inproc and more are torchrun.
    launcher: Literal["inproc", "torchrun", "trainjob"] | None = None
    processes: int = Field(1, ge=1)  # of each machine; one a GPU
    trainjob: TrainJobSection = TrainJobSection()
    checkpoint_steps: int = Field(200, ge=1)  # steps between checkpoints, which are also written after each epoch
    save: Literal["adapters", "full"] = "adapters"  # full embeds the whole encoders in every scorer

    @model_validator(mode="after")
    def _both_plans(self) -> "TrainingSection":
        if not {"baseline", "hybrid"} <= set(self.plans) or len(set(self.plans)) != len(self.plans):
            raise ValueError(f"plans must hold baseline and hybrid, each plan once; got {self.plans}")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be different; got {self.seeds}")
        if self.absolute_weight > 0 and self.margin_per_point == 0:
            raise ValueError("absolute_weight needs margin_per_point above 0: it says what a point is in raw units")
        if self.head == "predecessor" and self.fusion != "frames":
            raise ValueError("head predecessor hears MuQ alone: fusion does not apply to it")
        return self

    @model_validator(mode="after")
    def _a_launcher_that_can(self) -> "TrainingSection":
        if self.launcher == "inproc" and self.processes != 1:
            raise ValueError(f"launcher inproc is one process; got processes {self.processes}. Leave one of them out")
        if self.launcher != "trainjob":
            return self
        if self.trainjob.exchange is None:
            raise ValueError("launcher trainjob needs trainjob.exchange: a bucket or folder that step and pods share")
        if self.trainjob.gpus and self.trainjob.gpus != self.processes:
            raise ValueError(
                f"a node has {self.trainjob.gpus} GPUs and processes is {self.processes}: each process needs its own"
            )
        return self

    @property
    def started_by(self) -> Literal["inproc", "torchrun", "trainjob"]:
        """The launcher, where none is named as well."""
        return self.launcher or ("inproc" if self.processes == 1 else "torchrun")

    @property
    def prefix_layer(self) -> int | None:
        """The hidden state of MuQ that what is trained of it starts from; None where nothing above it is."""
        return self.tune_from if self.tuning != "frozen" or self.layers == "mix" else None


class ProbesSection(Section):
    """Held-out clips degraded on purpose: a model that rewards a fault is flagged, or refused if `refuse` says so."""

    clips: int = Field(24, ge=0)  # how many test clips at most; 0 leaves these probes out
    tolerance_points: float = Field(0.5, ge=0)  # a move of the score that is none
    # Probes whose flag refuses promotion, or none.
    refuse: Annotated[list[ProbeName], BeforeValidator(lambda value: [] if value in ("none", None) else value)] = []

    @model_validator(mode="after")
    def _clips_to_refuse_by(self) -> "ProbesSection":
        if self.refuse and self.clips == 0:
            raise ValueError(f"refuse names {', '.join(self.refuse)}, but clips is 0: nothing would be asked")
        return self


class EvaluationSection(Section):
    resamples: int = Field(2000, ge=100)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    seed: int = 0
    probes: ProbesSection = ProbesSection()


class RegistrySection(Section):
    model: str = "audioscore"
    margin: float = 0.0  # how far above the champion the lower bound of the difference must lie
    min_spearman: float = 0.3  # a first model must reach this overall
    # How much Spearman may fall within a source or a band of scores; smaller slices than these are not judged.
    slice_margin: float = Field(0.05, ge=0)
    slice_clips: int = Field(20, ge=3)
    slice_singers: int = Field(5, ge=2)


class Config(Section):
    """A whole run."""

    data: DataSection = DataSection()
    validation: ValidationSection = ValidationSection()
    split: SplitSection = SplitSection()
    encoders: EncodersSection
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    registry: RegistrySection = RegistrySection()
    containers: ContainersSection = ContainersSection()
    cluster: ClusterSection = ClusterSection()

    @model_validator(mode="after")
    def _an_image_to_train_in(self) -> "Config":
        if self.training.launcher == "trainjob" and self.trainjob_image is None:
            raise ValueError("launcher trainjob needs training.trainjob.image, or cluster.image")
        return self

    @property
    def trainjob_image(self) -> str | None:
        """The image that a TrainJob's pods run."""
        return self.training.trainjob.image or self.cluster.image


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML configuration and apply `a.b=value` overrides.

    Folders that start with a dot are relative to the file, in an override to the working folder. Raises UsageError
    naming each key at fault.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such configuration. Shipped ones: {_shipped()}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        raise UsageError(f"{path}: not valid YAML ({' '.join(str(fault).split())}).") from fault
    if not isinstance(values, dict):
        raise UsageError(f"{path}: holds a {type(values).__name__}, not sections of keys. See {SMALL.name}.")
    values = _resolve_folders(values, path.parent)
    for override in overrides:
        _override(values, override)
    return parse_config(_resolve_folders(values, Path.cwd()), str(path))


def parse_config(values: Mapping[str, Any], name: str = "configuration") -> Config:
    """Check configuration values. Raises UsageError that lists every key at fault."""
    try:
        return Config.model_validate(values)
    except ValidationError as fault:
        faults = [f"{'.'.join(map(str, error['loc'])) or 'file'}: {_said(error)}" for error in fault.errors()]
        raise UsageError(f"{name}: {len(faults)} wrong: {shorten(faults)}.") from fault


def _said(error: "ErrorDetails") -> str:
    """What is wrong with a key, in words of somebody who edits the file."""
    if error["type"] == "missing":
        return "must be there, and is not"
    if error["type"] != "extra_forbidden":
        return error["msg"]
    *parents, key = map(str, error["loc"])
    section: Any = Config
    for parent in parents:
        known = section.model_fields[parent].annotation if parent in getattr(section, "model_fields", {}) else None
        section = next((one for one in (known, *get_args(known)) if hasattr(one, "model_fields")), None)
    close = get_close_matches(key, getattr(section, "model_fields", {}))
    verb = "is" if len(close) == 1 else "are"
    return "there is no such key" + (f"; there {verb} {' and '.join(close)}" if close else "")


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {override}: expected a.b=value, for instance --set training.epochs=20.")
    *parents, last = key.strip().split(".")
    section = values
    for parent in parents:
        if section.get(parent) is None:  # not in the file, or its heading with nothing below
            section[parent] = {}
        below = section[parent]
        if not isinstance(below, dict):
            raise UsageError(f"--set {override}: {parent} is a value, not a section. See `audioscore config show`.")
        section = below
    try:
        section[last] = yaml.safe_load(text)
    except yaml.YAMLError as fault:
        raise UsageError(f"--set {override}: the value is not valid YAML.") from fault


def _resolve_folders(values: dict[str, Any], base: Path) -> dict[str, Any]:
    """Make folders that start with a dot absolute; any other encoder source is a hub id."""
    data = values.get("data")
    if isinstance(data, dict) and isinstance(data.get("uri"), str) and data["uri"].startswith("."):
        values = {**values, "data": {**data, "uri": str((base / data["uri"]).resolve())}}
    training = values.get("training")
    if isinstance(training, dict):
        values = {**values, "training": _resolve_training(training, base)}
    encoders = values.get("encoders")
    if not isinstance(encoders, dict):
        return values
    resolved: dict[str, Any] = {}
    for name, section in encoders.items():
        source = section.get("source") if isinstance(section, dict) else None
        if isinstance(source, str) and source.startswith("."):
            section = {**section, "source": str((base / source).resolve())}
        resolved[name] = section
    return {**values, "encoders": resolved}


def _resolve_training(training: dict[str, Any], base: Path) -> dict[str, Any]:
    """`init: warm:./folder`, and where an adversary's weights lie."""
    init, adversary = training.get("init"), training.get("adversary")
    if isinstance(init, str) and init.startswith("warm:."):
        training = {**training, "init": f"warm:{(base / init.removeprefix('warm:')).resolve()}"}
    if isinstance(adversary, dict) and str(adversary.get("source")).startswith("."):
        training = {**training, "adversary": {**adversary, "source": str((base / adversary["source"]).resolve())}}
    return training


def _shipped() -> str:
    return ", ".join(sorted(path.name for path in CONFIGS.glob("*.yaml")))
