"""Read and write an index: groups of clips as JSON, each sorted from the best to the worst.

The format is that of QwenFeat-Vocal-Score, `[[{"audio_file": ..., "score": ...}, ...]]`. Its own indexes have no
scores: their order is used, and their clips have `score` None.
"""

import dataclasses
import itertools
import json
import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audioscore.data.clips import Clip
from audioscore.data.tables import decode_text, is_text
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

    A byte-order mark, GBK and trailing commas are accepted; unknown keys are ignored and logged.

    Args:
        resort: Sort a group whose scores and order disagree; equal scores keep their order in the file.

    Raises:
        DataError: The file is not such JSON, a group has clips with and without scores, or its scores and its order
            disagree.
    """
    parsed = _parse(path)
    groups = [
        [_read_entry(path, entry, f"group {number}, position {position}") for position, entry in enumerate(group, 1)]
        for number, group in enumerate(parsed, 1)
    ]
    _log_unknown_keys(path, parsed)
    for number, group in enumerate(groups, 1):
        _check_scored(path, group, number)
        if resort and group and group[0].score is not None:
            group.sort(key=lambda clip: -(clip.score or 0.0))
        _check_order(path, group, number)
    return groups


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
        value = json.loads(without_trailing_commas(decode_text(path)))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name}: not JSON ({error}). Correct it, or write it again.") from error
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return [value]
    if isinstance(value, list) and all(isinstance(item, list) for item in value):
        return value
    raise DataError(f'{path.name}: not a list of groups. The format is [[{{"audio_file": "a.m4a"}}, ...]].')


def _read_entry(path: Path, entry: Any, position: str) -> Clip:
    name = entry.get("audio_file") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name.strip() or not is_text(name):
        raise DataError(f"{path.name}, {position}: no audio_file ({json.dumps(entry)[:80]}). Add the name of the file.")
    values: dict[str, Any] = {}
    for key in FIELDS:
        value = entry.get(key)
        if value is None:
            continue
        if not _well_typed(key, value):
            raise DataError(f"{path.name}, {position}, {name}: {key} is {json.dumps(value)[:80]}. {_expected(key)}")
        # Ids are text, but some tools write the `001` of a labels table as a number.
        values[key] = str(value) if key in TEXTS else _ratings(value) if key == "raters" else value
    if "score" in values:
        values["score"] = float(values["score"])
    return Clip(**values)


def _well_typed(key: str, value: Any) -> bool:
    if key in TEXTS:
        return (isinstance(value, str) and is_text(value)) or (isinstance(value, int) and not isinstance(value, bool))
    if key in COUNTS:
        return isinstance(value, int) and not isinstance(value, bool)
    if key == "raters":
        return isinstance(value, list) and all(item is None or _well_typed("score", item) for item in value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return key != "score" or SCORE_MIN <= value <= SCORE_MAX


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
