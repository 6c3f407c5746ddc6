"""`audioscore compare`: two scorers on the same clips."""

import json
from typing import Annotated, Any

import typer

from audioscore.cli.data_options import ConfigOption, JsonOption
from audioscore.cli.judging import DataOption, SplitOption, with_interval

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
    from audioscore.cli.judging import check_split, gate_settings, scorers_of
    from audioscore.encoders.store import FeatureStore
    from audioscore.home import home
    from audioscore.tracking.compare import compare_predictions, predict_scorers
    from audioscore.tracking.judging_data import sorted_data

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
