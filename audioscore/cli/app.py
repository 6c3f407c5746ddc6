"""`audioscore`: one command a task. Heavy packages are imported by the command that needs them."""

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from audioscore import __version__
from audioscore.cli import data as data_command
from audioscore.cli import doctor as doctor_command
from audioscore.cli import encoders as encoders_command
from audioscore.cli import evaluate as compare_command
from audioscore.cli import evaluate as evaluate_command
from audioscore.cli import evaluate as suggest_command
from audioscore.cli import models as convert_command
from audioscore.cli import models as models_command
from audioscore.cli import models as promote_command
from audioscore.cli import options as data_options
from audioscore.cli import run as config_command
from audioscore.cli import run as report_command
from audioscore.cli import score as score_command
from audioscore.cli import serve as serve_command
from audioscore.cli import train as train_command
from audioscore.errors import FAULT_EXIT_CODE, AudioscoreError, UsageError, describe_os_error

app = typer.Typer(
    name="audioscore",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing what draws boxes would double the time to an answer
)
app.add_typer(data_command.app, name="data")
app.add_typer(config_command.app, name="config")
app.add_typer(encoders_command.app, name="encoders")
app.command("doctor")(doctor_command.doctor)
app.command("score")(score_command.score)
app.command("serve")(serve_command.serve)
app.command("train")(train_command.train)
app.command("evaluate")(evaluate_command.evaluate)
app.command("compare")(compare_command.compare)
app.command("models")(models_command.models)
app.command("promote")(promote_command.promote)
app.command("rollback")(promote_command.rollback)
app.command("report")(report_command.report)
app.command("suggest")(suggest_command.suggest)
app.command("convert")(convert_command.convert)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"audioscore {__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """Score singing on the 50-99 scale, and train, compare and register the scorers."""


JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override one setting: a.b=value. May be repeated.")]

ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume", help="Finish the newest run that was broken off with these options; finished steps are kept."
    ),
]


@app.command()
def demo(
    overrides: SetOption = None,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run the whole pipeline on the demo corpus, on this machine."""
    _submit(["--demo", *["--resume"] * resume], overrides, as_json=as_json)


@app.command()
def run(
    config: Annotated[
        Path | None, typer.Option(help="YAML configuration; pipelines/configs/small.yaml by default.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Data folder, s3://BUCKET/PREFIX, or git+https://…@REVISION.")
    ] = None,
    overrides: SetOption = None,
    column_map: data_options.MapOption = None,
    singer_from: data_options.SingerOption = None,
    on: Annotated[
        str | None,
        typer.Option(help="Where to run: local (the default), docker (containers of this machine), or cluster."),
    ] = None,
    resume: ResumeOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the resolved configuration only.")] = False,
    require_promotion: Annotated[
        bool, typer.Option("--require-promotion", help="Exit with 1 unless the winner became champion.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train both plans on a data folder, compare them, and register the winner."""
    if on not in (None, "local", "docker", "cluster"):
        raise UsageError(f"--on {on}: there are local, docker and cluster.")
    options = [] if on is None else ["--on", on]
    if config is not None:
        options += ["--config", str(config)]
    if data is not None:
        options += ["--data", data]
    overrides = (overrides or []) + data_options.reading_overrides(column_map, singer_from)
    options += ["--resume"] * resume + ["--dry-run"] * dry_run + ["--require-promotion"] * require_promotion
    _submit(options, overrides, as_json=as_json)


@app.command("compile")
def compile_(
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write; its name ends in .yaml.")],
    config: Annotated[Path | None, typer.Option(help="YAML configuration whose section cluster says where.")] = None,
    overrides: SetOption = None,
    kubernetes: Annotated[
        bool, typer.Option("--kubernetes", help="As Kubernetes resources, for a KFP that keeps its pipelines there.")
    ] = False,
) -> None:
    """Write the pipeline as KFP reads it: for a cluster where a configuration is given, else for one machine."""
    options = ["--out", str(out), *["--kubernetes"] * kubernetes]
    if config is not None:
        options += ["--config", str(config)]
    for override in overrides or []:
        options += ["--set", override]
    _run_program("compile", options)


def _submit(options: list[str], overrides: list[str] | None, *, as_json: bool) -> None:
    for override in overrides or []:
        options += ["--set", override]
    _run_program("submit", options + ["--json"] * as_json)


def _run_program(name: str, options: list[str]) -> NoReturn:
    """Pipelines stand above the library, which knows nothing of KFP: they are a program of their own.

    It takes this process's place: whoever sends that a signal, or waits for how it ends, means the pipeline.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "pipelines", name, *options])


def main() -> None:
    """Entry point: a user's mistake is one sentence and exit code 1 or 2, never a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        app()
    except AudioscoreError as fault:
        typer.secho("error: ", fg=typer.colors.RED, err=True, nl=False)
        typer.echo(str(fault), err=True)
        sys.exit(fault.exit_code)
    except OSError as fault:
        typer.echo(f"error: {describe_os_error(fault)}", err=True)
        sys.exit(AudioscoreError.exit_code)
    except Exception:
        # Python's own code for this is 1, which here means that a gate said no.
        traceback.print_exc()
        sys.exit(FAULT_EXIT_CODE)


if __name__ == "__main__":
    main()
