"""`audioscore evaluate`: scorers against people's scores, with every figure of a run's evaluation."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from audioscore.cli.options import ConfigOption, JsonOption, SingerOption
from audioscore.errors import UsageError

if TYPE_CHECKING:
    from audioscore.config import EvaluationSection, RegistrySection
    from audioscore.tracking.suggest import Suggestions


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
    from audioscore.cli.options import find_model

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


SHOWN = {
    "spearman": "Spearman",
    "spearman_within_source": "Spearman within source",
    "pairwise_accuracy": "pairwise accuracy",
    "kendall": "Kendall tau-b",
    "mae": "MAE (points)",
}


def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Scorer folders, or models:/NAME@ALIAS.")],
    data: DataOption,
    split: SplitOption = "test",
    out: Annotated[Path | None, typer.Option(help="Write predictions.csv and evaluation.json to this folder.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score clips that no model given trained on, and show how well each agrees with people."""
    from dataclasses import replace

    from audioscore.encoders.store import FeatureStore
    from audioscore.evaluation.controls import measured_controls
    from audioscore.evaluation.evaluate import evaluate as evaluate_predictions
    from audioscore.evaluation.noise_ceiling import ratings_of
    from audioscore.evaluation.predict import EVALUATION, PREDICTIONS
    from audioscore.evaluation.predictions import write_predictions
    from audioscore.files import check_writable, write_json
    from audioscore.home import home
    from audioscore.tracking.compare import predict_scorers, sorted_data

    check_split(split)
    if out is not None:
        check_writable(out)
    scorers, judged_on, (_, settings) = scorers_of(models), sorted_data(data), gate_settings(config, None)
    rows, dropped = predict_scorers(scorers, judged_on, split, FeatureStore(home().features))
    figures = evaluate_predictions(
        [replace(row, split="test") for row in rows],  # what is judged on, whichever split it is of
        measured_controls(clip for _, clip in judged_on.clips(split)),
        {row.plan: row.seed for row in rows},
        ratings=ratings_of(clip for _, clip in judged_on.clips(split)),
        reference=models[0],
        resamples=settings.resamples,
        confidence=settings.confidence,
        seed=settings.seed,
    )
    figures |= {"data_digest": judged_on.digest, "split": split, "dropped": dropped}
    if out is not None:
        write_predictions(out / PREDICTIONS, rows)
        write_json(out / EVALUATION, figures)
    if as_json:
        typer.echo(json.dumps(figures, ensure_ascii=False, indent=2))
    else:
        _tell(figures)


def _tell(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for model in figures["plans"]:
        table.add_column(escape(model), overflow="fold")
    for key, title in SHOWN.items():
        table.add_row(title, *(with_interval(of_model[key]) for of_model in figures["plans"].values()))
    console = Console()
    console.print(table)
    counts, dropped = figures["counts"], figures["dropped"]
    left_out = f"; {dropped} more left out, because a model had trained on them" if dropped else ""
    console.print(
        f"{counts['clips']} clips of {counts['singers']} singers, {figures['confidence']:.0%} intervals{left_out}.",
        highlight=False,
    )
    for warning in figures["warnings"]:
        console.print(f"note: {warning}", markup=False, highlight=False, soft_wrap=True)


TITLES = {
    "spearman": "Spearman",
    "spearman_within_source": "Spearman within source",
    "pairwise_accuracy": "pairwise accuracy",
}


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A scorer folder, or models:/NAME@ALIAS.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The other.")],
    data: DataOption,
    split: SplitOption = "test",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score clips that neither model trained on with both, and show the difference B - A with its interval."""
    from audioscore.encoders.store import FeatureStore
    from audioscore.home import home
    from audioscore.tracking.compare import compare_predictions, predict_scorers, sorted_data

    check_split(split)
    scorers, judged_on, (_, settings) = scorers_of([first, second]), sorted_data(data), gate_settings(config, None)
    rows, dropped = predict_scorers(scorers, judged_on, split, FeatureStore(home().features))
    found = {
        "data_digest": judged_on.digest,
        "split": split,
        "dropped": dropped,
        **compare_predictions(rows, first, second, settings),
    }
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, indent=2))
    else:
        _print_comparison(found, first, second)


def _print_comparison(found: dict[str, Any], first: str, second: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("", f"A {first}", f"B {second}", "B - A"):
        table.add_column(escape(heading), overflow="fold")
    for key, title in TITLES.items():
        figures = (with_interval(found["models"][model][key]) for model in (first, second))
        table.add_row(title, *figures, with_interval(found["difference"][key], "delta", signed=True))
    console = Console()
    console.print(table)
    left_out = f"; {found['dropped']} more left out, because a model had trained on them" if found["dropped"] else ""
    console.print(
        f"{found['clips']} clips of {found['singers']} singers, {found['confidence']:.0%} intervals{left_out}.",
        highlight=False,
    )


SOME_FAILED = 3


def suggest(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Recordings; those its labels table scores are skipped.")
    ],
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="How many to suggest.")] = 50,
    run: Annotated[
        str | None, typer.Option(help="The run whose scorers judge: an id or a folder; the last finished by default.")
    ] = None,
    singer_from: SingerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rank recordings without a score by what scoring them would teach, the most useful first."""
    from audioscore.cli.options import stages
    from audioscore.cli.run import find_run
    from audioscore.home import home
    from audioscore.tracking.suggest import suggest_clips, trained_in

    judges = find_run(run)
    with stages() as stage:
        found = suggest_clips(
            folder, trained_in(judges), singer_from=singer_from, memory=home().probes, progress=stage("listening")
        )
    if as_json:
        document = {
            "run": judges.name,
            "models": found.models,
            "scored": found.scored,
            "unscored": len(found.ranked),
            "suggestions": [one.to_json() for one in found.ranked[:number]],
            "refused": [{"audio_file": name, "reason": reason} for name, reason in found.refused.items()],
        }
        typer.echo(json.dumps(document, ensure_ascii=False, indent=2))
    else:
        _print_table(found, number, judges.name)
    if found.refused:
        raise typer.Exit(SOME_FAILED)


def _print_table(found: "Suggestions", number: int, run: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = min(number, len(found.ranked))
    said = f"{shown} of {len(found.ranked)} unscored recordings, by {found.models} models of {run}"
    table = Table(box=None, pad_edge=False, caption=escape(said), caption_justify="left")
    table.add_column("file", overflow="fold")
    for heading in ("gain", "score", "models differ by", "interval", "sparse", "new voice"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found.ranked[:number]:
        figures = (f"{one.gain:.2f}", f"{one.predicted:.1f}", f"{one.disagreement:.1f}", f"{one.width:.1f}")
        table.add_row(escape(one.audio_file), *figures, f"{one.sparsity:.2f}", f"{one.novelty:.2f}")
    Console().print(table)
    for name, reason in found.refused.items():
        typer.echo(f"cannot be scored: {name}: {reason}", err=True)
