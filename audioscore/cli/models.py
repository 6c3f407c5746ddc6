"""`audioscore models`: what is registered, and who was champion when."""

import json
from collections.abc import Sequence
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
    _print_with_sentences(
        ("model", "aliases", "plan", "test Spearman"),
        [
            (f"{row['name']} v{row['version']}", ", ".join(row["aliases"]) or "-", row.get("plan", "-"),
             row.get("test_spearman", "-"))
            for row in rows
        ],
        [row.get("decision", "-") for row in rows],
    )  # fmt: skip


def _print_history(rows: list[dict[str, Any]]) -> None:
    lines, sentences = [], []
    for row in rows:
        done = "" if row["carried_out"] else " (not carried out, or the alias was moved by hand)"
        by = row["kind"] + (f" in place of v{row['beaten']}" if row["beaten"] is not None else "")
        until = _minute(row["until"]) if row["until"] else "now" if row["carried_out"] else "-"
        lines.append((f"{row['name']} v{row['champion']}", _minute(row["since"]), until, by))
        sentences.append((row["why"] or "-") + done)
    _print_with_sentences(("champion", "from (UTC)", "to", "by"), lines, sentences)


def _minute(moment: str) -> str:
    """
    >>> _minute("2026-11-29T20:13:40+00:00")
    '2026-11-29 20:13'
    """
    return moment[:16].replace("T", " ")


def _print_with_sentences(headings: Sequence[str], lines: Sequence[Sequence[str]], sentences: Sequence[str]) -> None:
    """Columns as wide as they need, and under each line a sentence over the whole width."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    widths = [max(map(len, column)) for column in zip(headings, *lines, strict=True)]
    console = Console()
    for line, sentence in zip((headings, *lines), ("", *sentences), strict=True):
        cells = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        console.print(Text(cells, style="" if sentence else "bold"), soft_wrap=True)
        if sentence:
            console.print(Padding(Text(sentence), (0, 0, 0, 4), expand=False))
