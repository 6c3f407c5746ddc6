"""Labels tables: the one place where annotations become scored clips.

Everything is read as text, so that the singer `001` stays `001`. A row that cannot be trusted is listed as a fault and
left out of the clips: it never stops the table, and never becomes a wrong score.
"""

import csv
import math
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

from audioscore.data.clips import Clip
from audioscore.data.tables import SUFFIXES, Sheet, cell_text, read_sheets
from audioscore.errors import DataError, UsageError, shorten
from audioscore.files import atomic_path
from audioscore.units import SCORE_MAX, SCORE_MIN

# Our names and the headers that mean them, compared without case, width, spaces, hyphens and underscores. The names
# after the first are what annotators' tables were seen to use, a misspelling (标记粉丝) included.
HEADERS: dict[str, tuple[str, ...]] = {
    "audio_file": (
        *("audio_file", "file", "filename", "filepath", "path", "audio", "audio_path", "wav", "url", "recording"),
        *("录音", "录音链接", "录音文件", "音频", "音频文件", "音频链接", "文件", "文件名"),
    ),
    "score": (
        *(
            "score",
            "scores",
            "rating",
            "label",
            "mos",
            "标记分数",
            "分数",
            "分数标记",
            "标记粉丝",
            "得分",
            "评分",
            "打分",
        ),
    ),
    "singer_id": ("singer_id", "singer", "speaker", "speaker_id", "user_id", "演唱者", "歌手id", "用户id"),
    "song_id": ("song_id", "song", "song_name", "title", "歌曲名称", "歌曲", "歌名", "歌曲id"),
    "source": ("source", "domain", "来源", "数据来源"),
    "artist": ("artist", "original_artist", "歌手名称", "歌手", "原唱"),
    "origin": ("origin",),
    "sha256": ("sha256",),
}
RATER = re.compile(r"(?:raters?|judge|annotator|评分|打分|评委)(\d+)")
MOST_RATERS = 99  # a higher number is no place in a list, but a name
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
BLANKS = frozenset({"", "-", "/", "na", "n/a", "nan", "none", "null", "无"})
ACAPELLA = frozenset({"acapella", "acappella", "清唱"})
NARROW = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)}  # full-width ASCII, as Chinese input methods type it


class Fault(NamedTuple):
    """A row of the table that is not among its clips, and why. `row` counts the table's data rows from 1."""

    row: int
    audio_file: str
    reason: str


@dataclass(frozen=True)
class LabelsTable:
    """What a labels table says: clips in the table's order, the header behind each of our names, and the bad rows.

    `left_out` are the headers that mean nothing here.
    """

    clips: list[Clip]
    columns: dict[str, str]
    faults: list[Fault]
    left_out: tuple[str, ...] = ()


def read_labels(
    path: Path,
    *,
    column_map: dict[str, str] | None = None,
    singer_from: str | None = None,
    source: str | None = None,
    keep_repeats: bool = False,
) -> LabelsTable:
    """Read a labels table.

    `column_map` says which header means which of our names, where the known synonyms do not. `source` is the recording
    domain of the rows that name none. A singer is, in this order: the singer_id cell; the artist, for a-cappella
    originals only; the one group of the regular expression `singer_from` where it is found in the file's base name.
    Without a score column the score is the mean of the rater columns (rater_1, 评分1, ...), whose blanks are left out.

    Rows without a file name, without a score in 0-100, or naming a file twice are in `faults`, not in `clips`; of
    repeats with one and the same score the first is kept; `keep_repeats` leaves all of them among the clips. Raises
    DataError where the file cannot be read or needed columns are missing or ambiguous, UsageError for a wrong
    `column_map` or `singer_from`.
    """
    chosen = dict(column_map or {})
    if unknown := sorted(set(chosen) - set(HEADERS)):
        raise UsageError(f"--map knows no column {shorten(unknown)}. Use one of {', '.join(HEADERS)}.")
    pattern = singer_pattern(singer_from)
    clips: list[Clip] = []
    faults: list[Fault] = []
    columns: dict[str, str] = {}
    left_out: dict[str, None] = {}
    sheets = read_sheets(path, known=meaningful(chosen))
    for sheet, found in _usable_sheets(path, sheets, chosen, faults):
        columns = {name: sheet.headers[position] for name, position in found.items()} | columns
        left_out |= {name: None for place, name in enumerate(sheet.headers) if name and place not in found.values()}
        faults += [Fault(row, "", reason) for row, reason in sheet.broken]
        for row, cells in sheet.rows:
            result = _read_row(row, cells, len(sheet.headers), found, pattern, source)
            if isinstance(result, Clip):
                clips.append(result)
            else:
                place = f"sheet {sheet.name!r}: " if sheet.name else ""
                faults.append(result._replace(reason=place + result.reason))
    if not keep_repeats:
        clips, repeats = _without_repeats(clips)
        faults += repeats
    return LabelsTable(clips, columns, sorted(faults), tuple(left_out))


