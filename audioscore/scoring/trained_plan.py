"""Files of a trained plan: a scorer folder for each seed, and plan.json with the results of the training."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from audioscore.config import Plan
from audioscore.errors import ModelError
from audioscore.files import read_json, write_json

PLAN_FILE, OUT_OF_FOLD = "plan.json", "out_of_fold.json"


@dataclass(frozen=True)
class SpeakerFigures:
    """Balanced accuracy of a singer probe on the network's representations of the validation clips.

    Measured before the first step and after training; chance is 1 / singers.
    """

    before: float
    after: float
    singers: int


@dataclass(frozen=True)
class Outcome:
    """Result of training one seed: validation Spearman, the value that selected the epoch, and the curve by epoch.

    `parameters` is the number of trained parameters, `trainable` their names.
    """

    validation_spearman: float
    selection: float
    curve: list[dict[str, float]]
    parameters: int
    trainable: tuple[str, ...]
    speakers: SpeakerFigures | None = None
    centre: float = 0.0  # mean raw output on the training clips, which out-of-fold outputs are relative to


@dataclass(frozen=True)
class OutOfFold:
    """For each scored clip outside the test split, the output of a model that was trained without its singer.

    `raw` is 0 at the mean output of that model on its training clips; `epochs` is the number of epochs they are from.
    """

    folds: int
    epochs: int
    raw: dict[str, float]  # by SHA-256 of the recording
    identity: str = ""  # of clips, settings and encoders, by which a resumed training recognises its result
    fits: str = ""  # hash of the seeds and folds

    def write(self, folder: Path) -> None:
        """Write out_of_fold.json."""
        write_json(folder / OUT_OF_FOLD, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "OutOfFold | None":
        """Read what `write` wrote; None for a plan that was not cross-validated."""
        return cls(**read_json(folder / OUT_OF_FOLD)) if (folder / OUT_OF_FOLD).is_file() else None


@dataclass(frozen=True)
class TrainedPlan:
    """The scorers of a plan, one for each seed. The representative is the seed with the best validation result, or the
    first one of a cross-validated plan.
    """

    plan: Plan
    folder: Path
    representative: int
    outcomes: dict[int, Outcome]

    @property
    def validation(self) -> dict[int, float]:
        """Validation Spearman by seed."""
        return {seed: outcome.validation_spearman for seed, outcome in self.outcomes.items()}

    @property
    def selections(self) -> dict[int, float]:
        """The validation result that selected the epoch, within-source Spearman, by seed."""
        return {seed: outcome.selection for seed, outcome in self.outcomes.items()}

    @property
    def curves(self) -> dict[int, list[dict[str, float]]]:
        """Learning curves by seed."""
        return {seed: outcome.curve for seed, outcome in self.outcomes.items()}

    @property
    def chosen(self) -> Outcome:
        """Result of the representative seed."""
        return self.outcomes[self.representative]

    def scorer_folder(self, seed: int | None = None) -> Path:
        """Return the folder of the scorer of a seed; by default of the representative."""
        return self.folder / f"seed-{self.representative if seed is None else seed}"


def write_trained(trained: TrainedPlan) -> None:
    """Write plan.json. Call it last: a folder with a plan.json holds all scorers that the file names."""
    value = {
        "plan": trained.plan,
        "representative": trained.representative,
        "seeds": {str(seed): asdict(outcome) for seed, outcome in trained.outcomes.items()},
    }
    write_json(trained.folder / PLAN_FILE, value)


def read_trained(folder: Path) -> TrainedPlan:
    """Read what `write_trained` wrote. Raises ModelError if training did not finish."""
    source = folder / PLAN_FILE
    if not source.is_file():
        raise ModelError(f"{folder}: {PLAN_FILE} is missing, because training did not finish. Run the training again.")
    value = read_json(source)
    outcomes = {int(seed): _outcome(outcome) for seed, outcome in value["seeds"].items()}
    return TrainedPlan(value["plan"], folder, value["representative"], outcomes)


def write_outcome(path: Path, identity: str, outcome: Outcome) -> None:
    """Record that a seed is finished, for a resumed training; `identity` identifies the training."""
    write_json(path, {"identity": identity, **asdict(outcome)})


def read_outcome(path: Path, identity: str) -> Outcome | None:
    """Read what `write_outcome` recorded for the same training; None if the file does not exist.

    Raises ModelError if the file is damaged or belongs to another training.
    """
    if not path.is_file():
        return None
    try:
        value = read_json(path)
        if value.pop("identity") == identity:
            return _outcome(value)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: damaged. Delete it, or train without --resume.") from error
    raise ModelError(
        f"{path}: belongs to a training with other data, settings or encoders. Use those, or train without --resume."
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
        value.get("centre", 0.0),
    )
