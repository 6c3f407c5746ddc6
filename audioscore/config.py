"""The configuration of a run: one YAML file, checked by pydantic models. Unknown keys are errors.

Builders read these models; layers and losses receive plain values.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, ValidationError, model_validator

from audioscore.errors import UsageError, shorten
from audioscore.platforms import (
    ClusterSection,
    ConfigSection,
    ContainersSection,
    DataUri,
    Image,
    Label,
    LabelKey,
    Size,
    Storage,
    Subdomain,
    Variable,
)

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

log = logging.getLogger(__name__)

CONFIGS = Path(__file__).resolve().parents[1] / "pipelines" / "configs"
SMALL = CONFIGS / "small.yaml"  # the default of `run`: encoders that are part of the repository
DEMO = CONFIGS / "demo.yaml"

# Deprecated names, still accepted in files, JSON copies and --set.
RENAMED_KEYS = {("training", "head_epochs"): "head_warmup_epochs", ("evaluation", "probes"): "robustness"}
RENAMED_VALUES = {("training", "head", "predecessor"): "legacy"}
# Settings that may hold a path.
PATHS = (
    ("data", "uri"),
    ("encoders", "muq", "source"),
    ("encoders", "campplus", "source"),
    ("training", "init"),
    ("training", "adversary", "source"),
)

Share = Annotated[float, Field(ge=0, le=1)]
HUB_ID = re.compile(r"(?=.{1,96}$)[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
LONGEST_NAME = 200  # bytes; MLflow and file systems allow 255, and a lock of the same name is longer


def check_model_name(name: str) -> str:
    """Return the name of a registered model. Raises ValueError for one that MLflow, URIs or file systems refuse.

    >>> check_model_name("歌唱 v2")
    '歌唱 v2'
    """
    if bad := sorted({letter for letter in name if letter in "/:@%#?'\"\\" or not letter.isprintable()}):
        raise ValueError(f"{name!r} contains {' '.join(map(repr, bad))}, which names of registered models cannot")
    if name.strip(" .") != name or not 0 < len(name.encode()) <= LONGEST_NAME:
        raise ValueError(
            f"{name[:40]!r} has {len(name.encode())} bytes; a registered model's name has 1 to "
            f"{LONGEST_NAME}, without spaces or dots at its ends"
        )
    return name


ModelName = Annotated[str, AfterValidator(check_model_name)]
Plan = Literal["baseline", "hybrid", "campplus_only", "muq_frozen"]
# Degradations of the robustness tests, see evaluation/robustness/degradations.py.
DegradationName = Literal[
    "noise_30db", "noise_20db", "noise_10db", "clipping", "low_pass", "detune_25", "detune_50", "detune_100",
    "gain_up", "gain_down", "trailing_silence", "reencoding",
]  # fmt: skip
# YAML parses an unquoted `off` as false.
Severity = Annotated[
    Literal["error", "warning", "off"], BeforeValidator(lambda value: "off" if value is False else value)
]


class DataSection(ConfigSection):
    """The data folder, and how its labels table is read."""

    uri: DataUri | None = None  # folder | s3://bucket/prefix | git URL@rev
    column_map: dict[str, str] = Field({})  # column name of audioscore -> header in the table
    singer_from: str | None = None  # regular expression with one group, applied to file names, for the singer


class ValidationSection(ConfigSection):
    """Limits of the data gate."""

    max_rejected_share: Share = 0.1
    min_clips: int = Field(30, ge=3)
    min_seconds: float = Field(1.0, ge=0.25)  # the encoders need at least 0.25 s
    max_seconds: float = Field(3600.0, gt=0, le=3600.0)  # limit of the decoder
    allowed_sources: list[str] | None = None
    # Limits for each recording; `severity` sets whether a violation is an error or a warning.
    max_dc_offset: float = Field(0.02, gt=0, le=1)  # of full scale
    min_mono_loss_db: float = Field(-15.0, le=0)  # level of the mono mix relative to the channels
    min_bandwidth_hz: float = Field(8_100.0, ge=0)
    min_voiced_share: Share = 0.15
    # The gate fails with fewer usable clips; 0 disables the limit.
    min_per_source: int = Field(0, ge=0)
    min_per_band: int = Field(0, ge=0)
    min_singers: int = Field(0, ge=0)
    min_per_singer: int = Field(0, ge=0)
    max_shift: float = Field(0.2, gt=0)  # nats; change of a source's score distribution since the last accepted version
    severity: dict[str, Severity] = Field({})  # rule -> error | warning | off; defaults: data/audio_checks.py (RULES)


class SplitSection(ConfigSection):
    """Sizes of the splits, and how clips without a singer_id are grouped.

    Clips without a singer_id form one pseudo-singer if their mean CAM++ cosine similarity is at least
    `same_voice_cosine`. The best value depends on the encoder. 0.6 was measured for the demo encoder on the demo corpus
    without its singer_ids: the true singer of 9 % of the test clips was in the train split (31 % at 0.5, 48 % at 0.8,
    97 % without grouping). The authors of the published CAM++ use 0.31 for speech.
    """

    val: Share = 0.2
    test: Share = 0.2
    seed: int = 7
    # Of the cross-validation over train and val; by default 5, or 1 (val alone) where MuQ is tuned.
    folds: int | None = Field(None, ge=1, le=50)
    pseudo_singers: bool = True  # group clips without a singer_id by their CAM++ embeddings
    same_voice_cosine: float = Field(0.6, gt=0, lt=1)

    @model_validator(mode="after")
    def _check_shares(self) -> "SplitSection":
        if self.val <= 0 or self.test <= 0 or self.val + self.test >= 1:
            raise ValueError(f"val {self.val} and test {self.test} must be above 0, and their sum below 1")
        return self


def _check_source(source: str) -> str:
    """Return the source of an encoder. Raises ValueError for one that is neither a path nor an id of a hub."""
    if not (source.startswith(("/", "~")) or HUB_ID.fullmatch(source) or (source and Path(source).is_dir())):
        raise ValueError(f"{source!r} is neither a folder nor a hub's OWNER/NAME of letters, digits, '-', '_' and '.'")
    return source


class EncoderSection(ConfigSection):
    """Source of an encoder's weights: a hub id with a pinned revision, or a folder in the hub's layout."""

    source: Annotated[str, AfterValidator(_check_source)]
    revision: str | None = None
    layer: int | None = Field(None, ge=1)  # MuQ only: the hidden state that is used
    # Expected hash of the weights, as `encoders pull` prints it.
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-fA-F]{64}$", to_lower=True)] | None = None


class EncodersSection(ConfigSection):
    """The two encoders."""

    muq: EncoderSection
    campplus: EncoderSection
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # on GPUs; CPUs always use fp32


class LoraSection(ConfigSection):
    """Low-rank adapters in MuQ's attention."""

    rank: int = Field(128, ge=1)
    alpha: int = Field(48, ge=1)  # adapters are scaled by alpha / rank
    dropout: float = Field(0.0, ge=0, lt=1)


