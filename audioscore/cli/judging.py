"""What `promote`, `compare` and `evaluate` share: settings, data, and the models that are named."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from audioscore.errors import UsageError

if TYPE_CHECKING:
    from audioscore.config import EvaluationSection, RegistrySection

ModelNameOption = Annotated[str, typer.Option("--model", metavar="NAME", help="The registered model's name.")]
SplitOption = Annotated[
    str, typer.Option(metavar="test|val|train|all", help="Which scored clips; those a model trained on are left out.")
]
DataOption = Annotated[Path, typer.Option(help="A data folder that `audioscore data sort` has sorted.")]


def gate_settings(config: Path | None, run: Path | None) -> "tuple[RegistrySection, EvaluationSection]":
    """The gate's settings: of a configuration, else of the run that registered the version; the defaults where no run
    is meant. Raises UsageError where that run's settings are there no longer: others might be easier to pass.
    """
    from audioscore.config import EvaluationSection, RegistrySection, load_config

    if config is None and run is not None:
        if not run.is_file():
            raise UsageError(f"{run}: the settings of the version's run are there no longer. Name some with --config.")
        config = run
    if config is None:
        return RegistrySection(), EvaluationSection()
    loaded = load_config(config)
    return loaded.registry, loaded.evaluation


def check_split(split: str) -> None:
    """Raise UsageError where there is no such split."""
    if split not in ("test", "val", "train", "all"):
        raise UsageError(f"--split {split}: there are test, val, train and all.")


def scorers_of(models: Sequence[str]) -> dict[str, Path]:
    """Scorer folders by the name they were given under. Raises UsageError where one is named twice."""
    from audioscore.cli.find_model import find_model

    twice = sorted({model for model in models if list(models).count(model) > 1})
    if twice:
        raise UsageError(f"{', '.join(twice)}: named twice. Name each model once.")
    return {model: find_model(model)[1] for model in models}


def with_interval(figure: Mapping[str, Any] | None, name: str = "value", *, signed: bool = False) -> str:
    """An estimate for a table.

    >>> with_interval({"value": 0.5, "lo": 0.25, "hi": 0.75}), with_interval(None)
    ('0.500 (0.250 to 0.750)', '-')
    """
    if figure is None or figure[name] is None:
        return "-"
    sign = "+" if signed else ""
    text = f"{figure[name]:{sign}.3f}"
    return text if figure["lo"] is None else f"{text} ({figure['lo']:{sign}.3f} to {figure['hi']:{sign}.3f})"
