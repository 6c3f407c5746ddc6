"""`audioscore train`; `python -m audioscore.training` and `torchrun … -m audioscore.training` run the same command."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from audioscore.cli.options import ConfigOption, JsonOption
from audioscore.errors import UsageError

if TYPE_CHECKING:
    from audioscore.training.launch import TrainingRequest

ONE_PROCESS = "one process"  # the context's object if `python -m audioscore.training` runs the command
DEVICES = ("auto", "cpu", "cuda")
REPOSITORY = Path(__file__).resolve().parents[2]


def train(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="A folder for each plan is written below it.")],
    data: Annotated[Path | None, typer.Option(help="A data folder that `audioscore data sort` has sorted.")] = None,
    config: ConfigOption = None,
    plan: Annotated[
        list[str] | None, typer.Option(help="baseline, hybrid or a control. Default: all configured.")
    ] = None,
    init: Annotated[str | None, typer.Option(help="scratch, or warm:FOLDER of a scorer or of a legacy model.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep finished seeds; continue the unfinished one.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    mlflow: Annotated[
        str | None, typer.Option(metavar="EXPERIMENT", help="Log curves to this MLflow experiment.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting: a.b=value. Repeatable.")
    ] = None,
    as_json: JsonOption = False,
    # Hidden options: for `python -m audioscore.training`, whose help shows them.
    store: Annotated[
        str | None, typer.Option(hidden=True, help="Feature store: a folder or s3://BUCKET/PREFIX.")
    ] = None,
    index: Annotated[
        Path | None, typer.Option(hidden=True, help="Index folder of a pipeline, instead of --data.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(hidden=True, help="Features folder of a pipeline, with --index.")
    ] = None,
    single: Annotated[bool, typer.Option("--single", hidden=True, help="Write the one plan to --out itself.")] = False,
    processes: Annotated[int | None, typer.Option(min=1, hidden=True, help="Processes to start with torchrun.")] = None,
    data_digest: Annotated[str | None, typer.Option(hidden=True, help="Version of the data, with --index.")] = None,
    code_revision: Annotated[str | None, typer.Option(hidden=True, help="Default: that of this repository.")] = None,
) -> None:
    """Train plans on a data folder, one scorer per seed.

    With training.processes above 1, torchrun starts that many processes on this machine. Nothing is registered.
    """
    from audioscore.config import SMALL, load_config
    from audioscore.data.versions.revision import code_revision as revision_of
    from audioscore.scoring.scorer import plan_by_name
    from audioscore.training.launch import TrainingRequest, torchrun

    if device not in DEVICES:
        raise UsageError(f"--device {device}: unknown. Choose from {', '.join(DEVICES)}.")
    changed = [*(overrides or []), *([] if init is None else [f"training.init={json.dumps(init)}"])]
    settings = load_config(config or SMALL, changed)
    if settings.training.launcher == "trainjob":
        raise UsageError(
            "launcher trainjob: it works only in a pipeline's training step. "
            "Pass --set training.launcher=torchrun, or inproc."
        )
    plans = tuple(plan_by_name(name) for name in dict.fromkeys(plan or settings.training.plans))
    if single and len(plans) != 1:
        raise UsageError(f"--single: writes one plan; got {len(plans)}. Name it with --plan.")
    request = TrainingRequest(
        settings, plans, out, code_revision or revision_of(REPOSITORY), data=data, store=store, index=index,
        features=features, single=single, data_digest=data_digest, device=device, resume=resume, mlflow=mlflow,
    )  # fmt: skip
    if context.obj != ONE_PROCESS:
        _check_output(request)
    _check_input(request)
    if context.obj != ONE_PROCESS:
        _train_and_report(request, settings.training.processes if processes is None else processes, as_json)
    elif processes is not None:
        raise typer.Exit(torchrun(request, processes))
    else:
        from audioscore.training.distributed import is_main

        run_request(request)
        if as_json and is_main():
            _report(request, as_json=True)


def run_request(request: "TrainingRequest") -> None:
    """Train in this process, with a progress bar on a terminal, and with curves in MLflow if an experiment is named."""
    from audioscore.training.callbacks import Callback, progress_bars
    from audioscore.training.train import train_plans

    with progress_bars() as bars_for:
        if request.mlflow is None:
            train_plans(request, bars_for)
            return
        from audioscore.home import home_of_model
        from audioscore.tracking.curves import mlflow_curves

        curves_for = mlflow_curves(request.mlflow, home_of_model(request.config.registry.model))

        def callbacks_for(plan: Any, seed: int) -> list[Callback]:
            return [*bars_for(plan, seed), *curves_for(plan, seed)]

        train_plans(request, callbacks_for)


def program(arguments: Sequence[str]) -> int:
    """Run the command as one process of a training and return its exit code; the help shows the hidden options too."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(train)
    command = typer.main.get_command(app)
    for parameter in command.params:
        parameter.hidden = False  # type: ignore[attr-defined]
    try:
        command.main(list(arguments), prog_name="python -m audioscore.training", obj=ONE_PROCESS)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def _check_output(request: "TrainingRequest") -> None:
    """Refuse to overwrite an earlier training; raise OSError if the target cannot be written."""
    from audioscore.files import check_writable

    targets = [request.out] if request.single else [request.out / plan for plan in request.plans]
    if not request.resume and (existing := [str(target) for target in targets if target.is_dir()]):
        raise UsageError(
            f"{', '.join(existing)}: a training exists already. Continue it with --resume, or choose another --out."
        )
    check_writable(request.out)


