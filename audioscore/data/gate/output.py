"""What the gate hands on: the accepted clips as it measured them, its verdict, and its page."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from audioscore.data.audio_checks import ProbeLimits, Progress
from audioscore.data.clips import Clip
from audioscore.data.gate.rejections import Rejection, ValidationSettings
from audioscore.data.gate.validation import ValidationResult, validate_folder
from audioscore.data.index import ORDER, read_index, write_index
from audioscore.errors import DataError, GateRefused, shorten
from audioscore.files import read_json, write_json, write_text

if TYPE_CHECKING:
    from audioscore.config import Config

log = logging.getLogger(__name__)

CLIPS, VERDICT, NEAR_DUPLICATES = "clips.json", "validation.json", "near_duplicates.json"


def run_gate(
    folder: Path,
    target: Path,
    report: Path,
    config: "Config",
    progress: Progress | None = None,
    memory: Path | None = None,
) -> ValidationResult:
    """Validate a data folder; write clips.json, near_duplicates.json, order.json and validation.json under `target`,
    and the HTML page at `report`. `memory` is that of `validate_folder`.

    Raises GateRefused, after writing them, where the gate failed.
    """
    from audioscore.data.gate.report import render_validation

    result = validate_folder(folder, settings=settings_of(config), progress=progress, memory=memory)
    write_text(report, render_validation(result, folder))
    write_json(target / VERDICT, result.to_json(str(report)))
    write_accepted(result, target)
    announce(result)
    if not result.valid:
        raise GateRefused(f"data gate: {shorten(result.reasons)} The report names every rejected clip: {report}")
    return result


def write_accepted(result: ValidationResult, target: Path) -> None:
    """Write what sorting reads: clips.json, near_duplicates.json and order.json under `target`."""
    write_json(target / CLIPS, [asdict(clip) for clip in result.accepted])
    write_json(target / NEAR_DUPLICATES, result.near_duplicates)
    write_index(target / ORDER, result.ordered)


def announce(result: ValidationResult) -> None:
    """Log what was rejected, and what the gate lets pass but says."""
    if result.rejected:
        named = _named(result.rejected)
        log.warning("%d clips rejected of a table of %d rows: %s", len(named), result.clips, shorten(named))
    if result.warned:
        log.warning("%d warnings about clips that are used: %s", len(result.warned), shorten(_named(result.warned)))
    for warning in result.warnings:
        log.warning("%s", warning)


def _named(rejections: list[Rejection]) -> list[str]:
    places = [f"row {one['row']}" if one["row"] is not None else ORDER for one in rejections]
    return [
        f"{one['audio_file']} ({at}): {one['reason'].rstrip('.')}" for one, at in zip(rejections, places, strict=True)
    ]


def read_accepted(folder: Path) -> list[Clip]:
    """The accepted clips that `run_gate` wrote."""
    source = folder / CLIPS
    if not source.is_file():
        raise DataError(f"{folder}: holds no {CLIPS}; validation did not finish. Run it again.")
    return [Clip(**{**value, "raters": tuple(value["raters"])}) for value in read_json(source)]


def read_near_duplicates(folder: Path) -> list[tuple[str, str]]:
    """Names of accepted clips that sound the same, pair by pair; none where `run_gate` wrote none."""
    source = folder / NEAR_DUPLICATES
    return [(first, later) for first, later in read_json(source)] if source.is_file() else []


def read_ordered(folder: Path) -> list[list[Clip]]:
    """The unscored groups that `run_gate` wrote, each best first, as measured; none where it wrote none."""
    return read_index(folder / ORDER) if (folder / ORDER).is_file() else []


def settings_of(config: "Config") -> ValidationSettings:
    """The gate's settings, in its own terms. Raises UsageError for a severity of a rule that there is not."""
    section = config.validation
    return ValidationSettings(
        min_clips=section.min_clips,
        min_per_source=section.min_per_source,
        min_per_band=section.min_per_band,
        min_singers=section.min_singers,
        min_per_singer=section.min_per_singer,
        max_shift=section.max_shift,
        severity=section.severity,
        sources=tuple(section.allowed_sources or ()),
        max_rejected_share=section.max_rejected_share,
        limits=ProbeLimits(
            min_seconds=section.min_seconds,
            max_seconds=section.max_seconds,
            max_dc_offset=section.max_dc_offset,
            min_mono_loss_db=section.min_mono_loss_db,
            min_bandwidth_hz=section.min_bandwidth_hz,
            min_voiced_share=section.min_voiced_share,
        ),
        column_map=config.data.column_map or None,
        singer_from=config.data.singer_from,
    )
