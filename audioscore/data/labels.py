"""Read labels tables: rows of annotations become scored clips only here.

Every cell is read as text, so that the singer `001` stays `001`. An invalid row is listed as a `RowError` and excluded:
it neither stops the reading nor becomes a wrong score.
"""

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn

from audioscore.data.clips import Clip
from audioscore.data.spelling import BLANKS, INVISIBLE, Spellings, file_key
from audioscore.data.tables import SUFFIXES, Sheet, read_sheets
from audioscore.errors import DataError, UsageError, shorten
from audioscore.units import SCORE_MAX, SCORE_MIN

# Column names and their accepted headers, compared without case, width, spaces, hyphens and underscores. The headers
# after the first occur in tables of annotators, including a misspelling (标记粉丝).
HEADERS: dict[str, tuple[str, ...]] = {
    "audio_file": (
        *("audio_file", "file", "filename", "filepath", "path", "audio", "audio_path", "wav", "url", "recording"),
        *("录音", "录音链接", "录音文件", "音频", "音频文件", "音频链接", "文件", "文件名"),
    ),
    "score": (
        *("score", "scores", "rating", "label", "mos"),
        *("标记分数", "分数", "分数标记", "标记粉丝", "得分", "评分", "打分"),
    ),
    "singer_id": ("singer_id", "singer", "speaker", "speaker_id", "user_id", "演唱者", "歌手id", "用户id"),
    "song_id": ("song_id", "song", "song_name", "title", "歌曲名称", "歌曲", "歌名", "歌曲id"),
    "source": ("source", "domain", "来源", "数据来源"),
    "artist": ("artist", "original_artist", "歌手名称", "歌手", "原唱"),
    "origin": ("origin",),
    "sha256": ("sha256",),
}
RATER = re.compile(r"(?:raters?|judge|annotator|评分|打分|评委)(\d+)")
LONGEST_NAME = 8192  # characters of a path or link
MAX_RATERS = 99  # a higher number is an identifier, not a position
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
ACAPELLA = frozenset({"acapella", "acappella", "清唱"})
# Headers of columns that are not used, but that can contradict those that are.
SPLIT = re.compile("split|subset|partition|划分|数据集划分")
BAND = re.compile("band|scoreband|分数段")
DIMENSION = re.compile("score.+|音准|节奏|气息|音色|情感|技巧")
UNUSED = re.compile("|".join(one.pattern for one in (SPLIT, BAND, DIMENSION)))
RANGE = re.compile(r"(\d+(?:\.\d+)?)\s*[-~\u2013\u2014至到,]\s*(\d+(?:\.\d+)?)", re.ASCII)
NARROW = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)}  # full-width ASCII, as Chinese input methods type it


class RowError(NamedTuple):
    """A table row that is excluded from the clips, and the reason. `row` counts the data rows from 1.

    The `severity` is "warning" for a harmless duplicate, else "error".
    """

    row: int
    audio_file: str
    reason: str
    severity: str = "error"

    def located(self, locations: Mapping[int, str]) -> "RowError":
        """Return the error with the row of its worksheet in front of the reason."""
        return self._replace(reason=with_location(self.row, self.reason, locations))


def with_location(row: int | None, reason: str, locations: Mapping[int, str]) -> str:
    """Return a reason with the row of a worksheet in front of it, as a spreadsheet numbers it.

    >>> with_location(15, "no score", {15: "sheet KTV, row 16"})
    'sheet KTV, row 16: no score'
    """
    location = locations.get(row or 0, "")
    return f"{location}: {reason}" if location and not reason.startswith(location) else reason


def row_label(row: int | None, reason: str) -> str:
    """Return `row 16` for messages; an empty text if the reason names the row of a worksheet.

    >>> row_label(16, "no score"), row_label(15, "sheet KTV, row 16: no score")
    ('row 16', '')
    """
    return "" if row is None or reason.startswith("sheet ") else f"row {row}"


def row_name(row: int | None, locations: Mapping[int, str]) -> str:
    """Return the name of a row for messages: where it is in a workbook, else `row 16`."""
    return locations.get(row or 0, f"row {row}")