def find_labels(folder: Path) -> Path:
    """The labels table of a data folder; DataError where it holds none, or several."""
    found = [folder / f"labels{suffix}" for suffix in SUFFIXES if (folder / f"labels{suffix}").is_file()]
    names = ", ".join(f"labels{suffix}" for suffix in SUFFIXES)
    if not found:
        raise DataError(f"{folder} holds no labels table. Put one of {names} there.")
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise DataError(f"{folder} holds {len(found)} labels tables ({listed}). Keep one.")
    return found[0]


def write_labels(path: Path, clips: Sequence[Clip]) -> None:
    """Write clips as a UTF-8 csv that `read_labels` reads back; optional columns appear where any clip has a value.

    Raises DataError where a clip has no score, since a labels table has no place for one.
    """
    if unscored := [clip.audio_file for clip in clips if clip.score is None]:
        raise DataError(
            f"{len(unscored)} of {len(clips)} clips have no score ({shorten(unscored)}). Score them, or leave them out."
        )
    optional = [name for name in HEADERS if name not in ("audio_file", "score")]
    used = [name for name in optional if any(getattr(clip, name) is not None for clip in clips)]
    raters = max((len(clip.raters) for clip in clips), default=0)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["audio_file", "score", *used, *(f"rater_{number + 1}" for number in range(raters))])
        for clip in clips:
            numbers = [clip.score, *clip.raters, *[None] * (raters - len(clip.raters))]
            score, *rated = [cell_text(number) for number in numbers]
            writer.writerow([clip.audio_file, score, *(getattr(clip, name) or "" for name in used), *rated])


def _key(header: str) -> str:
    return re.sub(r"[\s_\-\ufeff]+", "", unicodedata.normalize("NFKC", header).casefold())


MEANING = {_key(synonym): name for name, synonyms in HEADERS.items() for synonym in synonyms}


def meaningful(chosen: Mapping[str, str]) -> Callable[[str], bool]:
    """Whether a header means something here, which tells a csv's delimiter; `chosen` maps our names to headers."""
    known = MEANING.keys() | {_key(header) for header in chosen.values()}
    return lambda header: _key(header) in known


def singer_pattern(singer_from: str | None) -> re.Pattern[str] | None:
    """The regular expression that finds a singer in a file's base name. Raises UsageError where it cannot."""
    if singer_from is None:
        return None
    try:
        pattern = re.compile(singer_from)
    except re.error as fault:
        raise UsageError(f"--singer-from {singer_from!r} is not a regular expression ({fault}).") from fault
    if pattern.groups != 1:
        raise UsageError(f"--singer-from {singer_from!r} has {pattern.groups} groups. Give it exactly one: the singer.")
    return pattern


def match_columns(headers: Sequence[str], chosen: Mapping[str, str]) -> dict[str, int]:
    """Position of each of our names (`rater_N` for rater columns) among the headers.

    `chosen` says which header means which name, where the synonyms do not. Raises DataError where two mean the same.
    """
    wanted = {_key(header): name for name, header in chosen.items()}
    found: dict[str, list[int]] = defaultdict(list)
    for position, header in enumerate(headers):
        key = _key(header)
        name = wanted.get(key, MEANING.get(key))
        if rater := RATER.fullmatch(key):
            name = wanted.get(key, f"rater_{int(rater[1])}")
        if name and (name not in chosen or key in wanted):
            found[name].append(position)
    for name, positions in found.items():
        if len(positions) > 1:
            named = " and ".join(f"{headers[position]!r} (column {position + 1})" for position in positions)
            raise DataError(f"{named} both mean {name}. Choose one with --map {name}=HEADER, or rename the other.")
    return {name: positions[0] for name, positions in found.items()}


def _missing(found: Mapping[str, int], chosen: Mapping[str, str]) -> list[str]:
    needed = dict.fromkeys(["audio_file", "score", *chosen])
    rated = any(name.startswith("rater_") for name in found)
    return [name for name in needed if name not in found and not (name == "score" and rated and name not in chosen)]


def _usable_sheets(
    path: Path, sheets: list[Sheet], chosen: Mapping[str, str], faults: list[Fault]
) -> list[tuple[Sheet, dict[str, int]]]:
    """Sheets with their columns. One beside them that has neither files nor scores is a fault, not an end."""
    usable: list[tuple[Sheet, dict[str, int]]] = []
    skipped: list[Fault] = []
    for sheet in sheets:
        found = match_columns(sheet.headers, chosen)
        missing = _missing(found, chosen)
        if not missing:
            usable.append((sheet, found))
        elif len(sheets) > 1 and {"audio_file", "score"} <= set(missing):
            first = sheet.rows[0][0] if sheet.rows else 1
            reason = f"sheet {sheet.name!r} was left out: it has no column for audio_file and none for score"
            skipped.append(Fault(first, "", reason))
        else:
            _refuse_columns(path, sheet, missing, chosen)
    if not usable:
        _refuse_columns(path, sheets[0], _missing(match_columns(sheets[0].headers, chosen), chosen), chosen)
    faults += skipped
    return usable


