"""Read and write an index: groups of clips as JSON, each sorted from the best to the worst.

The format is that of QwenFeat-Vocal-Score, `[[{"audio_file": ..., "score": ...}, ...]]`. Its own indexes have no
scores: their order is used, and their clips have `score` None.
"""

import dataclasses
import itertools
import json
import logging
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from audioscore.data.clips import Clip
from audioscore.data.contradictions import score_notes
from audioscore.data.labels import LONGEST_NAME, in_band
from audioscore.data.spelling import Spellings, file_key
from audioscore.data.tables import cell_text, is_text
from audioscore.data.text import decode_text
from audioscore.errors import DataError, shorten
from audioscore.files import write_json
from audioscore.units import SCORE_MAX, SCORE_MIN

STRING_OR_TRAILING_COMMA = re.compile(r'"(?:[^"\\]|\\.)*"|,(?=\s*[\]}])', re.DOTALL)
TEXTS = ("audio_file", "singer_id", "song_id", "source", "artist", "origin", "sha256")
COUNTS = ("row", "bytes")
FLOATS = ("score", "seconds", "level_db", "snr_db")
ORDER = "order.json"  # an index beside the labels table: groups of recordings with an order but no scores
FIELDS = tuple(field.name for field in dataclasses.fields(Clip))


def read_index(path: Path, *, resort: bool = False) -> list[list[Clip]]:
    """Read the groups of an index, each sorted high to low; a plain list of clips is one group.

    A byte-order mark, GBK and trailing commas are accepted; unknown keys are ignored and logged. An id in several
    spellings has the first one in all clips.

    Args:
        resort: Sort a group whose scores and order disagree; equal scores keep their order in the file.

    Raises:
        DataError: The file is not such JSON, a group has clips with and without scores, or its scores and its order
            disagree.
    """
    return read_with_notes(path, resort=resort)[0]


def read_with_notes(path: Path, *, resort: bool = False) -> tuple[list[list[Clip]], list[str]]:
    """Read an index as `read_index` does; also return sentences about what contradicts itself or has no effect."""
    parsed = _parse(path)
    ids = {key: Spellings(key) for key in ("singer_id", "song_id", "artist", "source")}
    groups = [
        [
            _read_entry(path, entry, f"group {number}, position {position}", ids)
            for position, entry in enumerate(group, 1)
        ]
        for number, group in enumerate(parsed, 1)
    ]
    _log_unknown_keys(path, parsed)
    for number, group in enumerate(groups, 1):
        _check_scored(path, group, number)
        if resort and group and group[0].score is not None:
            group.sort(key=lambda clip: -(clip.score or 0.0))
        _check_order(path, group, number)
    notes = [note for spellings in ids.values() for note in spellings.notes()]
    notes += [
        *_contradicted_keys(path, parsed, groups),
        *_group_notes(groups),
        *score_notes([*itertools.chain(*groups)]),
    ]
    return groups, [f"{path.name}: {note}" for note in notes]


def write_index(path: Path, groups: Sequence[Sequence[Clip]]) -> None:
    """Write groups as valid JSON, atomically, with every field that has a value.

    Raises DataError, as `read_index` does, if a group is not sorted high to low or has clips with and without scores.
    """
    for number, group in enumerate(groups, 1):
        _check_scored(path, group, number)
        _check_order(path, group, number)
    write_json(path, [[_entry(clip) for clip in group] for group in groups])


def without_trailing_commas(text: str) -> str:
    """Replace every comma before a closing bracket by a space; strings do not change.

    >>> without_trailing_commas('[{"a": "x,]",},]')
    '[{"a": "x,]" } ]'
    """
    return STRING_OR_TRAILING_COMMA.sub(lambda match: " " if match[0] == "," else match[0], text)


def _entry(clip: Clip) -> dict[str, Any]:
    return {name: value for name, value in vars(clip).items() if value not in (None, ())}


def _parse(path: Path) -> list[list[Any]]:
    if not path.is_file():
        raise DataError(f"{path}: no such index. `audioscore data sort DIR` writes one.")
    try:
        value = json.loads(without_trailing_commas(decode_text(path.read_bytes(), path.name)))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name}: not JSON ({error}). Correct it, or write it again.") from error
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return [value]
    if isinstance(value, list) and all(isinstance(item, list) for item in value):
        return value
    raise DataError(f'{path.name}: not a list of groups. The format is [[{{"audio_file": "a.m4a"}}, ...]].')


def _read_entry(path: Path, entry: Any, position: str, ids: Mapping[str, Spellings]) -> Clip:
    name = entry.get("audio_file") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name.strip() or not is_text(name) or len(name) > LONGEST_NAME:
        raise DataError(f"{path.name}, {position}: no audio_file ({json.dumps(entry)[:80]}). Add the name of the file.")
    values: dict[str, Any] = {}
    for key in FIELDS:
        value = entry.get(key)
        if value is None:
            continue
        if not _well_typed(key, value):
            raise DataError(f"{path.name}, {position}, {name}: {key} is {json.dumps(value)[:80]}. {_expected(key)}")
        # Ids are text, but some tools write the `001` of a labels table as a number.
        as_text = key in TEXTS and not isinstance(value, str)
        values[key] = cell_text(value) if as_text else _ratings(value) if key == "raters" else value
        if key in ids:
            try:
                values[key] = ids[key](values[key]) or None
            except DataError as error:
                raise DataError(f"{path.name}, {position}, {name}: {error}") from error
    if "score" in values:
        values["score"] = float(values["score"])
    return Clip(**values)


