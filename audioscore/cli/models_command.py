"""`audioscore models`: what is registered, and who was champion when."""

import json
from typing import Annotated, Any

import typer


def models(
    history: Annotated[bool, typer.Option("--history", help="Who was champion from when to when, and why.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    """List registered versions, newest first, with their aliases and evidence."""
    rows = [row for tracking_uri in _registries() for row in (_reigns if history else _versions)(tracking_uri)]
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False, indent=2))
    elif not rows:
        nothing = "no champion was ever named" if history else "nothing is registered yet"
        typer.echo(f"{nothing}; `audioscore demo` registers a first model", err=True)
    elif history:
        _print_history(rows)
    else:
        _print_table(rows)


def _registries() -> list[str]:
    """Those that are there: looking creates no database."""
    from audioscore.home import DEMO_MODEL, home_of_model
    from audioscore.tracking.connection import database_file

    uris = dict.fromkeys(home_of_model(name).tracking_uri for name in ("", DEMO_MODEL))
    return [uri for uri in uris if (database := database_file(uri)) is None or database.is_file()]


def _versions(tracking_uri: str) -> list[dict[str, Any]]:
    from audioscore.tracking.registry import list_versions

    return [
        {"name": found.name, "version": found.version, "aliases": sorted(found.aliases), **found.tags}
        for found in list_versions(tracking_uri)
    ]


def _reigns(tracking_uri: str) -> list[dict[str, Any]]:
    """Of every model, the latest first."""
    from audioscore.tracking.connection import connect
    from audioscore.tracking.history import read_changes, reigns
    from audioscore.tracking.registry import CHAMPION, list_versions, version_by_alias

    client = connect(tracking_uri)
    rows = []
    for name in dict.fromkeys(found.name for found in list_versions(tracking_uri)):
        champion = version_by_alias(client, name, CHAMPION)
        found = reigns(read_changes(client, name), champion.version if champion else None)
        rows += [{"name": name, **one.to_json()} for one in reversed(found)]
    return rows


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


def _print_history(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("champion", "from", "to", "by", "why"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        done = "" if row["carried_out"] else " (not carried out, or the alias was moved by hand)"
        by = row["kind"] + (f" in place of v{row['beaten']}" if row["beaten"] is not None else "")
        until = row["until"] or ("now" if row["carried_out"] else "-")
        table.add_row(f"{row['name']} v{row['champion']}", row["since"], until, by + done, escape(row["why"]) or "-")
    Console().print(table)
