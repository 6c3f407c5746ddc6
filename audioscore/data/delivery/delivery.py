"""What somebody hands over to be added: a labels table in any of its forms, or an index, as one kind of thing."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from audioscore.data.clips import Clip
from audioscore.data.index import read_index
from audioscore.data.labels import Fault, read_labels
from audioscore.data.tables import SUFFIXES
from audioscore.errors import DataError


@dataclass(frozen=True)
class Delivery:
    """Recordings with scores, in the file's order, and groups of recordings in order, high to low, without scores.

    `columns` are the headers behind our names, `left_out` those that mean nothing here, `faults` the rows that cannot
    be used. One recording may come several times: nobody has listened to the files yet.
    """

    path: Path
    clips: list[Clip]
    groups: list[list[Clip]]
    columns: dict[str, str]
    left_out: tuple[str, ...]
    faults: list[Fault]


def read_delivery(
    path: Path,
    *,
    column_map: Mapping[str, str] | None = None,
    singer_from: str | None = None,
    source: str | None = None,
    resort: bool = False,
) -> Delivery:
    """Read csv, tsv, xlsx, jsonl (`read_labels`) or a JSON index (`read_index`).

    `source` is the recording domain of those that name none. `resort` takes an index whose scores stand in another
    order than high to low, which is otherwise refused. Raises DataError where the file cannot be read, and where it
    holds no recording at all; UsageError for a wrong `column_map` or `singer_from`.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file. Give a table ({', '.join(SUFFIXES)}) or an index (.json).")
    if path.suffix.lower() == ".json":
        delivery = _from_index(path, source, resort)
    elif path.suffix.lower() in SUFFIXES:
        chosen = dict(column_map) if column_map else None
        table = read_labels(path, column_map=chosen, singer_from=singer_from, source=source, keep_repeats=True)
        delivery = Delivery(path, table.clips, [], table.columns, table.left_out, table.faults)
    else:
        raise DataError(f"{path.name}: {path.suffix or 'no suffix'} is not read. Give {', '.join(SUFFIXES)} or .json.")
    if not delivery.clips and not delivery.groups and not delivery.faults:
        raise DataError(f"{path.name} names no recording. Below its header, a table has a row for each.")
    return delivery


def _from_index(path: Path, source: str | None, resort: bool) -> Delivery:
    clips: list[Clip] = []
    groups: list[list[Clip]] = []
    faults: list[Fault] = []
    number = 0
    for group in read_index(path, resort=resort):
        named: list[Clip] = []
        for clip in group:
            number += 1
            if any(ord(letter) < 32 for letter in clip.audio_file):
                faults.append(
                    Fault(number, repr(clip.audio_file), "the name holds a control character, such as a line end")
                )
                continue
            named.append(replace(clip, source=clip.source or source, row=number))
        if named and named[0].score is None:
            groups.append(named)
        else:
            clips += named
    return Delivery(path, clips, groups, {}, (), faults)