class AdversarySection(ConfigSection):
    """Adversarial training: a discriminator predicts the speaker embedding, and its gradient is reversed."""

    weight: float = Field(0.0, ge=0)  # of the reversed gradient after the ramp; 0 disables the adversary
    target: Literal["campplus", "ge2e", "samoye"] = "campplus"
    source: str | None = None  # ge2e: Resemblyzer's pretrained.pt; samoye: folder with best_model.pth.tar, config.json
    hidden: int = Field(256, ge=1)

    @model_validator(mode="after")
    def _check_source(self) -> "AdversarySection":
        if self.weight > 0 and self.target != "campplus" and self.source is None:
            raise ValueError(f"target {self.target} needs source, the path of its weights")
        return self


class TrainJobSection(ConfigSection):
    """Training on several machines of a cluster, by a TrainJob of Kubeflow Trainer.

    Scheduling, volumes and credentials belong to the training runtime on the cluster, not to this section.
    """

    # Storage that the step and the pods share: s3://BUCKET/PREFIX, or a folder mounted at the same path.
    exchange: Storage | None = None
    image: Image | None = None  # image of the pods, with this code; default: cluster.image
    runtime: Subdomain = "torch-distributed"
    namespace: Label | None = None  # default: of the step's pod or the kubeconfig's context
    num_nodes: int = Field(2, ge=1)
    resources_per_node: dict[LabelKey, Annotated[int, Field(ge=0)] | Size] = Field(
        {}
    )  # {gpu: 4, cpu: 16, memory: 64Gi}; request and limit
    env: dict[Variable, str] = Field({})  # of the pods, in addition to the runtime's
    hours: float = Field(24.0, gt=0)  # time limit including the wait for nodes; then the job is deleted

    @model_validator(mode="after")
    def _check_env(self) -> "TrainJobSection":
        if reserved := sorted(name for name in self.env if name.startswith("PET_")):
            raise ValueError(f"env must not set {', '.join(reserved)}: PET_* variables are reserved for torchrun")
        return self

    @property
    def gpus(self) -> int | None:
        """GPUs of a node; None if the number is not an integer."""
        found = self.resources_per_node.get("gpu", self.resources_per_node.get("nvidia.com/gpu", 0))
        return int(found) if str(found).isdigit() else None


