"""Which recordings a command means: files, folders, patterns, s3:// links, or a list of these on standard input."""

import contextlib
import glob
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from audioscore.data.transfer import s3
from audioscore.errors import UsageError, shorten
from audioscore.scoring.input import Take
from audioscore.tracking.find_scorer import PREDECESSOR_MUQ as PREDECESSOR_MUQ
from audioscore.tracking.find_scorer import find_scorer

# What is taken of a folder; a file that is named is taken whatever it is called.
SUFFIXES = frozenset({
    ".aac", ".ac3", ".aif", ".aiff", ".amr", ".ape", ".au", ".caf", ".flac", ".m4a", ".m4b", ".mka",
    ".mp2", ".mp3", ".mp4", ".oga", ".ogg", ".opus", ".tta", ".wav", ".webm", ".weba", ".wma", ".wv",
})  # fmt: skip
LIST = "-"
client = cache(s3.connect)


def takes_of(arguments: Iterable[str]) -> list[Take]:
    """Every recording that is meant, in order; folders and patterns by name. What s3:// holds is fetched when its turn
    comes.

    Raises UsageError where a folder, a pattern, a prefix or the list names none.
    """
    found: list[Take] = []
    for argument in arguments:
        if argument == LIST:
            found += takes_of(_lines())
        elif argument.startswith("s3://"):
            found += _in_bucket(argument)
        else:
            found += (Take(name, name) for name in _on_disk(argument))
    if not found:
        raise UsageError("no recordings are named. Give files, folders, patterns, s3:// links, or - for a list.")
    return found


def _lines() -> Iterator[str]:
    """Names on standard input, one a line. Names that are no UTF-8 are kept as the file system has them."""
    names = [line.decode("utf-8", "surrogateescape").rstrip("\r\n") for line in sys.stdin.buffer]
    if LIST in names:
        raise UsageError(f"{LIST}: standard input cannot be read within itself. Name files in the list.")
    yield from (name for name in names if name.strip())


def _on_disk(argument: str) -> list[str]:
    path = Path(argument)
    if path.is_dir():
        found = sorted(str(one) for one in path.rglob("*") if one.suffix.lower() in SUFFIXES and one.is_file())
        if not found:
            raise UsageError(f"{argument}: no recordings in this folder ({shorten(sorted(SUFFIXES))}). Name another.")
        return found
    if glob.has_magic(argument) and not path.exists():
        found = sorted(name for name in glob.glob(argument, recursive=True) if Path(name).is_file())
        if not found and not {"*", "?"} & set(argument):  # brackets are common in names
            return [argument]
        if not found:
            raise UsageError(f"{argument}: no file matches this pattern. Check it.")
        return found
    return [argument]


def _in_bucket(uri: str) -> list[Take]:
    if PurePosixPath(uri).suffix.lower() in SUFFIXES:
        return [Take(uri, partial(_fetch, uri))]
    bucket, _ = s3.split_uri(uri)
    keys = sorted(
        one.key for one in s3.list_objects(client(), uri) if PurePosixPath(one.key).suffix.lower() in SUFFIXES
    )
    if not keys:
        raise UsageError(f"{uri}: no recordings under this prefix. Check it, and AWS_ENDPOINT_URL.")
    return [Take(f"s3://{bucket}/{key}", partial(_fetch, f"s3://{bucket}/{key}")) for key in keys]


def _fetch(uri: str) -> bytes:
    """An object's bytes. Raises AudioError, one sentence naming it, where it cannot be had."""
    bucket, key = s3.split_uri(uri)
    with TemporaryDirectory(prefix="audioscore-") as scratch:
        target = Path(scratch) / "object"
        s3.download_object(client(), bucket, key, target, partial=Path(scratch) / "partial")
        return target.read_bytes()


def find_model(model: str | None) -> tuple[str, Path]:
    """Name and scorer folder of a model, as `find_scorer` finds them; what a person should know goes to stderr."""
    return find_scorer(model, lambda said: typer.echo(f"note: {said}", err=True))


@contextlib.contextmanager
def stages() -> Iterator[Callable[[str], Callable[[int, int], None] | None]]:
    """A function from a stage's name to what is told `(done, of how many)`; None, and no bar, without a terminal."""
    if not sys.stderr.isatty():
        yield lambda name: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:

        def stage(name: str) -> Callable[[int, int], None]:
            bar = bars.add_task(name, total=None)

            def show(done: int, total: int) -> None:
                bars.update(bar, completed=done, total=total)

            return show

        yield stage


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
