"""Pipeline runs: `audioscore demo`, `run`, `compile`, `report` and `config`."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from audioscore.cli.options import ConfigOption, JsonOption, MapOption, SetOption, SingerOption, column_overrides
from audioscore.errors import UsageError

ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Continue the newest unfinished run with these options; keep finished steps.")
]


def demo(overrides: SetOption = None, resume: ResumeOption = False, as_json: JsonOption = False) -> None:
    """Run the whole pipeline on the demo corpus, on this machine."""
    _replace_process("submit", {"demo": True, "overrides": overrides, "resume": resume, "as_json": as_json})


def run(
    config: ConfigOption = None,
    data: Annotated[
        str | None, typer.Option(help="Data folder, s3://BUCKET/PREFIX, or git+https://…@REVISION.")
    ] = None,
    overrides: SetOption = None,
    column_map: MapOption = None,
    singer_from: SingerOption = None,
    on: Annotated[
        str | None,
        typer.Option(help="Where the steps run: local (default), docker (containers on this machine), or cluster."),
    ] = None,
    resume: ResumeOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration only.")] = False,
    require_promotion: Annotated[
        bool, typer.Option("--require-promotion", help="Exit with 1 unless the winner became champion.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train the plans on a data folder, compare them, and register the winner."""
    if on not in (None, "local", "docker", "cluster"):
        raise UsageError(f"--on {on}: unknown. Use local, docker or cluster.")
    _replace_process(
        "submit",
        {
            "config": config and str(config),
            "data": data,
            "overrides": (overrides or []) + column_overrides(column_map, singer_from),
            "on": on,
            "resume": resume,
            "dry_run": dry_run,
            "require_promotion": require_promotion,
            "as_json": as_json,
        },
    )


def compile_(
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write; its name ends in .yaml.")],
    config: Annotated[
        Path | None, typer.Option(help="YAML configuration; its section cluster describes the target.")
    ] = None,
    overrides: SetOption = None,
    kubernetes: Annotated[
        bool, typer.Option("--kubernetes", help="Write Kubernetes resources, for a KFP that stores pipelines there.")
    ] = False,
) -> None:
    """Write the pipeline in KFP's format: for the configuration's cluster, or without one for this machine."""
    _replace_process(
        "compile",
        {"out": str(out), "config": config and str(config), "overrides": overrides, "kubernetes": kubernetes},
    )


def _replace_process(program: str, options: Mapping[str, Any]) -> NoReturn:
    """Replace this process by `python -m pipelines PROGRAM JSON`, since the library does not import KFP.

    The pipeline process keeps the process id, so it receives the signals, and its exit code is the command's.
    """
    given = {name: value for name, value in options.items() if value not in (None, False, [])}
    sys.stdout.flush()
    sys.stderr.flush()
    document = json.dumps(given, ensure_ascii=False)
    os.execv(sys.executable, [sys.executable, "-m", "pipelines", program, document])


def report(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="Id or folder of a run. Default: the last finished run.")
    ] = None,
    render: Annotated[bool, typer.Option("--render", help="Render the report again from the run's files.")] = False,
) -> None:
    """Print the path of a run's report."""
    from audioscore.tracking.run_page import page_of, render_again

    folder = find_run(run)
    typer.echo(str(render_again(folder) if render else page_of(folder)))


def find_run(run: str | None) -> Path:
    """Return the folder of a run, given its id or folder, or of the last finished run for None.

    Raises:
        UsageError: `run` is None and no run has finished.
    """
    from audioscore.home import DEMO_MODEL, home, home_of_model
    from audioscore.tracking.run_page import REPORT

    runs = [path for model in ("", DEMO_MODEL) for path in home_of_model(model).runs.glob("*") if path.is_dir()]
    if run is not None:
        return next((path for path in runs if path.name == run), Path(run))
    finished = [path for path in runs if (path / REPORT).is_file()]
    if not finished:
        raise UsageError(f"{home().folder}: no finished run. Run `audioscore demo` or `audioscore run`.")
    return max(finished, key=lambda path: path.name)  # a run id begins with the time


config_app = typer.Typer(help="Show configurations.", no_args_is_help=True)


@config_app.callback()
def group() -> None:
    """Show configurations."""


@config_app.command("show")
def show(
    config: ConfigOption = None,
    overrides: SetOption = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="Include every default value.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of YAML.")] = False,
) -> None:
    """Check a configuration and print it: the keys that it sets, or all keys with --resolved."""
    import yaml

    from audioscore.config import SMALL, load_config

    loaded = load_config(config or SMALL, overrides or [])
    values = loaded.model_dump(mode="json", exclude_unset=not resolved)
    typer.echo(
        json.dumps(values, ensure_ascii=False, indent=2)
        if as_json
        else yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip()
    )