def _well_typed(key: str, value: Any) -> bool:
    if key in TEXTS:
        return is_text(value) if isinstance(value, str) else _well_typed("row", value) or _is_whole(value)
    if key in COUNTS:
        return isinstance(value, int) and not isinstance(value, bool)
    if key == "raters":
        return isinstance(value, list) and all(item is None or _well_typed("score", item) for item in value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        return False
    return key != "score" or SCORE_MIN <= value <= SCORE_MAX


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()


def _ratings(values: list[float | None]) -> tuple[float | None, ...]:
    return tuple(None if value is None else float(value) for value in values)


def _expected(key: str) -> str:
    if key in TEXTS:
        return "Use text."
    if key in COUNTS:
        return "Use a whole number."
    if key in FLOATS and key != "score":
        return "Use a number."
    listed = "a list of numbers" if key == "raters" else "a number"
    return f"Use {listed} in {SCORE_MIN:g}-{SCORE_MAX:g}, or remove it."


def _log_unknown_keys(path: Path, groups: list[list[Any]]) -> None:
    if unknown := sorted({key for group in groups for entry in group for key in entry} - set(FIELDS)):
        logging.getLogger(__name__).warning("%s: unknown keys ignored: %s", path.name, shorten(unknown))


def _contradicted_keys(path: Path, parsed: list[list[Any]], groups: list[list[Clip]]) -> list[str]:
    """Keys that are ignored, but contradict the file: a split with another name, a band without the score."""
    entries = [entry for group in parsed for entry in group]
    is_split = path.stem in ("train", "val", "test")
    stated = [(entry["audio_file"], str(entry["split"])) for entry in entries if is_split and entry.get("split")]
    splits = [f"{name}: {split}" for name, split in stated if split.lower() != path.stem]
    clips = zip(entries, [clip for group in groups for clip in group], strict=True)
    bands = [
        f"{clip.audio_file}: {entry['band']}, score {clip.score:g}"
        for entry, clip in clips
        if not in_band(clip.score, str(entry.get("band", "")))
    ]
    return [
        f"the key {key} of {len(found)} clips contradicts {what} ({shorten(found)})."
        for key, what, found in (("split", "the name of the file", splits), ("band", "the score", bands))
        if found
    ]


def _group_notes(groups: Sequence[Sequence[Clip]]) -> list[str]:
    """Groups without a pair, recordings in several positions, and groups that contradict each other."""
    notes = []
    for size, what in ((0, "are empty"), (1, "have one recording, which gives no pair")):
        if found := [str(number) for number, group in enumerate(groups, 1) if len(group) == size]:
            notes.append(f"{len(found)} of {len(groups)} groups {what} (group {shorten(found)}).")
    positions: dict[str, list[tuple[int, Clip]]] = defaultdict(list)
    for number, group in enumerate(groups, 1):
        for clip in group:
            positions[file_key(clip.audio_file)].append((number, clip))
    repeated = {name: found for name, found in positions.items() if len(found) > 1}
    if repeated:
        notes.append(
            f"{len(repeated)} of {len(positions)} recordings are listed several times ({shorten([*repeated])})."
        )
    scores = {
        name: [f"{clip.score:g}" for _, clip in found if clip.score is not None] for name, found in repeated.items()
    }
    if several := [f"{name}: {shorten(found)}" for name, found in scores.items() if len(set(found)) > 1]:
        notes.append(f"{len(several)} recordings have several scores ({shorten(several)}).")
    if repeated and (both := _in_both_orders(groups)):
        listed = sorted({str(number) for name in both for number, _ in repeated.get(name, [])}, key=int)
        notes.append(
            f"the order of {len(both)} recordings in groups {shorten(listed)} contradicts itself ({shorten(both)})."
        )
    return notes


def _in_both_orders(groups: Sequence[Sequence[Clip]]) -> list[str]:
    """The recordings that are above and below another one: those in a cycle of the graph of all groups' orders."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names = list(dict.fromkeys(file_key(clip.audio_file) for group in groups for clip in group))
    row = {name: index for index, name in enumerate(names)}
    edges: list[tuple[int, int]] = []
    nodes = len(names)
    for group in groups:
        # Equal scores have no order. A node between two levels saves an edge for every pair of their clips.
        before: list[int] = []
        for _, level in itertools.groupby(
            enumerate(group), key=lambda one: one[0] if one[1].score is None else one[1].score
        ):
            after = [row[file_key(clip.audio_file)] for _, clip in level]
            edges += [*((upper, nodes) for upper in before), *((nodes, lower) for lower in after)]
            before, nodes = after, nodes + 1
    heads, tails = np.array(edges).T
    graph = coo_array((np.ones(len(edges), np.int8), (heads, tails)), shape=(nodes, nodes))
    component = connected_components(graph, directed=True, connection="strong")[1][: len(names)]
    sizes = np.bincount(component)
    return [name for name, part in zip(names, component.tolist(), strict=True) if sizes[part] > 1]


def _check_scored(path: Path, group: Sequence[Clip], number: int) -> None:
    unscored = [clip.audio_file for clip in group if clip.score is None]
    if unscored and len(unscored) < len(group):
        raise DataError(
            f"{path.name}, group {number}: {len(unscored)} of {len(group)} clips have no score ({shorten(unscored)}). "
            f"Score all clips of the group or no clip: an order cannot be compared with scores."
        )


def _check_order(path: Path, group: Sequence[Clip], number: int) -> None:
    for position, (upper, lower) in enumerate(itertools.pairwise(group), 1):
        if upper.score is not None and lower.score is not None and upper.score < lower.score:
            raise DataError(
                f"{path.name}, group {number}: {upper.audio_file} (score {upper.score:g}, position {position}) is "
                f"above {lower.audio_file} (score {lower.score:g}, position {position + 1}), but an index is sorted "
                f"high to low. Correct the file, or sort it by score with --resort (of `data sort`; of `data add` for "
                f"a delivery)."
            )
