"""The printed summary of a finished run: figures with intervals, the decision, and the next commands."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from audioscore.home import DEMO_MODEL, MODEL, Home

if TYPE_CHECKING:
    from audioscore.config import Config

TITLES = {"baseline": "A baseline (MuQ)", "hybrid": "B hybrid (MuQ + CAM++)"}
FIGURES = {
    "spearman_within_source": "Spearman within source",
    "spearman": "Spearman overall",
    "pairwise_accuracy": "pairwise accuracy",
    "kendall": "Kendall tau-b",
    "mae": "MAE (points)",
}


def print_summary(result: Mapping[str, Any], config: "Config", workspace: Home, seconds: float) -> None:
    """Print the summary of a `run --json` document to standard output.

    Args:
        seconds: duration of the command.
    """
    console = Console()
    data = result["data"]
    confidence = f"{config.evaluation.confidence:.0%}"
    console.print(
        f"\n{data['clips']} clips ({data['train']} train, {data['val']} validation, {data['test']} test), "
        f"{data['rejected']} rejected. Test figures with {confidence} intervals over singers:",
        highlight=False,
    )
    console.print(figures_table(result))
    for line in singer_probe_lines(result):
        console.print(line, style="dim", highlight=False, soft_wrap=True)
    console.print()
    console.print(controls_table(result), style="dim")
    console.print()
    comparison = result["comparison"]
    console.print(
        f"B - A: {_figure(comparison.get('within_source'), 'delta', signed=True)} Spearman within source on the same "
        f"clips, {_figure(comparison, 'delta', signed=True)} overall. "
        f"Winner: {result['winner']}.",
        highlight=False,
    )
    registered = result["registered"]
    verdict = "Promoted" if result["decision"]["promoted"] else "Not promoted"
    aliases = f" ({', '.join(registered['aliases'])})" if registered["aliases"] else ""
    console.print(
        f"{verdict}: {result['decision']['reason']}. "
        f"Registered as {registered['name']} v{registered['version']}{aliases}.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    for warning in result["warnings"]:
        console.print(f"note: {warning}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"\nReport: {result['report']}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"Finished in {seconds / 60:.1f} minutes. Try next:", highlight=False)
    for command in next_commands(config, workspace, result):
        console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)


def figures_table(result: Mapping[str, Any]) -> Table:
    """Table of the plans' test figures, one column per plan."""
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for plan in result["plans"]:
        table.add_column(TITLES.get(plan, plan), no_wrap=True)
    for name, title in FIGURES.items():
        table.add_row(title, *(_figure(figures.get(name)) for figures in result["plans"].values()))
    return table


def singer_probe_lines(result: Mapping[str, Any]) -> list[str]:
    """How well a linear probe recognises the singers of the validation clips, per plan trained with the adversary."""
    return [
        f"{plan}: singer-probe accuracy on validation clips {accuracy['after']:.0%} after training, "
        f"{accuracy['before']:.0%} before (chance {accuracy['chance']:.0%})"
        for plan, figures in result["plans"].items()
        if (accuracy := figures.get("speaker_probe")) is not None
    ]


def controls_table(result: Mapping[str, Any]) -> Table:
    """Table of the controls, which cannot win: how well simple features alone predict the score."""
    table = Table(box=None, pad_edge=False)
    for heading in ("control", "Spearman within source", "overall"):
        table.add_column(heading, no_wrap=True)
    for name, figures in result["controls"].items():
        table.add_row(name, *(_figure(figures.get(figure)) for figure in ("spearman_within_source", "spearman")))
    return table


def next_commands(config: "Config", workspace: Home, result: Mapping[str, Any]) -> list[str]:
    """The commands to score a recording by the champion and by this version, and to open MLflow's interface."""
    model = config.registry.model
    recording = "data/audio/c0001.m4a" if model == DEMO_MODEL else "RECORDING"
    promoted, compared = result["decision"]["promoted"], result["decision"]["delta"] is not None
    models = [f"models:/{model}@champion"] if promoted or compared else []  # without a champion there is no difference
    models += [] if promoted else [f"models:/{model}/{result['registered']['version']}"]
    default = (f"models:/{MODEL}@champion", f"models:/{DEMO_MODEL}@champion")
    options = ["" if name in default else f" --model {shlex.quote(name)}" for name in models]
    return [
        *(f"{program()} score {recording}{option}" for option in options),
        f"{program('mlflow')} ui --backend-store-uri {shlex.quote(workspace.tracking_uri)}",
    ]


def program(name: str = "audioscore") -> str:
    """A command of this environment as it can be typed in the working folder."""
    path = Path(sys.executable).with_name(name)
    if not path.is_file():
        return name
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def _figure(figure: Mapping[str, Any] | None, name: str = "value", *, signed: bool = False) -> str:
    if figure is None or figure[name] is None:
        return "-"
    sign = "+" if signed else ""
    text = f"{figure[name]:{sign}.3f}"
    return text if figure["lo"] is None else f"{text} ({figure['lo']:{sign}.3f}, {figure['hi']:{sign}.3f})"
