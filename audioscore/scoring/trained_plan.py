"""What training a plan leaves behind: a scorer folder a seed, and plan.json that says how they came about."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from audioscore.config import Plan
from audioscore.errors import ModelError
from audioscore.files import read_json, write_json

PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class SpeakerFigures:
    """How well a probe names the singers of the validation clips from what the network knows of them.

    Balanced accuracy before the first step and after training; chance is 1 / singers.
    """

    before: float
    after: float
    singers: int


@dataclass(frozen=True)
class Outcome:
    """What came of one seed: validation Spearman, the figure that chose the epoch, one entry of the curve an epoch.

    `parameters` counts what training moved, `trainable` names it.
    """

    validation_spearman: float
    selection: float
    curve: list[dict[str, float]]
    parameters: int
    trainable: tuple[str, ...]
    speakers: SpeakerFigures | None = None


@dataclass(frozen=True)
class TrainedPlan:
    """A plan's scorers, one a seed. The representative is the seed that did best on validation."""

    plan: Plan
    folder: Path
    representative: int
    outcomes: dict[int, Outcome]

    @property
    def validation(self) -> dict[int, float]:
        """Validation Spearman by seed."""
        return {seed: outcome.validation_spearman for seed, outcome in self.outcomes.items()}

    @property
    def curves(self) -> dict[int, list[dict[str, float]]]:
        """Learning curves by seed."""
        return {seed: outcome.curve for seed, outcome in self.outcomes.items()}

    @property
    def chosen(self) -> Outcome:
        """What came of the representative."""
        return self.outcomes[self.representative]

    def scorer_folder(self, seed: int | None = None) -> Path:
        """Folder of one seed's scorer; of the representative's by default."""
        return self.folder / f"seed-{self.representative if seed is None else seed}"


def write_trained(trained: TrainedPlan) -> None:
    """Write plan.json, last of all: a folder that has it holds every scorer it names."""
    value = {
        "plan": trained.plan,
        "representative": trained.representative,
        "seeds": {str(seed): asdict(outcome) for seed, outcome in trained.outcomes.items()},
    }
    write_json(trained.folder / PLAN_FILE, value)


def read_trained(folder: Path) -> TrainedPlan:
    """What `write_trained` wrote. Raises ModelError where training did not finish."""
    source = folder / PLAN_FILE
    if not source.is_file():
        raise ModelError(f"{folder}: holds no {PLAN_FILE}; its training did not finish. Run it again.")
    value = read_json(source)
    outcomes = {int(seed): _outcome(outcome) for seed, outcome in value["seeds"].items()}
    return TrainedPlan(value["plan"], folder, value["representative"], outcomes)


def write_outcome(path: Path, identity: str, outcome: Outcome) -> None:
    """Note that a seed is finished, for a training that is resumed; `identity` says which training it was."""
    write_json(path, {"identity": identity, **asdict(outcome)})


def read_outcome(path: Path, identity: str) -> Outcome | None:
    """What `write_outcome` noted of the same training; None where it noted nothing.

    Raises ModelError where it is of another training, or damaged.
    """
    if not path.is_file():
        return None
    try:
        value = read_json(path)
        if value.pop("identity") == identity:
            return _outcome(value)
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise ModelError(f"{path}: damaged. Delete it, or train without --resume.") from fault
    raise ModelError(
        f"{path}: is of a training with other data, settings or encoders. Use those, or train without --resume."
    )


def _outcome(value: dict[str, Any]) -> Outcome:
    speakers = value["speakers"]
    return Outcome(
        value["validation_spearman"],
        value["selection"],
        value["curve"],
        value["parameters"],
        tuple(value["trainable"]),
        None if speakers is None else SpeakerFigures(**speakers),
    )
