"""The lines of the suite that a labels table must meet, in plain values.

Great Expectations takes seconds to import; nothing here needs it. `expectations.py` runs the suite.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from audioscore.data.gate.rejections import ValidationSettings
from audioscore.data.rules import Severity
from audioscore.units import SCORE_BANDS, SCORE_MAX, SCORE_MIN

if TYPE_CHECKING:
    import pandas as pd

BAND_NAMES = tuple(f"{low:g}-{high:g}" for low, high in SCORE_BANDS)
BAND = "band"  # derived column: the score band of a usable row
SINGER_CLIPS = "clips_of_singer"  # derived column: usable rows of the same singer
MIN_COMPARED = 30  # clips of a source, then and now: among fewer, a shift cannot be told from chance
SHIFT_BINS = tuple(float(edge) for edge in range(int(SCORE_MIN), int(SCORE_MAX) + 5, 5))  # points
UNSEEN = 0.001  # share expected in bins that held no score, without which one clip there would be infinitely far off


@dataclass(frozen=True)
class Expectation:
    """One line of the suite, in plain values, so that Great Expectations is imported only to run it.

    `kind` is the class's name. `fault` says of a cell, in the braces' place, why its row is rejected. `rule` is the
    line's name among RULES; a line without one always has `severity`. `added` clips outside the table count, too.
    """

    kind: str
    column: str | None
    meaning: str
    arguments: dict[str, Any] = field(default_factory=dict)
    severity: Severity = "error"
    fault: str = ""
    where: tuple[str, str | None] | None = None  # only rows whose column has this value (None: is empty)
    rule: str = ""
    added: int = 0
    examples: tuple[str, ...] = ()


def build_suite(
    frame: "pd.DataFrame", settings: ValidationSettings, last_scores: Mapping[str, Sequence[float]], unscored: int
) -> list[Expectation]:
    """The suite for a frame that has its derived columns. Lines of rules that are off, and cell lines of columns that
    the frame lacks, are left out; arguments are those of `check_table`.
    """
    lines = [
        *_about_columns(settings),
        *_about_cells(settings),
        *_about_counts(frame, settings, last_scores, unscored),
        *_about_shift(frame, settings, last_scores),
    ]
    weighed = [replace(line, severity=settings.severity_of(line.rule)) if line.rule else line for line in lines]
    return [
        line
        for line in weighed
        if line.severity != "off" and (line.kind == "ExpectColumnToExist" or line.column in {None, *frame.columns})
    ]


def _about_columns(settings: ValidationSettings) -> list[Expectation]:
    needs_source = bool(settings.sources or settings.min_per_source)
    needs_singer = bool(settings.min_singers or settings.min_per_singer)
    exist = "ExpectColumnToExist"
    return [
        Expectation(exist, "audio_file", "a column with the recordings"),
        Expectation(exist, "score", "a column with the scores"),
        Expectation(
            exist,
            "source",
            "recording domains, for the within-source figures",
            rule="" if needs_source else "no_source",
        ),
        Expectation(
            exist,
            "singer_id",
            "singers, or each clip counts as a singer of its own",
            rule="" if needs_singer else "no_singer",
        ),
    ]


def _about_cells(settings: ValidationSettings) -> list[Expectation]:
    low, high = settings.usual_scores
    null, between = "ExpectColumnValuesToNotBeNull", "ExpectColumnValuesToBeBetween"
    of_type = "ExpectColumnValuesToBeOfType"
    whole = {"min_value": SCORE_MIN, "max_value": SCORE_MAX}
    scale = f"{SCORE_MIN:g}-{SCORE_MAX:g}"
    usual = f"the usual {low:g}-{high:g}"
    return [
        Expectation("ExpectColumnValuesToBeNull", "fault", "every row can be used"),
        Expectation(null, "audio_file", "every row names a recording", fault="no file name"),
        Expectation(of_type, "audio_file", "names are text", {"type_": "str"}, fault="file name {} is not text"),
        Expectation(
            "ExpectColumnValuesToBeUnique",
            "audio_file",
            "no recording is named twice",
            fault="{} is named by other rows too",
        ),
        Expectation(of_type, "score", "scores are numbers", {"type_": "float64"}),
        Expectation(null, "score", "every row has a score that is a number", fault="no score"),
        Expectation(between, "score", f"scores are on the {scale} scale", whole, fault="score {} is outside " + scale),
        Expectation(
            between,
            "score",
            f"scores lie within {usual}",
            {"min_value": low, "max_value": high},
            fault=f"score {{}} is outside {usual}",
            rule="unusual_score",
        ),
        Expectation(null, "singer_id", "every clip names its singer", fault="no singer", rule="no_singer"),
        *_about_sources(settings.sources),
    ]


def _about_sources(sources: Sequence[str]) -> list[Expectation]:
    null, meaning = "ExpectColumnValuesToNotBeNull", "every clip names its recording domain"
    if not sources:
        return [Expectation(null, "source", meaning, fault="no source", rule="no_source")]
    allowed = ", ".join(sources)
    escaped = allowed.replace("{", "{{").replace("}", "}}")  # a fault is a format string
    return [
        Expectation(null, "source", meaning, fault=f"no source; it must be one of {escaped}"),
        Expectation(
            "ExpectColumnValuesToBeInSet",
            "source",
            f"every source is one of {allowed}",
            {"value_set": list(sources)},
            fault="source {} is not one of " + escaped,
        ),
    ]


def _about_counts(
    frame: "pd.DataFrame", settings: ValidationSettings, last_scores: Mapping[str, Sequence[float]], unscored: int
) -> list[Expectation]:
    rows = "ExpectTableRowCountToBeBetween"
    asked = settings.min_clips
    beside = f", with the {unscored} that have an order and no score" if unscored else ""
    at_least = {"min_value": max(0, asked - unscored)}
    lines = [Expectation(rows, None, f"at least {asked} usable clips{beside}", at_least, rule="few_clips")]
    lines[0] = replace(lines[0], added=unscored)
    if (least := settings.min_per_source) and "source" in frame:
        known = {*frame["source"].dropna(), *last_scores} - {""}
        lines += [
            Expectation(
                rows,
                "source",
                f"at least {least} usable clips of {source}",
                {"min_value": least},
                where=("source", source),
                rule="few_per_source",
            )
            for source in settings.sources or sorted(known)
        ]
    if (least := settings.min_per_band) and BAND in frame:
        before = {band for scores in last_scores.values() for band in bands_of(scores)}
        known = before | set(frame[BAND].dropna())
        lines += [
            Expectation(
                rows,
                BAND,
                f"at least {least} usable clips scored {band}",
                {"min_value": least},
                where=(BAND, band),
                rule="few_per_band",
            )
            for band in BAND_NAMES
            if band in known
        ]
    return lines + _about_singers(frame, settings)


def _about_singers(frame: "pd.DataFrame", settings: ValidationSettings) -> list[Expectation]:
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


def _about_shift(
    frame: "pd.DataFrame", settings: ValidationSettings, last_scores: Mapping[str, Sequence[float]]
) -> list[Expectation]:
    """Within each source, so that a new source, whatever its scores, shifts none of the others."""
    if "score" not in frame:
        return []
    sources = frame["source"].fillna("") if "source" in frame else frame["score"].map(lambda _: "")
    usable = frame["fault"].isna() & frame["score"].notna() if "fault" in frame else frame["score"].notna()
    counts = sources[usable].value_counts()
    lines = []
    for source, scores in sorted(last_scores.items()):
        now = int(counts.get(source, 0))
        if source and scores and not now and "source" in frame:
            lines.append(
                Expectation(
                    "ExpectTableRowCountToBeBetween",
                    "source",
                    f"clips of {source}, which the last accepted version had ({len(scores)})",
                    {"min_value": 1},
                    where=("source", source),
                    rule="distribution_shift",
                )
            )
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
    """`units.band_of` of each score; None for what is not on the scale.

    >>> bands_of([85, 84.9, 100, float("nan"), 101])
    ['85-90', '80-85', '95-100', None, None]
    """
    values = np.asarray(scores, dtype=float)
    places = np.searchsorted([low for low, _ in SCORE_BANDS[1:]], values, side="right")
    on_scale = (values >= SCORE_MIN) & (values <= SCORE_MAX)
    return [BAND_NAMES[place] if known else None for place, known in zip(places, on_scale, strict=True)]