@dataclass(frozen=True)
class LabelsTable:
    """The contents of a labels table: clips in table order, and the rows that are excluded.

    `columns` maps our column names to the headers of the table; `unknown_columns` are the headers that are not read.
    `notes` are sentences about the table, such as ids with several spellings; `splits` are the splits that it states by
    audio_file. `locations` names the rows of worksheets as a spreadsheet numbers them.
    """

    clips: list[Clip]
    columns: dict[str, str]
    row_errors: list[RowError]
    unknown_columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    splits: dict[str, str] = field(default_factory=dict)
    locations: dict[int, str] = field(default_factory=dict)


def read_labels(
    path: Path,
    *,
    column_map: dict[str, str] | None = None,
    singer_from: str | None = None,
    source: str | None = None,
    keep_duplicates: bool = False,
    include_hidden: bool = False,
) -> LabelsTable:
    """Read a labels table (csv, tsv, xlsx or jsonl) into scored clips.

    The singer of a row is the first of: the singer_id cell; the artist, for a-cappella originals only; the group that
    `singer_from` matches in the file's base name. Without a score column, the score is the mean of the rater columns
    (rater_1, 评分1, ...), without their blanks. An id in several spellings has the first one in all rows.

    Rows without a file name, without a score in 0-100, or with the file name of another row are in `row_errors`, not in
    `clips`. Of rows with the same file and the same score, the first is a clip.

    Args:
        column_map: Header by column name, for headers that are not among HEADERS.
        singer_from: Regular expression with one group.
        source: Recording domain of the rows that have no source.
        keep_duplicates: Keep all rows of a repeated file as clips.
        include_hidden: Read the hidden rows and sheets of a workbook, too.

    Raises:
        DataError: The file cannot be read, or required columns are missing or ambiguous.
        UsageError: `column_map` or `singer_from` is invalid.
    """
    chosen = dict(column_map or {})
    if unknown := sorted(set(chosen) - set(HEADERS)):
        raise UsageError(f"--map {shorten(unknown)}: no such column. Use one of {', '.join(HEADERS)}.")
    pattern = singer_pattern(singer_from)
    clips: list[Clip] = []
    errors: list[RowError] = []
    columns: dict[str, str] = {}
    unknown_columns: dict[str, None] = {}
    ids = {name: Spellings(name) for name in ("singer_id", "song_id", "artist", "source")}
    unused: dict[str, list[tuple[Clip, str]]] = defaultdict(list)
    sheets = read_sheets(path, is_known=known_header(chosen), include_hidden=include_hidden)
    usable, notes = _usable_sheets(path, sheets, chosen)
    locations: dict[int, str] = {}
    for sheet, found in usable:
        locations |= sheet.locations
        columns = {name: sheet.headers[position] for name, position in found.items()} | columns
        unread = [name for index, name in enumerate(sheet.headers) if name and index not in found.values()]
        unknown_columns |= dict.fromkeys(unread)
        errors += [RowError(row, "", reason) for row, reason in sheet.broken]
        kept = [
            index for index, header in enumerate(sheet.headers) if header in unread and UNUSED.fullmatch(_key(header))
        ]
        for row, cells in sheet.rows:
            result = _read_row(row, cells, sheet, found, pattern, source, ids)
            if isinstance(result, Clip):
                clips.append(result)
                for index in kept:
                    unused[sheet.headers[index]] += [(result, cells[index])] if cells[index:] and cells[index] else []
            else:
                errors.append(result)
    if not keep_duplicates:
        clips, duplicates = _without_duplicates(clips, locations)
        errors += duplicates
    notes += [note for spellings in ids.values() for note in spellings.notes()] + _contradictions(unused, locations)
    splits = {
        clip.audio_file: cell for name, cells in unused.items() if SPLIT.fullmatch(_key(name)) for clip, cell in cells
    }
    errors = sorted(error.located(locations) for error in errors)
    return LabelsTable(clips, columns, errors, tuple(unknown_columns), tuple(notes), splits, locations)