class TrainingSection(ConfigSection):
    """How plans are trained. Controls always use frozen encoders and a light head."""

    plans: list[Plan] = Field(["baseline", "hybrid", "campplus_only", "muq_frozen"])
    seeds: list[int] = Field([1, 2, 3], min_length=1)
    init: str = Field("scratch", pattern="^(scratch|warm:.+)$")  # warm:FOLDER of a scorer or a legacy model
    # The network.
    head: Literal["light", "songeval", "legacy"] = "light"
    fusion: Literal["frames", "pooled"] = "frames"  # where CAM++ features are joined: at each frame, or after pooling
    layers: Literal["last", "mix"] = "last"  # encoders.muq.layer only, or a learned mix of the layers up to it
    width: int = Field(64, ge=1)  # channels of each projected branch
    hidden: int = Field(64, ge=1)
    attention_heads: int = Field(8, ge=1)  # of the songeval head
    attention_layers: int = Field(4, ge=1)
    dropout: float = Field(0.2, ge=0, lt=1)
    # The part of MuQ that is trained.
    tuning: Literal["frozen", "lora", "full"] = "frozen"
    tune_from: int = Field(0, ge=0)  # first tuned layer; outputs of the layers below are computed once and stored
    lora: LoraSection = LoraSection()
    head_warmup_epochs: int = Field(0, ge=0)  # of the head alone on stored features, before `epochs` of tuning
    gradient_checkpointing: bool = False  # less memory, but a second forward pass
    # The loss.
    loss: Literal["pairwise", "list_mle"] = "pairwise"
    margin_per_point: float = Field(0.1, ge=0)  # target difference of raw scores per point of human score
    order_margin: float = Field(0.5, ge=0)  # target difference between two ordered clips without scores
    absolute_weight: float = Field(0.0, ge=0)  # of the SmoothL1 loss on absolute scores, added to the ranking loss
    absolute_beta: float = Field(2.0, gt=0)  # points; below this error the SmoothL1 loss is quadratic
    adversary: AdversarySection = AdversarySection()
    # Optimization.
    epochs: int = Field(60, ge=1)
    patience: int = Field(12, ge=1)  # early stopping: epochs without a better validation Spearman
    batch_clips: int = Field(32, ge=2)  # clips whose pairs are compared, summed over all processes
    micro_clips: int | None = Field(None, ge=1)  # clips of one forward pass; all pairs of the batch are still compared
    learning_rate: float = Field(1e-3, gt=0)
    encoder_learning_rate: float = Field(1e-4, gt=0)  # of the tuned part of MuQ
    weight_decay: float = Field(0.05, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_share: Share = 0.0  # share of the steps in which the learning rate rises from 0
    clip_norm: float = Field(1.0, gt=0)  # maximum gradient norm
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # on GPUs; CPUs always use fp32
    # This process (inproc), several processes of this machine (torchrun), or several machines of a cluster (trainjob).
    # Default: inproc for one process, else torchrun.
    launcher: Literal["inproc", "torchrun", "trainjob"] | None = None
    processes: int = Field(1, ge=1)  # on each machine; one for each GPU
    trainjob: TrainJobSection = TrainJobSection()
    checkpoint_steps: int = Field(200, ge=1)  # steps between checkpoints; one is also written after each epoch
    save: Literal["adapters", "full"] = "adapters"  # full: each scorer contains the whole encoders

    @model_validator(mode="after")
    def _check_combinations(self) -> "TrainingSection":
        if not {"baseline", "hybrid"} <= set(self.plans) or len(set(self.plans)) != len(self.plans):
            raise ValueError(f"plans must contain baseline and hybrid, and each plan once; got {self.plans}")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be different; got {self.seeds}")
        if self.absolute_weight > 0 and self.margin_per_point == 0:
            raise ValueError("absolute_weight needs margin_per_point above 0, the scale of raw scores")
        if self.head == "legacy" and self.fusion != "frames":
            raise ValueError("head legacy reads MuQ features only: fusion does not apply to it")
        return self

    @model_validator(mode="after")
    def _check_launcher(self) -> "TrainingSection":
        if self.launcher == "inproc" and self.processes != 1:
            raise ValueError(f"launcher inproc runs one process; got processes {self.processes}. Remove one of them")
        if self.launcher != "trainjob":
            return self
        if self.trainjob.exchange is None:
            raise ValueError(
                "launcher trainjob needs trainjob.exchange, a bucket or folder that the step and the pods share"
            )
        if self.trainjob.gpus and self.trainjob.gpus != self.processes:
            raise ValueError(
                f"a node has {self.trainjob.gpus} GPUs and processes is {self.processes}; each process needs one GPU"
            )
        return self

    @property
    def resolved_launcher(self) -> Literal["inproc", "torchrun", "trainjob"]:
        """The launcher, or its default."""
        return self.launcher or ("inproc" if self.processes == 1 else "torchrun")

    @property
    def prefix_layer(self) -> int | None:
        """Index of the stored MuQ hidden state that training starts from; None if only the read layer is needed."""
        return self.tune_from if self.tuning != "frozen" or self.layers == "mix" else None


class RobustnessSection(ConfigSection):
    """Robustness tests: test clips are degraded, and a model that fails one is flagged, or refused by `refuse`."""

    clips: int = Field(24, ge=0)  # maximum number of test clips; 0 disables the tests
    tolerance_points: float = Field(1.0, ge=0)  # points; smaller changes count as zero
    # Degradations whose flag refuses promotion.
    refuse: Annotated[
        list[DegradationName], BeforeValidator(lambda value: [] if value in ("none", None) else value)
    ] = Field([])

    @model_validator(mode="after")
    def _check_refuse(self) -> "RobustnessSection":
        if self.refuse and self.clips == 0:
            raise ValueError(f"refuse names {', '.join(self.refuse)}, but clips is 0, so no test runs")
        return self


class EvaluationSection(ConfigSection):
    """Bootstrap intervals and robustness tests."""

    resamples: int = Field(2000, ge=100)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    seed: int = 0
    robustness: RobustnessSection = RobustnessSection()

    @property
    def bootstrap(self) -> dict[str, Any]:
        """Arguments of the bootstrap."""
        return {"confidence": self.confidence, "resamples": self.resamples, "seed": self.seed}


class RegistrySection(ConfigSection):
    """The registered model and the thresholds of the promotion gate."""

    model: ModelName = "audioscore"
    margin: float = 0.0  # required lower bound of the difference in within-source Spearman to the champion
    overall_margin: float = Field(0.02, ge=0)  # allowed decrease of overall Spearman
    min_spearman: float = 0.3  # required overall Spearman of the first version
    # Allowed decrease of Spearman within a source or score band, and the smallest slices that are evaluated.
    slice_margin: float = Field(0.05, ge=0)
    slice_clips: int = Field(20, ge=3)
    slice_singers: int = Field(5, ge=2)


class Config(ConfigSection):
    """The configuration of a run."""

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
    def _check_image(self) -> "Config":
        if self.training.launcher == "trainjob" and self.trainjob_image is None:
            raise ValueError("launcher trainjob needs training.trainjob.image, or cluster.image")
        return self

    @model_validator(mode="after")
    def _check_folds(self) -> "Config":
        folds, training = self.split.folds or 1, self.training
        nodes = training.trainjob.num_nodes if training.resolved_launcher == "trainjob" else 1
        if folds > 1 and training.processes * nodes > 1:
            raise ValueError(
                f"split.folds {folds}, training.processes {training.processes}, nodes {nodes}: a cross-validation runs "
                f"in one process. Set split.folds to 1, or the others"
            )
        return self

    @property
    def trainjob_image(self) -> str | None:
        """Image of a TrainJob's pods."""
        return self.training.trainjob.image or self.cluster.image


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML configuration and apply `a.b=value` overrides.

    Paths that start with a dot are relative to the file; in an override, to the working folder. Raises UsageError that
    lists each invalid key.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such configuration. Use one of these, or your own: {_shipped()}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid YAML ({' '.join(str(error).split())}). Correct it.") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: contains a {type(values).__name__} instead of sections. See {SMALL.name}.")
    values = _resolve_folders(rename_deprecated(values, str(path)), path.parent)
    _check_one_name(overrides)
    for override in overrides:
        _override(values, override)
    return parse_config(_resolve_folders(values, Path.cwd()), str(path))


