"""Validate a data folder before training: check every row of its labels table and decode every recording.

An error of a clip rejects the clip; an error of the table, or too many rejected clips, fails the gate.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from audioscore.data.clips import Clip
from audioscore.data.contradictions import score_notes
from audioscore.data.file_checks import CheckedRecording, Progress, check_recordings
from audioscore.data.gate import rejections
from audioscore.data.gate.expectations import ExpectationResult, TableCheck, check_table
from audioscore.data.index import ORDER, read_with_notes
from audioscore.data.labels import LabelsTable, find_labels, read_labels, row_label, row_name
from audioscore.data.spelling import NamesOnDisk, spelled
from audioscore.data.versions.changes import last_scores
from audioscore.errors import DataError, shorten

if TYPE_CHECKING:
    import pandas as pd


class SourceSummary(TypedDict):
    """Accepted clips of one recording domain."""

    clips: int
    seconds: float
    score_min: float
    score_max: float


@dataclass(frozen=True)
class ValidationResult:
    """The result of the gate. `clips` counts the table's rows; `reasons` lists why the gate failed, if it did.

    Accepted clips are in table order, with their sha256 and measurements. `warned` lists the findings about clips that
    are used, one entry per finding. `ordered` contains the accepted clips of order.json, in groups, each best first;
    `near_duplicates` the pairs of used clips with the same audio, by name. `notes` are sentences about the table and
    order.json; `splits` are the splits that the table states, by audio_file.
    """

    table: str
    clips: int
    accepted: list[Clip]
    rejected: list[rejections.Rejection]
    expectations: list[ExpectationResult]
    reasons: list[str]
    warned: list[rejections.Rejection] = field(default_factory=list)
    ordered: list[list[Clip]] = field(default_factory=list)
    near_duplicates: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    splits: dict[str, str] = field(default_factory=dict)

    @property
    def valid(self) -> bool:
        """Whether the gate is passed."""
        return not self.reasons

    @property
    def warnings(self) -> list[str]:
        """The notes, and the failed expectations about the table; warnings about single clips are in `warned`."""
        failed = [one for one in self.expectations if not one["success"] and one["severity"] == "warning"]
        return [*self.notes, *map(describe, failed)]

    @property
    def seconds(self) -> float:
        """Total length of the accepted clips."""
        return sum(clip.seconds or 0.0 for clip in self.accepted)

    @property
    def sources(self) -> dict[str, SourceSummary]:
        """Summaries of the accepted clips by recording domain; clips without one are under ""."""
        groups: dict[str, list[Clip]] = defaultdict(list)
        for clip in self.accepted:
            groups[clip.source or ""].append(clip)
        return {name: _summary(clips) for name, clips in sorted(groups.items())}

    def to_json(self, report: str | None = None) -> dict[str, Any]:
        """Return the document of `data validate --json`; `report` is the path of the HTML page."""
        return {
            "valid": self.valid,
            "clips": self.clips,
            "accepted": len(self.accepted),
            "rejected": self.rejected,
            "warnings": self.warned,
            "expectations": self.expectations,
            "notes": self.notes,
            "report": report,
        }


def describe(result: ExpectationResult) -> str:
    """Describe a failed expectation in one sentence.

    >>> describe({"expectation": "", "column": None, "meaning": "at least 3 clips", "success": False,
    ...           "severity": "error", "observed": 2, "unexpected_count": 0, "examples": []})
    'Expected: at least 3 clips; found 2.'
    """
    if result["unexpected_count"]:
        found = f"violated by {result['unexpected_count']} ({'; '.join(result['examples'])})"
    else:
        observed = f"{result['observed']:.3g}" if isinstance(result["observed"], float) else result["observed"]
        missing = f"no column {result['column']}" if result["expectation"].endswith("_to_exist") else "no value found"
        found = f"found {observed}" if observed is not None else missing
        found += f" ({'; '.join(result['examples'])})" if result["examples"] else ""
    return f"Expected: {result['meaning']}; {found}."


def _summary(clips: Sequence[Clip]) -> SourceSummary:
    scores = [clip.score for clip in clips if clip.score is not None]
    seconds = sum(clip.seconds or 0.0 for clip in clips)
    return {"clips": len(clips), "seconds": seconds, "score_min": min(scores), "score_max": max(scores)}


def validate_folder(
    folder: Path,
    *,
    settings: rejections.ValidationSettings | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    cache: Path | None = None,
    audio: bool = True,
) -> ValidationResult:
    """Check a data folder: its labels table, and every recording of the table and of order.json.

    Args:
        workers: Processes for decoding (default: one per core); a script that uses more than one needs the usual
            `if __name__ == "__main__":`.
        progress: Called with the number of checked recordings and of all recordings.
        cache: File of the measurement cache, so that the same bytes are decoded only once.
        audio: If False, no recording is opened, and the clips have no measurements.

    Raises:
        DataError: The folder has no labels table, or several; all other errors are in the result.
    """
    settings = settings or rejections.ValidationSettings()
    path = find_labels(folder)
    column_map = dict(settings.column_map) if settings.column_map else None
    try:
        table = read_labels(path, column_map=column_map, singer_from=settings.singer_from)
        groups, order_notes = _read_order(folder / ORDER)
    except DataError as error:
        unread = _gate_line("expect_table_to_be_readable", "the table can be read", False, str(error))
        return ValidationResult(path.name, 0, [], [], [unread], [str(error)])
    notes = [*table.notes, *order_notes]
    checked: Sequence[CheckedRecording | None] = [None] * sum(map(len, (table.clips, *groups)))
    if audio:
        table, groups, other_names = _with_names_on_disk(folder, table, groups)
        notes += other_names
        names = [clip.audio_file for clip in itertools.chain(table.clips, *groups)]
        checked = check_recordings(names, folder, settings.limits, workers, progress, cache)
    checked_clips = _check_clips(table, groups, checked, settings)
    checked_clips.rejected += [rejections.reject_row(error) for error in table.row_errors]
    result = _check_folder(folder, table, checked_clips, settings)
    if table.unknown_columns:
        notes.append(f"{path.name}: columns that are not read: {shorten(list(table.unknown_columns))}.")
    return replace(result, notes=[*notes, *score_notes(result.accepted)], splits=table.splits)


@dataclass
class _CheckedClips:
    """The clips that remain after the checks of single recordings and of duplicates, and the findings so far."""

    scored: list[Clip] = field(default_factory=list)
    ordered: list[list[Clip]] = field(default_factory=list)
    rejected: list[rejections.Rejection] = field(default_factory=list)
    warned: list[rejections.Rejection] = field(default_factory=list)
    near_duplicates: list[tuple[str, str]] = field(default_factory=list)


def _read_order(path: Path) -> tuple[list[list[Clip]], list[str]]:
    """Unscored groups, without row numbers, which belong to another table; and notes about them."""
    groups, notes = read_with_notes(path) if path.is_file() else ([], [])
    if scored := [clip.audio_file for group in groups for clip in group if clip.score is not None]:
        raise DataError(
            f"{path.name}: {len(scored)} clips have scores ({shorten(scored)}), but this file is only for recordings "
            f"without scores. Move them to the labels table."
        )
    return [[replace(clip, row=None) for clip in group] for group in groups], notes


def _with_names_on_disk(
    folder: Path, table: LabelsTable, groups: Sequence[Sequence[Clip]]
) -> tuple[LabelsTable, list[list[Clip]], list[str]]:
    """The table and the groups with the names that the files have, and a note about other spellings."""
    names = NamesOnDisk(folder)
    found = {clip.audio_file: names.find(clip.audio_file) for clip in itertools.chain(table.clips, *groups)}
    named = [
        [
            replace(clip, audio_file=found[clip.audio_file]) if found[clip.audio_file] != clip.audio_file else clip
            for clip in group
        ]
        for group in (table.clips, *groups)
    ]
    splits = {found.get(name, name): split for name, split in table.splits.items()}
    other = [f"{spelled(name, on_disk)} = '{on_disk}'" for name, on_disk in found.items() if name != on_disk]
    notes = (
        [f"{len(other)} of {len(found)} names are spelled in another way on disk ({shorten(other, 3)})."]
        if other
        else []
    )
    return replace(table, clips=named[0], splits=splits), named[1:], notes


def _check_clips(
    table: LabelsTable,
    groups: Sequence[Sequence[Clip]],
    checked: Sequence[CheckedRecording | None],
    settings: rejections.ValidationSettings,
) -> _CheckedClips:
    """Evaluate each clip, then find duplicates and near-duplicates among the accepted ones."""
    result = _CheckedClips()
    remaining = iter(checked)

    def accepted(clips: Sequence[Clip]) -> list[Clip]:
        kept = []
        for clip, one in zip(clips, itertools.islice(remaining, len(clips)), strict=True):
            verdict = rejections.evaluate_clip(clip, one, settings) if one else None
            if verdict:
                result.rejected += verdict.rejected
                result.warned += verdict.warned
            if not (verdict and verdict.rejected):
                kept.append(_with_measurements(clip, one) if one else clip)
        return kept

    result.scored, copies = rejections.without_copies(accepted(table.clips), table.locations)
    result.rejected += copies
    for group in groups:
        kept, repeats = rejections.without_repeats(accepted(group))
        result.rejected += repeats
        result.ordered += [kept] if kept else []
    clips = [*result.scored, *itertools.chain(*result.ordered)]
    by_content = {one.sha256: one.fingerprint for one in checked if one and one.sha256}
    fingerprints = [by_content.get(clip.sha256 or "") for clip in clips]
    severity = settings.severity_of("near_duplicate")
    found = rejections.find_near_duplicates(clips, fingerprints, severity, table.locations)
    result.scored = [clip for position, clip in enumerate(result.scored) if position not in found.rejected]
    result.rejected += found.rejected.values()
    result.warned += found.warned
    result.near_duplicates = found.pairs
    return result


def _check_folder(
    folder: Path, table: LabelsTable, clips: _CheckedClips, settings: rejections.ValidationSettings
) -> ValidationResult:
    """Check the table against the expectations, and decide whether the gate is passed."""
    excluded = rejections.by_row(clips.rejected)
    unscored = sum(map(len, clips.ordered))
    lines: list[ExpectationResult] = []
    try:
        before = last_scores(folder)
    except DataError as error:
        before = {}
        name, meaning = "expect_last_version_to_be_readable", "the last accepted version's index can be read"
        lines.append(_gate_line(name, meaning, False, str(error), "warning"))
    frame = labels_frame(table, clips.scored, [one for one in excluded if one["row"] is not None])
    check = check_table(frame, settings, last_scores=before, unscored=unscored)
    accepted = [clip for position, clip in enumerate(clips.scored) if position not in check.row_errors]
    invalid = [
        rejections.reject(clips.scored[position], "; ".join(errors)) for position, errors in check.row_errors.items()
    ]
    rejected = rejections.with_locations(rejections.by_row([*excluded, *invalid]), table.locations)
    share_line, reasons = _verdict(len(accepted) + unscored, rejected, check, settings)
    used = {(clip.row, clip.audio_file) for clip in itertools.chain(accepted, *clips.ordered)}
    warned = rejections.by_row(one for one in clips.warned if (one["row"], one["audio_file"]) in used)
    return ValidationResult(
        find_labels(folder).name,
        len(table.clips) + len(table.row_errors),
        accepted,
        rejected,
        [*check.results, *lines, share_line],
        reasons,
        rejections.with_locations(warned, table.locations),
        clips.ordered,
        rejections.linked_pairs(clips.near_duplicates, {name for _, name in used}),
    )


def labels_frame(table: LabelsTable, clips: Sequence[Clip], rejected: Sequence[rejections.Rejection]) -> "pd.DataFrame":
    """Build the frame for `check_table`: accepted clips in order, then the rejected rows with their reason."""
    import pandas as pd

    optional = [name for name in ("source", "singer_id") if any(getattr(clip, name) for clip in table.clips)]
    optional += [] if table.clips else [name for name in ("source", "singer_id") if name in table.columns]
    names = ["row", "audio_file", "score", *optional]
    rows = [{**{name: getattr(clip, name) for name in names}, "fault": None} for clip in clips]
    rows += [{"row": one["row"], "audio_file": one["audio_file"] or None, "fault": one["reason"]} for one in rejected]
    for row in rows:
        row["row"] = row_name(row["row"], table.locations)
    return pd.DataFrame(rows, columns=[*names, "fault"]).astype(dict.fromkeys((*names, "fault"), object))


def _verdict(
    used: int, rejected: Sequence[rejections.Rejection], check: TableCheck, settings: rejections.ValidationSettings
) -> tuple[ExpectationResult, list[str]]:
    """The expectation about the share of rejected clips, and the reasons why the gate fails."""
    rows = used + len(rejected)
    share = len(rejected) / rows if rows else 0.0
    most = settings.max_rejected_share
    line = _gate_line(
        "expect_rejected_share_to_be_at_most", f"at most {most:.0%} of rows rejected", share <= most, share
    )
    reasons = [describe(result) for result in check.table_errors]
    if share > most:
        worst = [": ".join(filter(None, [_location(one), one["reason"].rstrip(".")])) for one in rejected]
        reasons.append(
            f"{len(rejected)} of {rows} rows are rejected ({share:.0%}), more than {most:.0%}: "
            f"{shorten(worst, 3)}. Correct the table, or raise max_rejected_share."
        )
    if used < settings.min_clips and not reasons and settings.severity_of("few_clips") == "error":
        reasons.append(f"{used} of {rows} clips are accepted, but {settings.min_clips} are required. Add clips.")
    return line, reasons


def _location(one: rejections.Rejection) -> str:
    return f"{ORDER}, {one['audio_file']}" if one["row"] is None else row_label(one["row"], one["reason"])


def _gate_line(name: str, meaning: str, success: bool, observed: Any, severity: str = "error") -> ExpectationResult:
    return {
        "expectation": name,
        "column": None,
        "meaning": meaning,
        "success": success,
        "severity": severity,
        "observed": observed,
        "unexpected_count": 0,
        "examples": [],
    }


def _with_measurements(clip: Clip, checked: CheckedRecording) -> Clip:
    names = ("seconds", "level_db", "snr_db")
    measured: dict[str, Any] = {name: getattr(checked.measurements, name, None) for name in names}
    return replace(clip, sha256=checked.sha256, bytes=checked.bytes, **measured)
