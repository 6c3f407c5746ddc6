"""`audioscore train`: plans on a sorted data folder, without the pipeline around them."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from audioscore.cli.options import ConfigOption, JsonOption


def train(
    data: Annotated[Path, typer.Option(help="A data folder that `audioscore data sort` has sorted.")],
    out: Annotated[Path, typer.Option(help="Where a folder for each plan is written.")],
    config: ConfigOption = None,
    plan: Annotated[
        list[str] | None,
        typer.Option(help="baseline, hybrid or a control; all configured ones by default."),
    ] = None,
    init: Annotated[
        str | None, typer.Option(help="scratch, or warm:FOLDER of a scorer or of the predecessor's model.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep finished seeds, and go on where the one under way stood.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    mlflow: Annotated[
        str | None, typer.Option(metavar="EXPERIMENT", help="Log learning curves to this MLflow experiment.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override one setting: a.b=value. May be repeated.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train plans, a scorer a seed; the same trainer as `torchrun -m audioscore.training`.

    With training.processes above 1, torchrun starts that many processes here. Nothing is registered.
    """
    from audioscore.config import SMALL, load_config
    from audioscore.errors import UsageError
    from audioscore.files import check_writable
    from audioscore.scoring.scorer import plan_named
    from audioscore.scoring.trained_plan import read_trained

    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {device}: there are auto, cpu and cuda.")
    changed = [*(overrides or []), *([] if init is None else [f"training.init={json.dumps(init)}"])]
    settings = load_config(config or SMALL, changed).training
    plans = [plan_named(name) for name in dict.fromkeys(plan or settings.plans)]
    if not resume and (there := [str(out / name) for name in plans if (out / name).is_dir()]):
        raise UsageError(
            f"{', '.join(there)}: there is a training already. --resume goes on with it; for another one, name another "
            "--out, or remove what is there."
        )
    check_writable(out)
    options = ["--config", str(config or SMALL), "--data", str(data), "--out", str(out), "--device", device]
    options += [part for override in changed for part in ("--set", override)]
    options += [part for name in plans for part in ("--plan", name)]
    options += [] if mlflow is None else ["--mlflow", mlflow]
    try:
        _run([*options, *["--resume"] * resume], settings.processes)
    except KeyboardInterrupt:
        typer.echo("interrupted: the same command with --resume goes on from the last checkpoint", err=True)
        raise
    trained = {name: read_trained(out / name) for name in plans}
    if as_json:
        typer.echo(json.dumps({name: _document(one) for name, one in trained.items()}, indent=2))
        return
    for name, one in trained.items():
        figures = ", ".join(f"seed {seed} {value:.3f}" for seed, value in one.validation.items())
        typer.echo(f"{name:<14} validation Spearman {figures}; the scorer is {one.scorer_folder()}")
        if (speakers := one.chosen.speakers) is not None:
            typer.echo(
                f"{'':<14} singers named from its features: {speakers.before:.0%} before, {speakers.after:.0%} after, "
                f"{1 / speakers.singers:.0%} by chance"
            )


def _run(options: list[str], processes: int) -> None:
    """In this process, or in as many as are asked for."""
    import logging

    from audioscore.training.launch import ProcessesFailed, train_together

    if processes == 1:
        from audioscore.training.__main__ import parse, train

        logging.getLogger("audioscore").setLevel(logging.INFO)
        train(parse(options))
        return
    try:
        train_together(options, processes)
    except ProcessesFailed as fault:  # it has been said why
        raise typer.Exit(fault.exit_code) from fault


def _document(trained: Any) -> dict[str, Any]:
    from dataclasses import asdict

    speakers = trained.chosen.speakers
    return {
        "representative": trained.representative,
        "validation": {str(seed): value for seed, value in trained.validation.items()},
        "speakers": None if speakers is None else asdict(speakers),
        "folder": str(trained.folder),
    }
