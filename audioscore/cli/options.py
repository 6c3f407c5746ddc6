"""Options and arguments that several commands share, and how they are read."""

import contextlib
import glob
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from audioscore.data.decoding.formats import describe_others, has_suffix, scan_folder
from audioscore.data.text import decode_lines
from audioscore.data.transfer import s3
from audioscore.data.transfer.pool import Hooks, run_all
from audioscore.errors import AudioError, UsageError
from audioscore.files import lower_scheme
from audioscore.scoring.input import InputRecording
from audioscore.tracking.find_scorer import find_scorer

ConfigOption = Annotated[Path | None, typer.Option(help="YAML configuration. Default: pipelines/configs/small.yaml.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override one setting: a.b=value. May be repeated.")]
MapOption = Annotated[list[str] | None, typer.Option("--map", help="Column name and header: NAME=HEADER. Repeatable.")]
SingerOption = Annotated[
    str | None, typer.Option(help="Regular expression for file names; its group is the singer_id.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
DeviceOption = Annotated[str, typer.Option(help="Device: auto, cpu or cuda.")]
FastOption = Annotated[
    bool, typer.Option("--fast", help="Use 16-bit integer kernels if the CPU supports them; less exact.")
]

SOME_FAILED = 3  # exit code: some items failed, the others are done

LIST = "-"
DEMO_CORPUS = "d32149e42e5db63c5b6cf6bdfac43b44.dir"  # MD5 that data.dvc of this repository records
LOOKUPS = 16  # concurrent requests; the client has as many connections
client = cache(s3.connect)


def find_recordings(arguments: Iterable[str]) -> list[InputRecording]:
    """Return the recordings that files, folders, patterns, s3:// links, or `-` (a list on standard input) name.

    Folders, prefixes and patterns are sorted by name. Objects in S3 are downloaded when they are scored.

    Raises:
        UsageError: a folder, pattern, prefix or the list contains no recording, or an s3:// link is a pattern.
        DataError: the encoding of the list is unknown, or a bucket cannot be listed.
    """
    arguments = list(arguments)
    uris = {one: uri for one in arguments if (uri := lower_scheme(one)).startswith("s3://")}
    prefixes = _look_up(set(uris.values()))
    found: list[InputRecording] = []
    for argument in arguments:
        if argument == LIST:
            found += find_recordings(_read_list())
        elif argument in uris:
            found += _in_bucket(uris[argument], prefixes.get(uris[argument]))
        else:
            found += (InputRecording(name, name) for name in _on_disk(argument))
    if not found:
        raise UsageError("recordings: none given. Give files, folders, patterns, s3:// links, or - for a list.")
    return found


def _read_list() -> list[str]:
    """Names on standard input, one on each line.

    A line that names an existing file is used as it is, since a file name need not be text in any encoding. The other
    lines are decoded like a table; one that is in another encoding than the rest is kept: its recording is not found.
    """
    lines = [line.removesuffix(b"\r") for line in sys.stdin.buffer.read().split(b"\n")]
    on_disk = [os.fsdecode(line) if line and os.path.lexists(line) else None for line in lines]
    others = [b"." if name else line for name, line in zip(on_disk, lines, strict=True)]
    decoded = [line.removesuffix("\r") for line in decode_lines(others, "the list on standard input")]
    # UTF-16 contains line feed bytes that are no line ends; none of its lines is a name on disk.
    if len(lines) == len(decoded):
        names = [a or b or os.fsdecode(line) for a, b, line in zip(on_disk, decoded, lines, strict=True)]
    else:
        names = decoded
    if LIST in names:
        raise UsageError(f"{LIST}: the list on standard input contains {LIST} itself. Remove that line.")
    return [name for name in names if name.strip()]


def _on_disk(argument: str) -> list[str]:
    path = Path(argument)
    if path.is_dir():
        return _in_folder(path)
    if glob.has_magic(argument) and not path.exists():
        matches = sorted(glob.glob(argument, recursive=True))
        if not matches:  # brackets are common in file names
            if not {"*", "?"} & set(argument):
                return [argument]
            raise UsageError(f"{argument}: no file matches this pattern. Check it.")
        # ** matches the content of folders, too
        folders = [] if "**" in argument else [name for name in matches if Path(name).is_dir()]
        found = {name for name in matches if not Path(name).is_dir()}
        found.update(name for folder in folders for name in _in_folder(Path(folder), may_be_empty=True))
        if not found:
            raise UsageError(f"{argument}: matches {len(matches)} folders without recordings. Give another pattern.")
        return sorted(found)
    return [argument]


def _in_folder(folder: Path, *, may_be_empty: bool = False) -> list[str]:
    recordings, others = scan_folder(folder)
    _note_others(str(folder), len(recordings), others, may_be_empty=may_be_empty)
    return [str(path) for path in recordings]


def _note_others(where: str, recordings: int, others: list[str], *, may_be_empty: bool = False) -> None:
    """Print a note about what is left out. Raises UsageError for an empty folder, unless it `may_be_empty`."""
    found = describe_others(where, others, recordings)
    if not recordings and not may_be_empty:
        raise UsageError(f"{found}. Give another folder or prefix, or name the file.")
    if others:
        typer.echo(f"note: {found}", err=True)


def _look_up(uris: Collection[str]) -> dict[str, list[s3.S3Object]]:
    """The objects under each link that is a prefix; the other links are those of one recording.

    A link with the suffix of a recording is one recording if its bucket cannot be listed: its download, when it is
    scored, fails with the cause, and the other recordings are scored.
    """
    if not uris:
        return {}
    try:
        client()  # here, since every thread would wait for a server that does not respond
    except AudioError:
        if all(has_suffix(s3.split_uri(uri)[1]) for uri in uris):
            return {}
        raise
    found = run_all([partial(_objects_under, uri) for uri in uris], workers=LOOKUPS)
    return {uri: objects for uri, objects in zip(uris, found, strict=True) if objects is not None}


def _objects_under(uri: str, _: Hooks) -> list[s3.S3Object] | None:
    """The objects under a link that is a prefix, or None for a link to one recording, see `_look_up`."""
    bucket, key = s3.split_uri(uri)
    size = _object_size(bucket, key)
    if size:
        return None
    try:
        objects = s3.list_objects(client(), uri)
    except AudioError:
        if has_suffix(key):
            return None
        raise
    if objects:  # an empty object is the marker of their folder
        return objects
    if size is None and {"*", "?"} & set(key):  # brackets are common in file names
        prefix = re.split("[*?[]", uri)[0].rpartition("/")[0]
        raise UsageError(
            f"{uri}: patterns are not supported in S3. Give the prefix, {prefix}/, or the name of an object."
        )
    return None if size == 0 or has_suffix(key) else []


def _in_bucket(uri: str, objects: list[s3.S3Object] | None) -> list[InputRecording]:
    """The object with this name, whatever its suffix, or else the recordings under this prefix, by their suffixes."""
    if objects is None:
        return [InputRecording(uri, partial(_download, uri))]
    is_recording = {
        one: has_suffix(one.name) and not any(part.startswith(".") for part in one.name.split("/")) for one in objects
    }
    found = sorted(one.key for one in objects if is_recording[one])
    _note_others(uri, len(found), [one.name for one in objects if not is_recording[one]])
    uris = [f"s3://{s3.split_uri(uri)[0]}/{key}" for key in found]
    return [InputRecording(uri, partial(_download, uri)) for uri in uris]


def _object_size(bucket: str, key: str) -> int | None:
    """The size of an object; None if it does not exist, or if the server refuses: listing reports the cause."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    try:
        return int(client().head_object(Bucket=bucket, Key=key).get("ContentLength", 0)) if key else None
    except (BotoCoreError, ClientError, ResponseParserError):
        return None


def _download(uri: str) -> bytes:
    """Return the bytes of an object. Raises AudioError if the download fails."""
    bucket, key = s3.split_uri(uri)
    with TemporaryDirectory(prefix="audioscore-") as scratch:
        target = Path(scratch) / "object"
        s3.download_object(client(), bucket, key, target, partial=Path(scratch) / "partial")
        return target.read_bytes()


def find_model(model: str | None) -> tuple[str, Path]:
    """Return name and scorer folder of a model, see `find_scorer`; notes are printed on standard error."""
    return find_scorer(model, lambda note: typer.echo(f"note: {note}", err=True))


@contextlib.contextmanager
def stages() -> Iterator[Callable[[str], Callable[[int, int], None] | None]]:
    """Yield a function that starts a progress bar for a stage and returns its callback `(done, total)`.

    Without a terminal no bar is drawn, and the callback is None.
    """
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


def parse_map(choices: list[str] | None) -> dict[str, str]:
    """Parse `--map NAME=HEADER` options. Raises UsageError for another format or an unknown column name."""
    from audioscore.data.labels import HEADERS, RATER

    chosen = {}
    for choice in choices or []:
        name, equals, header = choice.partition("=")
        if not equals or not name.strip() or not header.strip():
            raise UsageError(f"--map {choice}: expected NAME=HEADER. Example: --map score=Points.")
        name = name.strip()
        if name not in HEADERS and not RATER.fullmatch(name.replace("_", "")):
            raise UsageError(f"--map {choice}: unknown column {name}. Use one of {', '.join(HEADERS)}, rater_1.")
        chosen[name] = header.strip()
    return chosen


def column_overrides(column_map: list[str] | None, singer_from: str | None) -> list[str]:
    """Convert --map and --singer-from to `--set` overrides."""
    overrides = [
        f"data.column_map.{name}={json.dumps(header, ensure_ascii=False)}"
        for name, header in parse_map(column_map).items()
    ]
    if singer_from is not None:
        overrides.append(f"data.singer_from={json.dumps(singer_from, ensure_ascii=False)}")
    return overrides


def require_folder(folder: Path) -> None:
    """Raise UsageError if the data folder does not exist."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder. Give the folder that contains the labels table.")


def resolve_data_folder(folder: Path) -> Path:
    """Follow a symbolic link or `.` to the data folder, since its version and its lock are stored beside it.

    Raises UsageError for the demo corpus, because synthetic and real voices must not be mixed.
    """
    from audioscore.data.versions.revision import data_revision

    if not folder.name or folder.is_symlink():
        folder = folder.resolve()
    if data_revision(folder.absolute()) == DEMO_CORPUS:
        raise UsageError(f"{folder}: the demo corpus, whose voices are synthetic. Use your own folder: --data songs.")
    return folder
