"""The data gate: every row of a labels table is checked and every recording heard, before anything learns from it.

A fault of a clip rejects the clip and is listed; a fault of the table, or too many rejected clips, fails the gate.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from audioscore.data.clips import Clip
from audioscore.data.expectations import ExpectationResult, TableCheck, check_table
from audioscore.data.labels import Fault, LabelsTable, find_labels, read_labels
from audioscore.data.probes import Heard, ProbeLimits, Progress, hear_all
from audioscore.errors import DataError, shorten

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ValidationSettings:
    """What the gate asks for. `sources` lists the recording domains allowed; empty allows any, and none.

    `column_map` and `singer_from` are those of `read_labels`.
    """

    min_clips: int = 10
    min_per_source: int = 0
    min_singers: int = 0
    sources: tuple[str, ...] = ()
    usual_scores: tuple[float, float] = (50.0, 99.0)
    max_rejected_share: float = 0.1
    limits: ProbeLimits = field(default_factory=ProbeLimits)
    column_map: Mapping[str, str] | None = None
    singer_from: str | None = None


class Rejection(TypedDict):
    """A row that is not used. `severity` is "warning" for a harmless repeat, "error" for everything else."""

    audio_file: str
    row: int | None
    reason: str
    severity: str


class SourceSummary(TypedDict):
    """Accepted clips of one recording domain."""

    clips: int
    seconds: float
    score_min: float
    score_max: float


@dataclass(frozen=True)
class ValidationResult:
    """The gate's answer. `clips` counts the table's rows; `reasons` say why the gate failed, if it did.

    Accepted clips stand in the table's order and carry sha256, seconds, level_db and bytes.
    """

    table: str
    clips: int
    accepted: list[Clip]
    rejected: list[Rejection]
    expectations: list[ExpectationResult]
    reasons: list[str]

    @property
    def valid(self) -> bool:
        return not self.reasons

    @property
    def warnings(self) -> list[str]:
        """What the gate lets pass, but says."""
        return [
            describe(result)
            for result in self.expectations
            if not result["success"] and result["severity"] == "warning"
        ]

    @property
    def seconds(self) -> float:
        """Length of the accepted clips together."""
        return sum(clip.seconds or 0.0 for clip in self.accepted)

    @property
    def sources(self) -> dict[str, SourceSummary]:
        """Accepted clips by recording domain; those that name none are under ""."""
        groups: dict[str, list[Clip]] = defaultdict(list)
        for clip in self.accepted:
            groups[clip.source or ""].append(clip)
        return {name: _summary(clips) for name, clips in sorted(groups.items())}

    def to_json(self, report: str | None = None) -> dict[str, Any]:
        """The document of `data validate --json`; `report` is the HTML page's place."""
        return {
            "valid": self.valid,
            "clips": self.clips,
            "accepted": len(self.accepted),
            "rejected": self.rejected,
            "expectations": self.expectations,
            "report": report,
        }


