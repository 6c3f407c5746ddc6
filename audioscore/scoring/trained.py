"""What training a plan leaves behind: a scorer folder a seed, and plan.json that says how they came about."""

from dataclasses import dataclass
from pathlib import Path

from audioscore.config import Plan
from audioscore.errors import ModelError
from audioscore.files import read_json, write_json

PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class TrainedPlan:
    """A plan's scorers, one a seed. The representative is the seed that did best on validation."""

    plan: Plan
    folder: Path
    representative: int
    validation: dict[int, float]  # seed -> Spearman
    curves: dict[int, list[dict[str, float]]]  # seed -> one entry an epoch
    parameters: int
    trainable: tuple[str, ...]  # names of the parameters that training moved

    def scorer_folder(self, seed: int | None = None) -> Path:
        """Folder of one seed's scorer; of the representative's by default."""
        return self.folder / f"seed-{self.representative if seed is None else seed}"


def write_trained(trained: TrainedPlan) -> None:
    """Write plan.json, last of all: a folder that has it holds every scorer it names."""
    value = {
        "plan": trained.plan,
        "representative": trained.representative,
        "validation": {str(seed): figure for seed, figure in trained.validation.items()},
        "curves": {str(seed): curve for seed, curve in trained.curves.items()},
        "parameters": trained.parameters,
        "trainable": list(trained.trainable),
    }
    write_json(trained.folder / PLAN_FILE, value)


def read_trained(folder: Path) -> TrainedPlan:
    """What `write_trained` wrote. Raises ModelError where training did not finish."""
    source = folder / PLAN_FILE
    if not source.is_file():
        raise ModelError(f"{folder}: holds no {PLAN_FILE}; its training did not finish. Run it again.")
    value = read_json(source)
    return TrainedPlan(
        value["plan"],
        folder,
        value["representative"],
        {int(seed): figure for seed, figure in value["validation"].items()},
        {int(seed): curve for seed, curve in value["curves"].items()},
        value["parameters"],
        tuple(value["trainable"]),
    )
