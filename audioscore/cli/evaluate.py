"""`audioscore evaluate`: scorers against people's scores, with every figure of a run's evaluation."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from audioscore.cli.data_options import ConfigOption, JsonOption
from audioscore.cli.judging import DataOption, SplitOption, with_interval

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

    from audioscore.cli.judging import check_split, gate_settings, scorers_of
    from audioscore.encoders.store import FeatureStore
    from audioscore.evaluation.controls import measured_controls
    from audioscore.evaluation.evaluate import evaluate as evaluate_predictions
    from audioscore.evaluation.noise_ceiling import ratings_of
    from audioscore.evaluation.predict import EVALUATION, PREDICTIONS
    from audioscore.evaluation.predictions import write_predictions
    from audioscore.files import check_writable, write_json
    from audioscore.home import home
    from audioscore.tracking.compare import predict_scorers
    from audioscore.tracking.judging_data import sorted_data

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
