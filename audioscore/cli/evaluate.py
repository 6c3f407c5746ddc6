"""`audioscore evaluate`, `compare` and `suggest`: measure how well models agree with human scores."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from audioscore.cli.options import SOME_FAILED, ConfigOption, JsonOption, SingerOption, find_model, stages
from audioscore.errors import UsageError

if TYPE_CHECKING:
    from audioscore.config import EvaluationSection, RegistrySection
    from audioscore.data.clips import Clip
    from audioscore.evaluation.predictions import Prediction
    from audioscore.tracking.suggest import Suggestions

DataOption = Annotated[Path, typer.Option(help="Sorted data folder, see `audioscore data sort`.")]
SplitOption = Annotated[
    str,
    typer.Option(metavar="test|val|train|all", help="Split to score; clips that a model was trained on are excluded."),
]

METRICS = {
    "spearman_within_source": "Spearman within source",
    "spearman": "Spearman overall",
    "pairwise_accuracy": "pairwise accuracy",
    "kendall": "Kendall tau-b",
    "mae": "MAE (points)",
}
COMPARED = ("spearman_within_source", "spearman", "pairwise_accuracy")


def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Scorer folders, or models:/NAME@ALIAS.")],
    data: DataOption,
    split: SplitOption = "test",
    out: Annotated[
        Path | None, typer.Option(help="Folder into which predictions.csv and evaluation.json are written.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how well models agree with human scores. Only clips that no model was trained on are used."""
    from dataclasses import replace

    from audioscore.evaluation.controls import measured_controls
    from audioscore.evaluation.evaluate import evaluate as evaluate_predictions
    from audioscore.evaluation.noise_ceiling import ratings_of
    from audioscore.evaluation.predict import EVALUATION, PREDICTIONS
    from audioscore.evaluation.predictions import write_predictions
    from audioscore.files import check_writable, write_json

    _check_split(split)
    if out is not None:
        check_writable(out)
    rows, basis, clips, settings = _predict(models, data, split, config)
    figures = evaluate_predictions(
        [replace(row, split="test") for row in rows],  # evaluate_predictions uses the test split only
        measured_controls(clips),
        {row.plan: row.seed for row in rows},
        ratings=ratings_of(clips),
        reference=models[0],
        **settings.bootstrap,
    )
    figures |= basis
    if out is not None:
        write_predictions(out / PREDICTIONS, rows)
        write_json(out / EVALUATION, figures)
    if as_json:
        typer.echo(json.dumps(figures, ensure_ascii=False, indent=2))
        return
    _print_table(
        ["", *figures["plans"]],
        [
            [title, *(format_estimate(of_model[key]) for of_model in figures["plans"].values())]
            for key, title in METRICS.items()
        ],
        f"{_counts(figures['counts'], figures)}.",
    )
    for warning in figures["warnings"]:
        typer.echo(f"note: {warning}")


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A scorer folder, or models:/NAME@ALIAS.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The scorer to compare it with.")],
    data: DataOption,
    split: SplitOption = "test",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the difference B - A between two models. Only clips that neither was trained on are used."""
    from audioscore.tracking.compare import compare_predictions

    _check_split(split)
    rows, basis, _, settings = _predict([first, second], data, split, config)
    found = basis | compare_predictions(rows, first, second, settings)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, indent=2))
        return
    _print_table(
        ["", f"A {first}", f"B {second}", "B - A"],
        [
            [
                METRICS[key],
                *(format_estimate(found["models"][model][key]) for model in (first, second)),
                format_estimate(found["difference"][key], "delta", signed=True),
            ]
            for key in COMPARED
        ],
        f"{_counts(found, found)}.",
    )


def suggest(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of recordings; those with a score in its table are skipped.")
    ],
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Number of recordings to suggest.")] = 50,
    run: Annotated[
        str | None, typer.Option(help="Id or folder of the run whose models are used. Default: the last finished run.")
    ] = None,
    singer_from: SingerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rank unscored recordings by the value of their scores for training."""
    from audioscore.cli.run import find_run
    from audioscore.home import home
    from audioscore.tracking.suggest import suggest_clips, trained_in

    source = find_run(run)
    with stages() as stage:
        found = suggest_clips(
            folder,
            trained_in(source),
            singer_from=singer_from,
            cache=home().measurements,
            progress=stage("checking recordings"),
        )
    if as_json:
        document = {
            "run": source.name,
            "models": found.models,
            "scored": found.scored,
            "unscored": len(found.ranked),
            "suggestions": [one.to_json() for one in found.ranked[:number]],
            "refused": [{"audio_file": name, "reason": reason} for name, reason in found.refused.items()],
        }
        typer.echo(json.dumps(document, ensure_ascii=False, indent=2))
    else:
        _print_suggestions(found, number, source.name)
    if found.refused:
        raise typer.Exit(SOME_FAILED)


