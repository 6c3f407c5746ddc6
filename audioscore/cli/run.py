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
