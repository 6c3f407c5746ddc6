"""`audioscore promote` and `audioscore rollback`: who is champion."""

import json
from pathlib import Path
from typing import Annotated

import typer

from audioscore.cli.data_options import JsonOption
from audioscore.cli.judging import ModelNameOption

REFUSED = 1


def promote(
    version: Annotated[int, typer.Argument(min=1, metavar="V", help="The version's number, as `models` lists it.")],
    model: ModelNameOption = "audioscore",
    data: Annotated[
        Path | None,
        typer.Option(help="Sorted data folder to judge on. Default: the data of the run that registered the version."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML configuration of the gate. Default: that of the version's run.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a version champion, if it beats the champion on clips that neither has seen, scored now; else exit with 1.

    The gate's settings are those of --config, else of the run that registered the version.
    """
    from audioscore.cli.judging import gate_settings
    from audioscore.encoders.store import FeatureStore
    from audioscore.home import home_of_model
    from audioscore.tracking.connection import connect, require_database
    from audioscore.tracking.judging_data import RUN_CONFIG, data_of_run, sorted_data
    from audioscore.tracking.promotion import promote_if_better
    from audioscore.tracking.registry import version_of

    place = home_of_model(model)
    given = None if data is None else sorted_data(data)
    require_database(place.tracking_uri)
    tags = version_of(connect(place.tracking_uri), model, version).tags
    run = place.runs / tags.get("run_id", "unknown")
    judged_on = given or data_of_run(run, tags.get("data_digest", "unknown"))
    registry, evaluation = gate_settings(config, run / RUN_CONFIG)
    found = promote_if_better(
        place.tracking_uri, model, version, judged_on, FeatureStore(place.features), registry, evaluation
    )
    beaten = f", in place of v{found.champion.version}" if found.champion else ", as the first"
    if as_json:
        typer.echo(json.dumps(found.to_json(), ensure_ascii=False, indent=2))
    elif found.decision.promoted:
        typer.echo(f"{model} v{version} is champion{beaten}: {found.decision.reason}.")
    if not found.decision.promoted:
        if not as_json:
            typer.echo(f"{model} v{version} is not promoted: {found.decision.reason}.", err=True)
        raise typer.Exit(REFUSED)


def rollback(
    model: ModelNameOption = "audioscore",
    why: Annotated[str, typer.Option(metavar="TEXT", help="The reason, for the history.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Make the champion before this one champion again; this one becomes `previous`."""
    from audioscore.home import home_of_model
    from audioscore.tracking.connection import connect, require_database
    from audioscore.tracking.registry import rollback as roll_back

    tracking_uri = home_of_model(model).tracking_uri
    require_database(tracking_uri)
    champion, before = roll_back(connect(tracking_uri), model, why)
    if as_json:
        typer.echo(json.dumps({"name": model, "champion": champion, "previous": before}, indent=2))
    else:
        typer.echo(f"{model} v{champion} is champion again; v{before} is previous.")