def find_labels(folder: Path) -> Path:
    """Return the path of a data folder's only labels table; DataError if it has no table, or several."""
    found = [folder / f"labels{suffix}" for suffix in SUFFIXES if (folder / f"labels{suffix}").is_file()]
    names = ", ".join(f"labels{suffix}" for suffix in SUFFIXES)
    if not found:
        raise DataError(f"{folder}: no labels table. Add one of {names}.")
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise DataError(f"{folder}: contains {len(found)} labels tables ({listed}). Keep one.")
    return found[0]


def _key(header: str) -> str:
    return re.sub(r"[\s_\-]+", "", unicodedata.normalize("NFKC", INVISIBLE.sub("", header)).casefold())


MEANING = {_key(synonym): name for name, synonyms in HEADERS.items() for synonym in synonyms}


def known_header(chosen: Mapping[str, str]) -> Callable[[str], str | None]:
    """Return a function that returns the column name of a header (`rater_N` for a rater), or None.

    `chosen` maps column names to headers, as `column_map` does.
    """
    wanted = {_key(header): name for name, header in chosen.items()}

    def column_of(header: str) -> str | None:
        key = _key(header)
        rater = RATER.fullmatch(key)
        return wanted.get(key, f"rater_{int(rater[1])}" if rater else MEANING.get(key))

    return column_of


def singer_pattern(singer_from: str | None) -> re.Pattern[str] | None:
    """Compile the expression that finds a singer in a base name; UsageError unless it is valid and has one group."""
    if singer_from is None:
        return None
    try:
        pattern = re.compile(singer_from)
    except re.error as error:
        raise UsageError(f"--singer-from {singer_from!r}: not a regular expression ({error}). Correct it.") from error
    if pattern.groups != 1:
        raise UsageError(f"--singer-from {singer_from!r}: has {pattern.groups} groups. Give it one: the singer.")
    return pattern


def match_columns(headers: Sequence[str], chosen: Mapping[str, str]) -> dict[str, int]:
    """Return the position of each known column (`rater_N` for rater columns) among the headers.

    `chosen` maps column names to headers and overrides HEADERS. Raises DataError if two headers match one column.
    """
    column_of = known_header(chosen)
    found: dict[str, list[int]] = defaultdict(list)
    for position, header in enumerate(headers):
        name = column_of(header)
        if name and (name not in chosen or _key(header) == _key(chosen[name])):
            found[name].append(position)
    for name, positions in found.items():
        if len(positions) > 1:
            named = shorten([f"{headers[position]!r} (column {position + 1})" for position in positions])
            distinct = len({_key(headers[position]) for position in positions}) == len(positions)
            fix = f"Choose one with --map {name}=HEADER." if distinct else "Rename or remove one."
            raise DataError(f"column {name}: {len(positions)} headers match: {named}. {fix}")
    return {name: positions[0] for name, positions in found.items()}


def _missing(found: Mapping[str, int], chosen: Mapping[str, str]) -> list[str]:
    needed = dict.fromkeys(["audio_file", "score", *chosen])
    rated = any(name.startswith("rater_") for name in found)
    return [name for name in needed if name not in found and not (name == "score" and rated and name not in chosen)]


def _usable_sheets(
    path: Path, sheets: list[Sheet], chosen: Mapping[str, str]
) -> tuple[list[tuple[Sheet, dict[str, int]]], list[str]]:
    """Sheets with their columns, and notes. If others are usable, a sheet without files and scores is only noted."""
    usable: list[tuple[Sheet, dict[str, int]]] = []
    notes: list[str] = []
    for sheet in sheets:
        found = match_columns(sheet.headers, chosen)
        missing = _missing(found, chosen)
        if not missing:
            usable.append((sheet, found))
        elif len(sheets) > 1 and {"audio_file", "score"} <= set(missing):
            headers = shorten([header for header in sheet.headers if header])
            notes.append(
                f"{f'sheet {sheet.name}' if sheet.name else 'a table'} is not read: it has no column for "
                f"audio_file and no column for score; its headers are {headers}."
            )
        else:
            _refuse_columns(path, sheet, missing, chosen)
    if not usable:
        _refuse_columns(path, sheets[0], _missing(match_columns(sheets[0].headers, chosen), chosen), chosen)
    return usable, [note for sheet in sheets for note in sheet.notes] + notes