def gate_settings(config: Path | None, run: Path | None) -> "tuple[RegistrySection, EvaluationSection]":
    """Read the gate's settings from --config, else from the run that registered the version, else the defaults.

    Raises UsageError if the settings of that run no longer exist: the defaults might be less strict.
    """
    from audioscore.config import EvaluationSection, RegistrySection, load_config

    if config is None and run is not None:
        if not run.is_file():
            raise UsageError(f"{run}: the settings of the version's run no longer exist. Pass --config.")
        config = run
    if config is None:
        return RegistrySection(), EvaluationSection()
    loaded = load_config(config)
    return loaded.registry, loaded.evaluation


def _check_split(split: str) -> None:
    if split not in ("test", "val", "train", "all"):
        raise UsageError(f"--split {split}: unknown split. Use test, val, train or all.")


def _predict(
    models: Sequence[str], data: Path, split: str, config: Path | None
) -> "tuple[list[Prediction], dict[str, Any], list[Clip], EvaluationSection]":
    """Predict a split by the models. Returns the rows, what they are based on, the split's clips, and the settings."""
    from audioscore.encoders.store import FeatureStore
    from audioscore.home import home
    from audioscore.tracking.compare import predict_scorers, sorted_data

    scorers, folder, (_, settings) = _find_scorers(models), sorted_data(data), gate_settings(config, None)
    rows, dropped = predict_scorers(scorers, folder, split, FeatureStore(home().features))
    basis = {"data_digest": folder.digest, "split": split, "dropped": dropped}
    return rows, basis, [clip for _, clip in folder.clips(split)], settings


def _find_scorers(models: Sequence[str]) -> dict[str, Path]:
    """Return the scorer folder of each model. Raises UsageError if a model is given twice."""
    twice = sorted({model for model in models if list(models).count(model) > 1})
    if twice:
        raise UsageError(f"{', '.join(twice)}: given twice. Give each model once.")
    return {model: find_model(model)[1] for model in models}


def format_estimate(figure: Mapping[str, Any] | None, name: str = "value", *, signed: bool = False) -> str:
    """Format an estimate and its interval for a table.

    >>> format_estimate({"value": 0.5, "lo": 0.25, "hi": 0.75}), format_estimate(None)
    ('0.500 (0.250 to 0.750)', '-')
    """
    if figure is None or figure[name] is None:
        return "-"
    sign = "+" if signed else ""
    text = f"{figure[name]:{sign}.3f}"
    return text if figure["lo"] is None else f"{text} ({figure['lo']:{sign}.3f} to {figure['hi']:{sign}.3f})"


def _counts(counts: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    """Describe the clips that an evaluation used."""
    text = f"{counts['clips']} clips of {counts['singers']} singers, {figures['confidence']:.0%} intervals"
    if figures["dropped"]:
        text += f"; {figures['dropped']} clips excluded, because a model was trained on them"
    return text


def _print_table(headings: Sequence[str], lines: Sequence[Sequence[str]], caption: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(escape(heading), overflow="fold", no_wrap=not heading)
    for line in lines:
        table.add_row(*line)
    console = Console()
    console.print(table)
    console.print(caption, highlight=False)


def _print_suggestions(found: "Suggestions", number: int, run: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = min(number, len(found.ranked))
    caption = f"{shown} of {len(found.ranked)} unscored recordings, by {found.models} models of {run}"
    table = Table(box=None, pad_edge=False, caption=escape(caption), caption_justify="left")
    table.add_column("file", overflow="fold")
    for heading in ("gain", "score", "models differ by", "interval", "sparse", "new voice"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found.ranked[:number]:
        figures = (f"{one.gain:.2f}", f"{one.predicted:.1f}", f"{one.disagreement:.1f}", f"{one.width:.1f}")
        table.add_row(escape(one.audio_file), *figures, f"{one.sparsity:.2f}", f"{one.novelty:.2f}")
    Console().print(table)
    for name, reason in found.refused.items():
        typer.echo(f"cannot be scored: {name}: {reason}", err=True)
