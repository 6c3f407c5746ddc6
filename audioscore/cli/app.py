"""The program `audioscore`: its commands. Heavy packages are imported by the command that needs them."""

import logging
import sys
import traceback
from typing import Annotated

import typer

from audioscore import __version__
from audioscore.cli import data, doctor, encoders, evaluate, models, run, score, serve, train
from audioscore.data.transfer.network import exempt_loopback
from audioscore.errors import INTERNAL_ERROR_EXIT_CODE, AudioscoreError
from audioscore.terminal import prepare_output, use_utf8
from audioscore.tracking.connection import describe_error

app = typer.Typer(
    name="audioscore",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing Rich would double the time of `audioscore --help`
)
app.command("demo")(run.demo)
app.command("run")(run.run)
app.command("report")(run.report)
app.command("compile")(run.compile_)
app.add_typer(run.config_app, name="config")
app.add_typer(data.app, name="data")
app.add_typer(encoders.app, name="encoders")
app.command("doctor")(doctor.doctor)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(evaluate.compare)
app.command("suggest")(evaluate.suggest)
app.command("score")(score.score)
app.command("serve")(serve.serve)
app.command("models")(models.models)
app.command("promote")(models.promote)
app.command("rollback")(models.rollback)
app.command("convert")(models.convert)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"audioscore {__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Score singing on the 50-99 scale, and train, compare and register the scorers."""


def main() -> None:
    """Run the program; an expected error is one line and exit code 1 or 2, without a traceback."""
    use_utf8()
    prepare_output()
    exempt_loopback()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        app()
    except Exception as error:
        if reason := describe_error(error):
            typer.secho("error: ", fg=typer.colors.RED, err=True, nl=False)
            typer.echo(reason, err=True)
            sys.exit(getattr(error, "exit_code", AudioscoreError.exit_code))
        # Python's exit code for an uncaught exception is 1, which here means that a gate refused.
        traceback.print_exc()
        sys.exit(INTERNAL_ERROR_EXIT_CODE)


if __name__ == "__main__":
    main()