def parse_config(values: Mapping[str, Any], name: str = "configuration") -> Config:
    """Check configuration values. Raises UsageError that lists each invalid key."""
    try:
        return Config.model_validate(rename_deprecated(values, name))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, one['loc'])) or 'file'}: {_describe(one)}" for one in error.errors()]
        raise UsageError(f"{name}: {len(problems)} invalid: {shorten(problems)}. Correct it.") from error


def rename_deprecated(values: Mapping[str, Any], source: str, level: int = logging.WARNING) -> dict[str, Any]:
    """Replace deprecated keys and values by the current ones, and log each at `level`.

    Raises UsageError where a section has both names of a key.
    """
    renamed = dict(values)
    for (heading, old), new in RENAMED_KEYS.items():
        section = renamed.get(heading)
        if not isinstance(section, Mapping) or old not in section:
            continue
        if new in section:
            raise UsageError(f"{source}: {heading}.{old} and {heading}.{new} are the same key. Remove {old}.")
        log.log(level, "%s: %s.%s is deprecated, use %s.%s", source, heading, old, heading, new)
        renamed[heading] = {new if key == old else key: value for key, value in section.items()}
    for (heading, key, old), new in RENAMED_VALUES.items():
        section = renamed.get(heading)
        if isinstance(section, Mapping) and section.get(key) == old:
            log.log(level, "%s: %s.%s: %s is deprecated, use %s", source, heading, key, old, new)
            renamed[heading] = {**section, key: new}
    return renamed


