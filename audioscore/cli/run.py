"""`audioscore report`: where a run's page is."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="A run's id or folder; the last finished one by default.")
    ] = None,
    render: Annotated[bool, typer.Option("--render", help="Render the page again, from the run's folder.")] = False,
) -> None:
    """Print the path of a run's page; nothing is opened."""
    from audioscore.tracking.run_page import page_of, render_again

    folder = find_run(run)
    typer.echo(str(render_again(folder) if render else page_of(folder)))


def find_run(run: str | None) -> Path:
    """The folder of a run, by its id or as a folder; of the last finished one for None."""
    return _last() if run is None else _named(run)


def _runs() -> list[Path]:
    """Every run's folder, of the demo too."""
    from audioscore.home import DEMO_MODEL, home_of_model

    return [one for name in ("", DEMO_MODEL) for one in home_of_model(name).runs.glob("*") if one.is_dir()]


def _last() -> Path:
    from audioscore.errors import UsageError
    from audioscore.home import home
    from audioscore.tracking.run_page import REPORT

    finished = [one for one in _runs() if (one / REPORT).is_file()]
    if not finished:
        raise UsageError(f"no run has finished in {home().folder} yet. Run `audioscore demo`, or `audioscore run`.")
    return max(finished, key=lambda one: one.name)  # an id begins with the time


def _named(run: str) -> Path:
    return next((one for one in _runs() if one.name == run), Path(run))


app = typer.Typer(help="Show configurations.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Show configurations."""


@app.command("show")
def show(
    config: Annotated[Path | None, typer.Option(help="YAML configuration; default: small.yaml.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override one setting: a.b=value.")] = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="With every default filled in.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of YAML.")] = False,
) -> None:
    """Print a configuration after checking it: the keys it sets, or all of them with --resolved."""
    import json

    import yaml

    from audioscore.config import SMALL, load_config

    loaded = load_config(config or SMALL, overrides or [])
    values = loaded.model_dump(mode="json", exclude_unset=not resolved)
    typer.echo(json.dumps(values, indent=2) if as_json else yaml.safe_dump(values, sort_keys=False).rstrip())
