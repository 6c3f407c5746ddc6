"""`audioscore config`: what a run would use."""

from pathlib import Path
from typing import Annotated

import typer

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