def _refuse_columns(path: Path, sheet: Sheet, missing: Sequence[str], chosen: Mapping[str, str]) -> NoReturn:
    place = f"{path.name}, sheet {sheet.name!r}," if sheet.name else path.name
    asked = [f"{chosen[name]!r} for {name}" for name in missing if name in chosen]
    accepted = "; ".join(f"{name}: {', '.join(HEADERS[name])}" for name in missing)
    raise DataError(
        f"{place} has no column {', '.join(asked) if asked else ' and no column '.join(missing)}; its headers are "
        f"{shorten([header or '(blank)' for header in sheet.headers], 30)}. Accepted are {accepted}"
        f"{'; or rater_1, rater_2, ...' if 'score' in missing else ''}; or name yours with --map {missing[0]}=HEADER."
    )


def _read_row(
    row: int,
    cells: list[str],
    width: int,
    found: Mapping[str, int],
    pattern: re.Pattern[str] | None,
    source: str | None,
) -> Clip | Fault:
    values = {name: cells[position] if position < len(cells) else "" for name, position in found.items()}
    audio_file = values["audio_file"]
    if not audio_file:
        return Fault(row, "", "no file name")
    if any(cells[width:]):
        return Fault(row, audio_file, f"{len(cells)} cells for {width} columns: a delimiter inside a cell needs quotes")
    if any("\n" in value for value in values.values()):
        return Fault(row, audio_file.split("\n")[0], "a cell runs over several lines: is a quote left open?")
    raters = _raters(values)
    if isinstance(raters, str):
        return Fault(row, audio_file, raters)
    score = _score(values["score"]) if "score" in values else mean_rating(raters)
    if score is None:
        return Fault(row, audio_file, "no score, and no rater gave one")
    if isinstance(score, str):
        return Fault(row, audio_file, score)
    artist = values.get("artist") or None
    domain = _source(values.get("source") or source)
    singer = values.get("singer_id") or (artist if domain == "acapella" else None)
    if singer is None:
        singer = singer_in(audio_file, pattern)
    song = values.get("song_id") or None
    origin, content = values.get("origin") or None, values.get("sha256", "").casefold() or None
    return Clip(audio_file, score, singer, song, domain, artist, raters, row, origin, content)


def mean_rating(raters: Sequence[float | None]) -> float | None:
    """Mean of the raters who gave a score; None where nobody did.

    >>> mean_rating((80.0, None, 90.0)), mean_rating((None,))
    (85.0, None)
    """
    given = [score for score in raters if score is not None]
    return math.fsum(given) / len(given) if given else None


def _raters(values: Mapping[str, str]) -> tuple[float | None, ...] | str:
    """The raters' scores, each at the place of its column's number, None for a blank; or what is wrong with one."""
    numbers = sorted(int(name.removeprefix("rater_")) for name in values if name.startswith("rater_"))
    if numbers and numbers[0] > 0 and numbers[-1] <= MOST_RATERS:
        numbers = list(range(1, numbers[-1] + 1))  # one who has no column here keeps a place: rater 3 stays rater 3
    scores: list[float | None] = []
    for name in [f"rater_{number}" for number in numbers]:
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
    """A score, or why the cell holds none."""
    text = cell.translate(NARROW).strip().removesuffix("分").strip()
    if text.casefold() in BLANKS:
        return "no score"
    if not NUMBER.fullmatch(text):
        return f"score {cell!r} is not a number"
    number = float(text)
    if not SCORE_MIN <= number <= SCORE_MAX:
        return f"score {cell} is outside {SCORE_MIN:g}-{SCORE_MAX:g}"
    return number


def _source(text: str | None) -> str | None:
    """Recording domain in one spelling: lower case, and `acapella` however it was written."""
    return "acapella" if text and _key(text) in ACAPELLA else (text or "").strip().lower() or None


def singer_in(audio_file: str, pattern: re.Pattern[str] | None) -> str | None:
    """The singer that a file's base name tells, where it does."""
    match = pattern.search(_base_name(audio_file)) if pattern else None
    return (match[1] or None) if match else None


def _base_name(audio_file: str) -> str:
    path = re.split(r"[?#]", audio_file)[0] if "://" in audio_file else audio_file
    return re.split(r"[/\\]", path)[-1]


def _without_repeats(clips: list[Clip]) -> tuple[list[Clip], list[Fault]]:
    """First of each file's rows where they agree on the score; none where they do not."""
    rows: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        name = unicodedata.normalize("NFC", clip.audio_file)
        rows[name if "://" in name else posixpath.normpath(name)].append(clip)
    kept: list[Clip] = []
    faults: list[Fault] = []
    for first, *others in rows.values():
        if all(other.score == first.score for other in others):
            kept.append(first)
            reason = f"duplicate of row {first.row}: same file, same score {first.score:g}"
            faults += [Fault(other.row or 0, other.audio_file, reason) for other in others]
        else:
            told = shorten([f"{clip.score:g} in row {clip.row}" for clip in (first, *others)])
            faults += [Fault(clip.row or 0, clip.audio_file, f"conflict: scored {told}") for clip in (first, *others)]
    return kept, faults