def _check_one_name(overrides: Sequence[str]) -> None:
    """Raise UsageError where overrides use both the deprecated and the current name of a key."""
    keys = [tuple(override.partition("=")[0].strip().split(".")[:2]) for override in overrides]
    for (heading, old), new in RENAMED_KEYS.items():
        if (heading, old) in keys and (heading, new) in keys:
            raise UsageError(f"--set {heading}.{old} and {heading}.{new}: the same key. Remove {heading}.{old}.")


def _describe(error: "ErrorDetails") -> str:
    """Describe the problem of one key."""
    if error["type"] == "missing":
        return "is required"
    if error["type"] != "extra_forbidden":
        return error["msg"].removeprefix("Value error, ")
    *parents, key = map(str, error["loc"])
    section: Any = Config
    for parent in parents:
        field = section.model_fields[parent].annotation if parent in getattr(section, "model_fields", {}) else None
        section = next((one for one in (field, *get_args(field)) if hasattr(one, "model_fields")), None)
    close = get_close_matches(key, getattr(section, "model_fields", {}))
    return "unknown key" + (f"; similar keys: {' and '.join(close)}" if close else "")


def _override(values: dict[str, Any], override: str) -> None:
    """Set the value of one `a.b=value` override."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {override}: expected a.b=value. Example: --set training.epochs=20.")
    try:
        given = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {override}: the value is not valid YAML. Correct it.") from error
    path = key.strip().split(".")
    for name in reversed(path):
        given = {name: given}
    given = rename_deprecated(given, f"--set {override}")
    section = values
    for _ in path[:-1]:
        ((parent, given),) = given.items()
        if section.get(parent) is None:  # missing, or an empty heading
            section[parent] = {}
        below = section[parent]
        if not isinstance(below, dict):
            raise UsageError(f"--set {override}: {parent} is a value, not a section. See `audioscore config show`.")
        section = below
    section.update(given)


def _resolve_folders(values: dict[str, Any], base: Path) -> dict[str, Any]:
    """Make the paths among the settings that start with a dot absolute; other encoder sources are hub ids."""
    for *headings, name in PATHS:
        section: Any = values
        for heading in headings:
            section = section.get(heading) if isinstance(section, dict) else None
        given = section.get(name) if isinstance(section, dict) else None
        prefix = "warm:" if name == "init" else ""
        if isinstance(given, str) and given.startswith(f"{prefix}."):
            section[name] = f"{prefix}{(base / given.removeprefix(prefix)).resolve()}"
    return values


def _shipped() -> str:
    return ", ".join(sorted(path.name for path in CONFIGS.glob("*.yaml")))
