"""What the gate hands on: the accepted clips as it measured them, its verdict, and its page."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from audioscore.data.clips import Clip
from audioscore.data.probes import ProbeLimits, Progress
from audioscore.data.validation import ValidationResult, ValidationSettings, validate_folder
from audioscore.errors import DataError, GateRefused, shorten
from audioscore.files import read_json, write_json, write_text

if TYPE_CHECKING:
    from audioscore.config import Config

log = logging.getLogger(__name__)

CLIPS, VERDICT = "clips.json", "validation.json"


def run_gate(
    folder: Path, target: Path, report: Path, config: "Config", progress: Progress | None = None
) -> ValidationResult:
    """Validate a data folder; write clips.json and validation.json under `target`, and the HTML page at `report`.

    Raises GateRefused, after writing them, where the gate failed.
    """
    from audioscore.data.validation_report import render_validation

    result = validate_folder(folder, settings=settings_of(config), progress=progress)
    write_text(report, render_validation(result, folder))
    write_json(target / VERDICT, result.to_json(str(report)))
    write_json(target / CLIPS, [asdict(clip) for clip in result.accepted])
    announce(result)
    if not result.valid:
        raise GateRefused(f"data gate: {shorten(result.reasons)} The report names every rejected clip: {report}")
    return result


def announce(result: ValidationResult) -> None:
    """Log what was rejected, and what the gate lets pass but says."""
    if result.rejected:
        named = [f"{one['audio_file']} (row {one['row']}): {one['reason'].rstrip('.')}" for one in result.rejected]
        log.warning("%d of %d rows rejected: %s", len(named), result.clips, shorten(named))
    for warning in result.warnings:
        log.warning("%s", warning)


def read_accepted(folder: Path) -> list[Clip]:
    """The accepted clips that `run_gate` wrote."""
    source = folder / CLIPS
    if not source.is_file():
        raise DataError(f"{folder}: holds no {CLIPS}; validation did not finish. Run it again.")
    return [Clip(**{**value, "raters": tuple(value["raters"])}) for value in read_json(source)]


def settings_of(config: "Config") -> ValidationSettings:
    """The gate's settings, in its own terms."""
    section = config.validation
    return ValidationSettings(
        min_clips=section.min_clips,
        sources=tuple(section.allowed_sources or ()),
        max_rejected_share=section.max_rejected_share,
        limits=ProbeLimits(min_seconds=section.min_seconds, max_seconds=section.max_seconds),
        column_map=config.data.column_map or None,
        singer_from=config.data.singer_from,
    )
