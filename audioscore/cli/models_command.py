"""`audioscore models`: what is registered."""

import json
from typing import Annotated, Any

import typer


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    """List registered versions, newest first, with their aliases and evidence."""
    from audioscore.home import DEMO_MODEL, home_of_model
    from audioscore.tracking.connection import database_file
    from audioscore.tracking.registry import list_versions

    rows: list[dict[str, Any]] = []
    for tracking_uri in dict.fromkeys(home_of_model(name).tracking_uri for name in ("", DEMO_MODEL)):
        database = database_file(tracking_uri)
        if database is not None and database.is_file():
            rows += [
                {"name": found.name, "version": found.version, "aliases": sorted(found.aliases), **found.tags}
                for found in list_versions(tracking_uri)
            ]
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False, indent=2))
    elif not rows:
        typer.echo("nothing is registered yet; `audioscore demo` registers a first model", err=True)
    else:
        _print_table(rows)


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("model", "aliases", "plan", "test Spearman", "decision"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        figures = (row.get(name, "-") for name in ("plan", "test_spearman", "decision"))
        table.add_row(f"{row['name']} v{row['version']}", ", ".join(row["aliases"]) or "-", *figures)
    Console().print(table)
