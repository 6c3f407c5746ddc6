"""Define the expectations on a labels table as plain values.

Great Expectations takes seconds to import, and this module does not need it; `expectations.py` runs the suite.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from audioscore.data.audio_checks import Severity
from audioscore.data.gate.rejections import ValidationSettings
from audioscore.units import SCORE_BANDS, SCORE_MAX, SCORE_MIN

if TYPE_CHECKING:
    import pandas as pd

BAND_NAMES = tuple(f"{low:g}-{high:g}" for low, high in SCORE_BANDS)
BAND = "band"  # derived column: the score band of a usable row
SINGER_CLIPS = "clips_of_singer"  # derived column: usable rows of the same singer
MIN_COMPARED = 30  # clips of a source, then and now: with fewer, a shift cannot be distinguished from chance
SHIFT_BINS = tuple(float(edge) for edge in range(int(SCORE_MIN), int(SCORE_MAX) + 5, 5))  # points
UNSEEN = 0.001  # expected share of bins that were empty; without it, one clip there gives an infinite divergence


@dataclass(frozen=True)
class Expectation:
    """One line of the suite.

    `kind` is the name of the Great Expectations class. `row_error` is the reason for rejecting a row, a format string
    for the cell. `rule` is a name of RULES and sets the severity; a line without a rule always has `severity`.
    `added` clips outside the table are added to the observed count.
    """

    kind: str
    column: str | None
    meaning: str
    arguments: dict[str, Any] = field(default_factory=dict)
    severity: Severity = "error"
    row_error: str = ""
    where: tuple[str, str | None] | None = None  # only rows whose column has this value (None: empty)
    rule: str = ""
    added: int = 0
    examples: tuple[str, ...] = ()


def build_suite(
    frame: "pd.DataFrame", settings: ValidationSettings, last_scores: Mapping[str, Sequence[float]], unscored: int
) -> list[Expectation]:
    """Build the suite for a frame with derived columns; the arguments are those of `check_table`.

    It has no lines for rules that are off, and no cell lines for columns that the frame lacks.
    """
    lines = [
        *_column_lines(settings),
        *_cell_lines(settings),
        *_count_lines(frame, settings, last_scores, unscored),
        *_shift_lines(frame, settings, last_scores),
    ]
    lines = [replace(line, severity=settings.severity_of(line.rule)) if line.rule else line for line in lines]
    return [
        line
        for line in lines
        if line.severity != "off" and (line.kind == "ExpectColumnToExist" or line.column in {None, *frame.columns})
    ]


def _column_lines(settings: ValidationSettings) -> list[Expectation]:
    source_rule = "" if settings.sources or settings.min_per_source else "no_source"
    singer_rule = "" if settings.min_singers or settings.min_per_singer else "no_singer"
    exist = "ExpectColumnToExist"
    return [
        Expectation(exist, "audio_file", "a column with the recordings"),
        Expectation(exist, "score", "a column with the scores"),
        Expectation(exist, "source", "recording domains, for the figures within each source", rule=source_rule),
        Expectation(exist, "singer_id", "singers; without them, each clip counts as one singer", rule=singer_rule),
    ]


def _cell_lines(settings: ValidationSettings) -> list[Expectation]:
    low, high = settings.usual_scores
    null, between = "ExpectColumnValuesToNotBeNull", "ExpectColumnValuesToBeBetween"
    of_type = "ExpectColumnValuesToBeOfType"
    whole = {"min_value": SCORE_MIN, "max_value": SCORE_MAX}
    scale = f"{SCORE_MIN:g}-{SCORE_MAX:g}"
    usual = f"the usual {low:g}-{high:g}"
    return [
        Expectation("ExpectColumnValuesToBeNull", "fault", "every row can be used"),
        Expectation(null, "audio_file", "every row has the name of a recording", row_error="no file name"),
        Expectation(of_type, "audio_file", "names are text", {"type_": "str"}, row_error="file name {} is not text"),
        Expectation(
            "ExpectColumnValuesToBeUnique",
            "audio_file",
            "every recording is in one row only",
            row_error="{} is also in other rows",
        ),
        Expectation(of_type, "score", "scores are numbers", {"type_": "float64"}),
        Expectation(null, "score", "every row has a score that is a number", row_error="no score"),
        Expectation(
            between, "score", f"scores are on the {scale} scale", whole, row_error="score {} is outside " + scale
        ),
        Expectation(
            between,
            "score",
            f"scores lie within {usual}",
            {"min_value": low, "max_value": high},
            row_error=f"score {{}} is outside {usual}",
            rule="unusual_score",
        ),
        Expectation(null, "singer_id", "every clip has a singer", row_error="no singer", rule="no_singer"),
        *_source_lines(settings.sources),
    ]


def _source_lines(sources: Sequence[str]) -> list[Expectation]:
    null, meaning = "ExpectColumnValuesToNotBeNull", "every clip has a recording domain"
    if not sources:
        return [Expectation(null, "source", meaning, row_error="no source", rule="no_source")]
    allowed = ", ".join(sources)
    escaped = allowed.replace("{", "{{").replace("}", "}}")  # row_error is a format string
    return [
        Expectation(null, "source", meaning, row_error=f"no source; it must be one of {escaped}"),
        Expectation(
            "ExpectColumnValuesToBeInSet",
            "source",
            f"every source is one of {allowed}",
            {"value_set": list(sources)},
            row_error="source {} is not one of " + escaped,
        ),
    ]


def _count_lines(
    frame: "pd.DataFrame", settings: ValidationSettings, last_scores: Mapping[str, Sequence[float]], unscored: int
) -> list[Expectation]:
    needed = settings.min_clips
    meaning = f"at least {needed} usable clips" + (f", including {unscored} without scores" if unscored else "")
    lines = [replace(_row_count(meaning, max(0, needed - unscored), "few_clips"), added=unscored)]
    if (least := settings.min_per_source) and "source" in frame:
        known = {*frame["source"].dropna(), *last_scores} - {""}
        lines += [
            _row_count(f"at least {least} usable clips of {source}", least, "few_per_source", ("source", source))
            for source in settings.sources or sorted(known)
        ]
    if (least := settings.min_per_band) and BAND in frame:
        known = {band for scores in last_scores.values() for band in bands_of(scores)} | {*frame[BAND].dropna()}
        lines += [
            _row_count(f"at least {least} usable clips with scores in {band}", least, "few_per_band", (BAND, band))
            for band in BAND_NAMES
            if band in known
        ]
    return lines + _singer_lines(frame, settings)


def _row_count(meaning: str, least: int, rule: str, where: tuple[str, str] | None = None) -> Expectation:
    column = where[0] if where else None
    kind = "ExpectTableRowCountToBeBetween"
    return Expectation(kind, column, meaning, {"min_value": least}, where=where, rule=rule)


def _singer_lines(frame: "pd.DataFrame", settings: ValidationSettings) -> list[Expectation]:
    lines = []
    if least := settings.min_singers:
        kind = "ExpectColumnUniqueValueCountToBeBetween"
        lines.append(
            Expectation(kind, "singer_id", f"at least {least} singers", {"min_value": least}, rule="few_singers")
        )
    if (least := settings.min_per_singer) and SINGER_CLIPS in frame and frame[SINGER_CLIPS].notna().any():
        short = frame.loc[frame[SINGER_CLIPS] < least, ["singer_id", SINGER_CLIPS]].drop_duplicates()
        fewest = sorted((int(count), str(singer)) for singer, count in short.itertuples(index=False))
        lines.append(
            Expectation(
                "ExpectColumnMinToBeBetween",
                SINGER_CLIPS,
                f"at least {least} usable clips of every singer",
                {"min_value": least},
                rule="few_per_singer",
                examples=tuple(f"{singer}: {count}" for count, singer in fewest),
            )
        )
    return lines


def _shift_lines(
    frame: "pd.DataFrame", settings: ValidationSettings, last_scores: Mapping[str, Sequence[float]]
) -> list[Expectation]:
    """Compare the scores within each source, so that a new source does not count as a shift."""
    if "score" not in frame:
        return []
    sources = frame["source"].fillna("") if "source" in frame else frame["score"].map(lambda _: "")
    usable = frame["fault"].isna() & frame["score"].notna() if "fault" in frame else frame["score"].notna()
    counts = sources[usable].value_counts()
    lines = []
    for source, scores in sorted(last_scores.items()):
        now = int(counts.get(source, 0))
        if source and scores and not now and "source" in frame:
            meaning = f"clips of {source}, which the last accepted version had ({len(scores)})"
            lines.append(_row_count(meaning, 1, "distribution_shift", ("source", source)))
        if min(now, len(scores)) >= MIN_COMPARED:
            lines.append(_shift_line(source, scores, settings.max_shift, "source" in frame))
    return lines


def _shift_line(source: str, scores: Sequence[float], max_shift: float, has_source: bool) -> Expectation:
    counts = np.histogram(scores, SHIFT_BINS)[0].astype(float)
    expected = (1 - UNSEEN) * counts / counts.sum() + UNSEEN / len(counts)
    return Expectation(
        "ExpectColumnKLDivergenceToBeLessThan",
        "score",
        f"scores of {source or 'clips without a source'} are distributed as in the last accepted version, within "
        f"{max_shift:g} nats (validation.max_shift)",
        {
            "partition_object": {"bins": list(SHIFT_BINS), "weights": (expected / expected.sum()).tolist()},
            "threshold": max_shift,
            "tail_weight_holdout": UNSEEN,
        },
        where=("source", source or None) if has_source else None,
        rule="distribution_shift",
    )


def bands_of(scores: Any) -> list[str | None]:
    """Return the score band of each score, as `units.band_of` does; None for a value outside the scale.

    >>> bands_of([85, 84.9, 100, float("nan"), 101])
    ['85-90', '80-85', '95-100', None, None]
    """
    values = np.asarray(scores, dtype=float)
    indices = np.searchsorted([low for low, _ in SCORE_BANDS[1:]], values, side="right")
    on_scale = (values >= SCORE_MIN) & (values <= SCORE_MAX)
    return [BAND_NAMES[index] if valid else None for index, valid in zip(indices, on_scale, strict=True)]