def _refuse_columns(path: Path, sheet: Sheet, missing: Sequence[str], chosen: Mapping[str, str]) -> NoReturn:
    name = f"{path.name}, sheet {sheet.name!r}" if sheet.name else path.name
    asked = [f"{chosen[name]!r} for {name}" for name in missing if name in chosen]
    accepted = "; ".join(f"{name}: {', '.join(HEADERS[name])}" for name in missing)
    raise DataError(
        f"{name}: no column {', '.join(asked) if asked else ' and no column '.join(missing)}; its headers are "
        f"{shorten([header or '(blank)' for header in sheet.headers], 30)}. Accepted headers are {accepted}"
        f"{'; or rater_1, rater_2, ...' if 'score' in missing else ''}; or pass --map {missing[0]}=HEADER."
    )


def _read_row(
    row: int,
    cells: list[str],
    sheet: Sheet,
    found: Mapping[str, int],
    pattern: re.Pattern[str] | None,
    source: str | None,
    ids: Mapping[str, Spellings],
) -> Clip | RowError:
    values = {name: cells[position] if position < len(cells) else "" for name, position in found.items()}
    values["audio_file"] = sheet.links.get((row, found["audio_file"]), values["audio_file"])
    audio_file = values["audio_file"]
    if faults := [sheet.faults[row, position] for position in found.values() if (row, position) in sheet.faults]:
        return RowError(row, audio_file, faults[0])
    if not audio_file:
        return RowError(row, "", "no file name")
    if len(audio_file) > LONGEST_NAME:
        return RowError(row, f"{audio_file[:40]}...", f"the file name has {len(audio_file)} characters")
    if any(cells[(width := len(sheet.headers)) :]):
        return RowError(
            row, audio_file, f"{len(cells)} cells for {width} columns: a delimiter inside a cell needs quotes"
        )
    if any("\n" in value for value in values.values()):
        return RowError(row, audio_file.splitlines()[0], "a cell contains several lines: check for an unclosed quote")
    raters = _raters(values)
    if isinstance(raters, str):
        return RowError(row, audio_file, raters)
    score = _score(values["score"]) if "score" in values else mean_rating(raters)
    if score is None:
        return RowError(row, audio_file, "no score, and no rater gave one")
    if isinstance(score, str):
        return RowError(row, audio_file, score)
    try:
        artist = ids["artist"](values.get("artist", "")) or None
        song = ids["song_id"](values.get("song_id", "")) or None
        domain = _source(ids["source"](values.get("source") or source or ""))
        singer = ids["singer_id"](values.get("singer_id", "")) or (artist if domain == "acapella" else None)
        singer = ids["singer_id"](singer or singer_from_name(audio_file, pattern) or "") or None
    except DataError as error:
        return RowError(row, audio_file, str(error).rstrip("."))
    origin, content = values.get("origin") or None, values.get("sha256", "").casefold() or None
    return Clip(audio_file, score, singer, song, domain, artist, raters, row, origin, content)


def mean_rating(raters: Sequence[float | None]) -> float | None:
    """Return the mean of the given scores; None if no rater gave one.

    >>> mean_rating((80.0, None, 90.0)), mean_rating((None,))
    (85.0, None)
    """
    given = [score for score in raters if score is not None]
    return math.fsum(given) / len(given) if given else None


