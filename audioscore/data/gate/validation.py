"""The data gate: every row of a labels table is checked and every recording heard, before anything learns from it.

A fault of a clip rejects the clip and is listed; a fault of the table, or too many rejected clips, fails the gate.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from audioscore.data.audio_checks import Heard, Progress, hear_all
from audioscore.data.clips import Clip
from audioscore.data.gate.expectations import ExpectationResult, TableCheck, check_table
from audioscore.data.gate.rejections import (
    Rejection,
    ValidationSettings,
    by_row,
    find_near_duplicates,
    from_fault,
    linked_pairs,
    reject,
    weigh,
    without_copies,
    without_repeats,
)
from audioscore.data.index import ORDER, read_index
from audioscore.data.labels import LabelsTable, find_labels, read_labels
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
    """The gate's answer. `clips` counts the table's rows; `reasons` say why the gate failed, if it did.

    Accepted clips stand in the table's order and carry sha256 and what was measured. `warned` lists what is
    wrong with clips that are used all the same, a line a finding. `ordered` holds the groups of order.json, each still
    best first, as far as their clips are accepted; `near_duplicates` names pairs of used clips that sound the same.
    """

    table: str
    clips: int
    accepted: list[Clip]
    rejected: list[Rejection]
    expectations: list[ExpectationResult]
    reasons: list[str]
    warned: list[Rejection] = field(default_factory=list)
    ordered: list[list[Clip]] = field(default_factory=list)
    near_duplicates: list[tuple[str, str]] = field(default_factory=list)

    @property
    def valid(self) -> bool:
        return not self.reasons

    @property
    def warnings(self) -> list[str]:
        """What the gate lets pass of the table, but says; single clips are in `warned`."""
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
            "warnings": self.warned,
            "expectations": self.expectations,
            "report": report,
        }


def describe(result: ExpectationResult) -> str:
    """A failed expectation in words.

    >>> describe({"expectation": "", "column": None, "meaning": "at least 3 clips", "success": False,
    ...           "severity": "error", "observed": 2, "unexpected_count": 0, "examples": []})
    'Expected: at least 3 clips; found 2.'
    """
    if result["unexpected_count"]:
        found = f"not so in {result['unexpected_count']} ({'; '.join(result['examples'])})"
    else:
        observed = f"{result['observed']:.3g}" if isinstance(result["observed"], float) else result["observed"]
        missing = f"no column {result['column']}" if result["expectation"].endswith("_to_exist") else "found nothing"
        found = f"found {observed}" if observed is not None else missing
        found += f" ({'; '.join(result['examples'])})" if result["examples"] else ""
    return f"Expected: {result['meaning']}; {found}."


def _summary(clips: Sequence[Clip]) -> SourceSummary:
    scores = [clip.score for clip in clips if clip.score is not None]
    return {
        "clips": len(clips),
        "seconds": sum(clip.seconds or 0.0 for clip in clips),
        "score_min": min(scores),
        "score_max": max(scores),
    }


def validate_folder(
    folder: Path,
    *,
    settings: ValidationSettings | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    memory: Path | None = None,
    audio: bool = True,
) -> ValidationResult:
    """Check a data folder: its labels table, and each recording that the table, or order.json beside it, names.

    `workers` processes hear the recordings (default: one a core); a script that calls this with more than one needs
    the usual `if __name__ == "__main__":`. `progress` is called with how many of how many recordings are heard.
    `memory` is the file in which measurements are kept by content, so that nothing is decoded twice. Without `audio`
    no recording is opened: the clips then stand as the table has them, unmeasured.
    Raises DataError where the folder has no labels table, or several; everything else is in the result.
    """
    settings = settings or ValidationSettings()
    path = find_labels(folder)
    chosen = dict(settings.column_map) if settings.column_map else None
    try:
        table = read_labels(path, column_map=chosen, singer_from=settings.singer_from)
        groups = _read_order(folder / ORDER)
    except DataError as fault:
        unread = _gate_line("expect_table_to_be_readable", "the table can be read", False, str(fault))
        return ValidationResult(path.name, 0, [], [], [unread], [str(fault)])
    names = [clip.audio_file for clip in itertools.chain(table.clips, *groups)]
    heard: Sequence[Heard | None] = [None] * len(names)
    if audio:
        heard = hear_all(names, folder, settings.limits, workers, progress, memory)
    sifted = _sift(table.clips, groups, heard, settings)
    sifted.rejected += [from_fault(fault) for fault in table.faults]
    return _judge(folder, table, sifted, settings)


@dataclass
class _Sifted:
    """What is left of the clips after each was heard and compared with the others."""

    scored: list[Clip] = field(default_factory=list)
    ordered: list[list[Clip]] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    warned: list[Rejection] = field(default_factory=list)
    near_duplicates: list[tuple[str, str]] = field(default_factory=list)


def _read_order(path: Path) -> list[list[Clip]]:
    """Unscored groups, without the row numbers that they may have from elsewhere."""
    groups = read_index(path) if path.is_file() else []
    if scored := [clip.audio_file for group in groups for clip in group if clip.score is not None]:
        raise DataError(
            f"{path.name}: {len(scored)} clips have scores ({shorten(scored)}), but it is for recordings that only "
            f"have an order. Put those with scores into the labels table."
        )
    return [[replace(clip, row=None) for clip in group] for group in groups]


def _sift(
    scored: Sequence[Clip],
    groups: Sequence[Sequence[Clip]],
    heard: Sequence[Heard | None],
    settings: ValidationSettings,
) -> _Sifted:
    """Weigh each clip by what was heard of it, then look for copies and near-duplicates among those that are sound."""
    sifted = _Sifted()
    ears = iter(heard)

    def sound(clips: Sequence[Clip]) -> list[Clip]:
        kept = []
        for clip, one in zip(clips, itertools.islice(ears, len(clips)), strict=True):
            weighed = weigh(clip, one, settings) if one else None
            if weighed:
                sifted.rejected += weighed.rejected
                sifted.warned += weighed.warned
            if not (weighed and weighed.rejected):
                kept.append(_measured(clip, one) if one else clip)
        return kept

    sifted.scored, copies = without_copies(sound(scored))
    sifted.rejected += copies
    for group in groups:
        kept, repeats = without_repeats(sound(group))
        sifted.rejected += repeats
        sifted.ordered += [kept] if kept else []
    prints = {one.sha256: one.fingerprint for one in heard if one and one.sha256}
    _compare(sifted, prints, settings)
    return sifted


def _compare(sifted: _Sifted, prints: dict[str, bytes | None], settings: ValidationSettings) -> None:
    """Name the near-duplicates, and take those out that the settings refuse; only scored clips are."""
    clips = [*sifted.scored, *itertools.chain(*sifted.ordered)]
    known = [prints.get(clip.sha256 or "") for clip in clips]
    found = find_near_duplicates(clips, known, settings.severity_of("near_duplicate"))
    sifted.scored = [clip for position, clip in enumerate(sifted.scored) if position not in found.rejected]
    sifted.rejected += found.rejected.values()
    sifted.warned += found.warned
    sifted.near_duplicates = found.pairs


def _judge(folder: Path, table: LabelsTable, sifted: _Sifted, settings: ValidationSettings) -> ValidationResult:
    """Hold the table against the expectations, and say whether the folder as a whole can be used."""
    aside = by_row(sifted.rejected)
    unscored = sum(map(len, sifted.ordered))
    lines: list[ExpectationResult] = []
    try:
        before = last_scores(folder)
    except DataError as fault:
        before = {}
        name, meaning = "expect_last_version_to_be_readable", "the last accepted version's index can be read"
        lines.append(_gate_line(name, meaning, False, str(fault), "warning"))
    frame = labels_frame(table, sifted.scored, [one for one in aside if one["row"] is not None])
    check = check_table(frame, settings, last_scores=before, unscored=unscored)
    accepted = [clip for position, clip in enumerate(sifted.scored) if position not in check.row_faults]
    faulty = [reject(sifted.scored[position], "; ".join(why)) for position, why in check.row_faults.items()]
    rejected = by_row([*aside, *faulty])
    share_line, reasons = _verdict(len(accepted) + unscored, rejected, check, settings)
    used = {(clip.row, clip.audio_file) for clip in itertools.chain(accepted, *sifted.ordered)}
    return ValidationResult(
        find_labels(folder).name,
        len(table.clips) + len(table.faults),
        accepted,
        rejected,
        [*check.results, *lines, share_line],
        reasons,
        by_row(one for one in sifted.warned if (one["row"], one["audio_file"]) in used),
        sifted.ordered,
        linked_pairs(sifted.near_duplicates, {name for _, name in used}),
    )


def labels_frame(table: LabelsTable, sound: Sequence[Clip], rejected: Sequence[Rejection]) -> "pd.DataFrame":
    """The table as the expectations see it: sound clips, in their order, then the rows set aside with their fault."""
    import pandas as pd

    optional = [name for name in ("source", "singer_id") if any(getattr(clip, name) for clip in table.clips)]
    names = ["row", "audio_file", "score", *optional]
    rows = [{**{name: getattr(clip, name) for name in names}, "fault": None} for clip in sound]
    rows += [{"row": one["row"], "audio_file": one["audio_file"] or None, "fault": one["reason"]} for one in rejected]
    return pd.DataFrame(rows, columns=[*names, "fault"]).astype(dict.fromkeys((*names, "fault"), object))


def _verdict(
    used: int, rejected: Sequence[Rejection], check: TableCheck, settings: ValidationSettings
) -> tuple[ExpectationResult, list[str]]:
    """The line about the share of rejected clips, and why the gate is closed, if it is."""
    rows = used + len(rejected)
    share = len(rejected) / rows if rows else 0.0
    most = settings.max_rejected_share
    line = _gate_line(
        "expect_rejected_share_to_be_at_most", f"at most {most:.0%} of rows rejected", share <= most, share
    )
    reasons = [describe(fault) for fault in check.table_faults]
    if share > most:
        worst = [f"{_place(one)}: {one['reason'].rstrip('.')}" for one in rejected]
        reasons.append(
            f"{len(rejected)} of {rows} rows are rejected ({share:.0%}), and at most {most:.0%} may be: "
            f"{shorten(worst, 3)}. Mend the table, or raise max_rejected_share."
        )
    if used < settings.min_clips and not reasons and settings.severity_of("few_clips") == "error":
        reasons.append(f"{used} of {rows} clips are accepted, and {settings.min_clips} are needed. Add clips.")
    return line, reasons


def _place(one: Rejection) -> str:
    return f"row {one['row']}" if one["row"] is not None else f"{ORDER}, {one['audio_file']}"


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


def _measured(clip: Clip, heard: Heard) -> Clip:
    measured = heard.probe
    return replace(
        clip,
        sha256=heard.sha256,
        bytes=heard.bytes,
        seconds=measured.seconds if measured else None,
        level_db=measured.level_db if measured else None,
        snr_db=measured.snr_db if measured else None,
    )
