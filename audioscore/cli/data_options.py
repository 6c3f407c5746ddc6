"""What the `audioscore data` commands share."""

import json
from pathlib import Path
from typing import Annotated

import typer

from audioscore.errors import UsageError

ConfigOption = Annotated[Path | None, typer.Option(help="YAML configuration; default: small.yaml.")]
MapOption = Annotated[list[str] | None, typer.Option("--map", help="A column's header: score=HEADER. May be repeated.")]
SingerOption = Annotated[str | None, typer.Option(help="Regular expression on the file name; its group is the singer.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]

DEMO_CORPUS = "d32149e42e5db63c5b6cf6bdfac43b44.dir"  # DVC's MD5 of the corpus that data.dvc records in this repository


def parse_map(choices: list[str] | None) -> dict[str, str]:
    """What --map says: our name -> header. Raises UsageError where it is not NAME=HEADER, or NAME no column."""
    from audioscore.data.labels import HEADERS, RATER

    chosen = {}
    for choice in choices or []:
        name, equals, header = choice.partition("=")
        if not equals or not name.strip() or not header.strip():
            raise UsageError(f"--map {choice}: expected NAME=HEADER, for instance --map score=Points.")
        name = name.strip()
        if name not in HEADERS and not RATER.fullmatch(name.replace("_", "")):
            raise UsageError(f"--map {choice}: no column is called {name}. Choose of {', '.join(HEADERS)}, rater_1.")
        chosen[name] = header.strip()
    return chosen


def reading_overrides(column_map: list[str] | None, singer_from: str | None) -> list[str]:
    """The settings that --map and --singer-from stand for. Raises UsageError where --map is not NAME=HEADER."""
    overrides = [
        f"data.column_map.{name}={json.dumps(header, ensure_ascii=False)}"
        for name, header in parse_map(column_map).items()
    ]
    if singer_from is not None:
        overrides.append(f"data.singer_from={json.dumps(singer_from, ensure_ascii=False)}")
    return overrides


def require_folder(folder: Path) -> None:
    """Raise UsageError where there is no such folder."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder. Give the folder that holds the labels table.")


def own_folder(folder: Path) -> Path:
    """The data folder itself where a symbolic link or `.` names it: its version and its lock are beside it.

    Raises UsageError where it is the demo corpus: synthetic voices among real ones would spoil both.
    """
    from audioscore.data.versions.revision import data_revision

    if not folder.name or folder.is_symlink():
        folder = folder.resolve()
    if data_revision(folder.absolute()) == DEMO_CORPUS:
        raise UsageError(
            f"{folder} is the demo corpus, whose voices are synthetic. Name a folder of your own: --data songs."
        )
    return folder