def _raters(values: Mapping[str, str]) -> tuple[float | None, ...] | str:
    """The raters' scores, at index N - 1 for column rater_N, None for a blank; or an error message."""
    columns = sorted(int(name.removeprefix("rater_")) for name in values if name.startswith("rater_"))
    if columns and columns[0] > 0 and columns[-1] <= MAX_RATERS:
        columns = list(range(1, columns[-1] + 1))  # includes missing columns: rater 3 keeps index 2
    scores: list[float | None] = []
    for name in [f"rater_{number}" for number in columns]:
        if values.get(name, "").casefold() in BLANKS:
            scores.append(None)
            continue
        score = _score(values[name])
        if isinstance(score, str):
            return f"{name}: {score}"
        scores.append(score)
    while scores and scores[-1] is None:
        scores.pop()
    return tuple(scores)


def _score(cell: str) -> float | str:
    """The score in a cell, or an error message."""
    text = _plain(cell)
    if text.casefold() in BLANKS:
        return "no score"
    if not NUMBER.fullmatch(text):
        return f"score {cell[:40]!r} is not a number"
    number = float(text)
    if not SCORE_MIN <= number <= SCORE_MAX:
        return f"score {cell[:40]} is outside {SCORE_MIN:g}-{SCORE_MAX:g}"
    return number


def _plain(cell: str) -> str:
    return cell.translate(NARROW).strip().removesuffix("分").strip()


def _source(text: str) -> str | None:
    """The normalized recording domain: lower case, and `acapella` for all its spellings."""
    return "acapella" if _key(text) in ACAPELLA else text.lower() or None


def singer_from_name(audio_file: str, pattern: re.Pattern[str] | None) -> str | None:
    """Return the singer that `pattern` finds in a file's base name, or None."""
    match = pattern.search(_base_name(audio_file)) if pattern else None
    return (match[1] or None) if match else None


def _contradictions(unused: Mapping[str, Sequence[tuple[Clip, str]]], locations: Mapping[int, str]) -> list[str]:
    """Describe the cells of unused columns that contradict the scores, in one sentence for each column."""
    notes = []
    for header, cells in unused.items():
        if BAND.fullmatch(_key(header)):
            wrong, problem = [one for one in cells if not in_band(one[0].score, one[1])], "do not contain the score"
        else:
            numeric = [one for one in cells if NUMBER.fullmatch(_plain(one[1]))]
            wrong, problem = [one for one in numeric if isinstance(_score(one[1]), str)], "are outside the scale"
        if wrong:
            rows = [(row_name(clip.row, locations), clip.score, cell) for clip, cell in wrong]
            listed = shorten([f"{row}: {cell[:20]}, score {score:g}" for row, score, cell in rows], 3)
            notes.append(f"column {header}: {len(wrong)} of {len(cells)} cells {problem} ({listed}).")
    return notes


def in_band(score: float | None, text: str) -> bool:
    """Return whether a score is within a band; true for a text that is no range of numbers.

    >>> in_band(87, "85-90"), in_band(84.5, "85至90分"), in_band(84.5, "good")
    (True, False, True)
    """
    found = RANGE.search(text.translate(NARROW))
    return score is None or found is None or float(found[1]) <= score <= float(found[2])


def _base_name(audio_file: str) -> str:
    path = re.split(r"[?#]", audio_file)[0] if "://" in audio_file else audio_file
    return re.split(r"[/\\]", path)[-1]


def _without_duplicates(clips: list[Clip], locations: Mapping[int, str]) -> tuple[list[Clip], list[RowError]]:
    """Keep the first row of each file if its rows have equal scores, else no row."""
    rows: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        rows[file_key(clip.audio_file)].append(clip)
    kept: list[Clip] = []
    errors: list[RowError] = []
    for first, *others in rows.values():
        if all(other.score == first.score for other in others):
            kept.append(first)
            reason = f"duplicate of {row_name(first.row, locations)}: same file, same score {first.score:g}"
            errors += [RowError(other.row or 0, other.audio_file, reason, "warning") for other in others]
        else:
            scores = shorten([f"{clip.score:g} in {row_name(clip.row, locations)}" for clip in (first, *others)])
            reason = f"conflict: scored {scores}"
            errors += [RowError(clip.row or 0, clip.audio_file, reason) for clip in (first, *others)]
    return kept, errors