def _check_input(request: "TrainingRequest") -> None:
    """Raise UsageError unless the request names either a sorted data folder or the results of a pipeline's steps."""
    if request.data is None:
        if request.index is None or request.features is None:
            raise UsageError("data: none given. Pass --data FOLDER, or --index and --features of a pipeline's steps.")
    elif request.index is not None or request.features is not None:
        raise UsageError("--data and --index: both name training data. Pass one of them.")
    elif not (request.data / "index" / "train.json").is_file():
        raise UsageError(f"{request.data}: index/train.json is missing. Run `audioscore data sort {request.data}`.")


def _train_and_report(request: "TrainingRequest", processes: int, as_json: bool) -> None:
    """Train in this process or in several, and print the results."""
    from audioscore.training.launch import ProcessesFailed, train_together

    try:
        if processes == 1:
            logging.getLogger("audioscore").setLevel(logging.INFO)
            run_request(request)
        else:
            train_together(request, processes)
    except ProcessesFailed as error:  # a process has printed the reason
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        typer.echo("interrupted: continue from the last checkpoint with the same command and --resume", err=True)
        raise
    _report(request, as_json=as_json)


def _report(request: "TrainingRequest", *, as_json: bool) -> None:
    from audioscore.scoring.trained_plan import OutOfFold, read_trained

    trained = {plan: read_trained(request.out if request.single else request.out / plan) for plan in request.plans}
    if as_json:
        typer.echo(json.dumps({name: _document(one) for name, one in trained.items()}, indent=2))
        return
    for name, one in trained.items():
        if (found := OutOfFold.read(one.folder)) is not None:
            figures = f"{one.chosen.selection:.3f} out of fold, {found.folds} folds, {found.epochs} epochs"
        else:
            figures = "on validation, " + ", ".join(
                f"seed {seed} {value:.3f}" for seed, value in one.selections.items()
            )
        typer.echo(f"{name:<14} within-source Spearman {figures}; scorer: {one.scorer_folder()}")
        if (speakers := one.chosen.speakers) is not None:
            typer.echo(
                f"{'':<14} singer-probe accuracy {speakers.before:.0%} before training, {speakers.after:.0%} after, "
                f"chance {1 / speakers.singers:.0%}"
            )


def _document(trained: Any) -> dict[str, Any]:
    from dataclasses import asdict

    speakers = trained.chosen.speakers
    return {
        "representative": trained.representative,
        "validation": {str(seed): value for seed, value in trained.validation.items()},
        "speakers": None if speakers is None else asdict(speakers),
        "folder": str(trained.folder),
    }