def validate_folder(
    folder: Path,
    *,
    settings: ValidationSettings | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> ValidationResult:
    """Check a data folder: its labels table and each recording that the table names.

    `workers` processes hear the recordings (default: one a core); a script that calls this with more than one needs
    the usual `if __name__ == "__main__":`. `progress` is called with how many of how many recordings are heard.
    Raises DataError where the folder has no labels table, or several; everything else is in the result.
    """
    settings = settings or ValidationSettings()
    path = find_labels(folder)
    chosen = dict(settings.column_map) if settings.column_map else None
    try:
        table = read_labels(path, column_map=chosen, singer_from=settings.singer_from)
    except DataError as fault:
        unread = _gate_line("expect_table_to_be_readable", "the table can be read", False, str(fault))
        return ValidationResult(path.name, 0, [], [], [unread], [str(fault)])
    heard = hear_all([clip.audio_file for clip in table.clips], path.parent, settings.limits, workers, progress)
    rejected = [_from_fault(fault) for fault in table.faults]
    rejected += [_reject(clip, one.fault) for clip, one in zip(table.clips, heard, strict=True) if one.fault]
    sound = [_measured(clip, one) for clip, one in zip(table.clips, heard, strict=True) if not one.fault]
    sound, repeated = without_copies(sound)
    rejected = sorted(rejected + repeated, key=_row)
    check = check_table(
        labels_frame(table, sound, rejected),
        sources=settings.sources,
        min_clips=settings.min_clips,
        min_per_source=settings.min_per_source,
        min_singers=settings.min_singers,
        usual_scores=settings.usual_scores,
    )
    accepted = [clip for position, clip in enumerate(sound) if position not in check.row_faults]
    rejected += [_reject(sound[position], "; ".join(why)) for position, why in check.row_faults.items()]
    return _judge(path.name, accepted, sorted(rejected, key=_row), check, settings)


def without_copies(clips: Sequence[Clip]) -> tuple[list[Clip], list[Rejection]]:
    """The first of each recording's copies (same bytes) where their scores agree, and none where they do not."""
    copies: dict[str | None, list[Clip]] = defaultdict(list)
    for clip in clips:
        copies[clip.sha256].append(clip)
    rejected: list[Rejection] = []
    dropped: set[int] = set()
    for group in copies.values():
        first, *others = group
        if all(other.score == first.score for other in others):
            reason = f"duplicate: same audio and score as row {first.row} ({first.audio_file})"
            rejected += [_reject(other, reason, "warning") for other in others]
            dropped |= {id(other) for other in others}
        else:
            told = shorten([f"{clip.score:g} in row {clip.row} ({clip.audio_file})" for clip in group])
            rejected += [_reject(clip, f"conflict: the same audio is scored {told}") for clip in group]
            dropped |= {id(clip) for clip in group}
    return [clip for clip in clips if id(clip) not in dropped], rejected


def labels_frame(table: LabelsTable, sound: Sequence[Clip], rejected: Sequence[Rejection]) -> "pd.DataFrame":
    """The table as the expectations see it: sound clips, in their order, then the rows set aside with their fault."""
    import pandas as pd

    optional = [name for name in ("source", "singer_id") if any(getattr(clip, name) for clip in table.clips)]
    names = ["row", "audio_file", "score", *optional]
    rows = [{**{name: getattr(clip, name) for name in names}, "fault": None} for clip in sound]
    rows += [{"row": one["row"], "audio_file": one["audio_file"] or None, "fault": one["reason"]} for one in rejected]
    return pd.DataFrame(rows, columns=[*names, "fault"]).astype(dict.fromkeys((*names, "fault"), object))


def describe(result: ExpectationResult) -> str:
    """A failed expectation in words.

    >>> describe({"expectation": "", "column": None, "meaning": "at least 3 clips", "success": False,
    ...           "severity": "error", "observed": 2, "unexpected_count": 0, "examples": []})
    'Expected: at least 3 clips; found 2.'
    """
    if result["unexpected_count"]:
        found = f"not so in {result['unexpected_count']} ({'; '.join(result['examples'])})"
    else:
        found = f"found {result['observed']}" if result["observed"] is not None else f"no column {result['column']}"
    return f"Expected: {result['meaning']}; {found}."


def _judge(
    table: str, accepted: list[Clip], rejected: list[Rejection], check: TableCheck, settings: ValidationSettings
) -> ValidationResult:
    rows = len(accepted) + len(rejected)
    share = len(rejected) / rows if rows else 0.0
    most = settings.max_rejected_share
    lines = [
        *check.results,
        _gate_line("expect_rejected_share_to_be_at_most", f"at most {most:.0%} of rows rejected", share <= most, share),
    ]
    reasons = [describe(fault) for fault in check.table_faults]
    if share > most:
        worst = [f"row {one['row']}: {one['reason'].rstrip('.')}" for one in rejected]
        reasons.append(
            f"{len(rejected)} of {rows} rows are rejected ({share:.0%}), and at most {most:.0%} may be: "
            f"{shorten(worst, 3)}. Mend the table, or raise max_rejected_share."
        )
    if len(accepted) < settings.min_clips and not reasons:
        reasons.append(f"{len(accepted)} of {rows} clips are accepted, and {settings.min_clips} are needed. Add clips.")
    return ValidationResult(table, rows, accepted, rejected, lines, reasons)


def _gate_line(name: str, meaning: str, success: bool, observed: Any) -> ExpectationResult:
    return {
        "expectation": name,
        "column": None,
        "meaning": meaning,
        "success": success,
        "severity": "error",
        "observed": observed,
        "unexpected_count": 0,
        "examples": [],
    }


def _row(one: Rejection) -> int:
    return one["row"] or 0


def _from_fault(fault: Fault) -> Rejection:
    severity = "warning" if fault.reason.startswith("duplicate") else "error"
    return {"audio_file": fault.audio_file, "row": fault.row, "reason": fault.reason, "severity": severity}


def _reject(clip: Clip, reason: str, severity: str = "error") -> Rejection:
    return {"audio_file": clip.audio_file, "row": clip.row, "reason": reason, "severity": severity}


def _measured(clip: Clip, heard: Heard) -> Clip:
    measured = heard.probe
    return replace(
        clip,
        sha256=heard.sha256,
        bytes=heard.bytes,
        seconds=measured.seconds if measured else None,
        level_db=measured.level_db if measured else None,
    )


def _summary(clips: Sequence[Clip]) -> SourceSummary:
    scores = [clip.score for clip in clips if clip.score is not None]
    return {
        "clips": len(clips),
        "seconds": sum(clip.seconds or 0.0 for clip in clips),
        "score_min": min(scores),
        "score_max": max(scores),
    }
