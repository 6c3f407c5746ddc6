"""Run the data gate, and write and read its output: accepted clips, verdict and report page."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from audioscore.data.audio_checks import AudioLimits
from audioscore.data.clips import Clip
from audioscore.data.file_checks import Progress
from audioscore.data.gate.rejections import Rejection, ValidationSettings
from audioscore.data.gate.validation import ValidationResult, validate_folder
from audioscore.data.index import ORDER, read_index, write_index
from audioscore.data.labels import row_label
from audioscore.errors import DataError, GateRefused, shorten
from audioscore.files import read_json, write_json, write_text

if TYPE_CHECKING:
    from audioscore.config import Config

log = logging.getLogger(__name__)

CLIPS, VERDICT, NEAR_DUPLICATES = "clips.json", "validation.json", "near_duplicates.json"
STATED_SPLITS = "stated_splits.json"


def run_gate(
    folder: Path,
    target: Path,
    report: Path | None,
    config: "Config",
    progress: Progress | None = None,
    cache: Path | None = None,
) -> ValidationResult:
    """Validate a data folder and write the output of the gate.

    Writes clips.json, near_duplicates.json, order.json, stated_splits.json and validation.json under `target`, and the
    HTML page to `report`. `cache` is that of `validate_folder`.

    Raises GateRefused, after writing, if the gate failed.
    """
    result = validate_folder(folder, settings=validation_settings(config), progress=progress, cache=cache)
    if report is not None:
        from audioscore.data.gate.report import render_validation

        write_text(report, render_validation(result, folder), errors="backslashreplace")
    write_json(target / VERDICT, result.to_json(None if report is None else str(report)))
    write_accepted(result, target)
    log_result(result)
    if not result.valid:
        seen = f"See {report}." if report else f"`audioscore data validate {folder}` lists every clip."
        raise GateRefused(f"data gate: {shorten([reason.rstrip('.') for reason in result.reasons])}. {seen}")
    return result


def write_accepted(result: ValidationResult, target: Path) -> None:
    """Write the input of `data sort` under `target`: the clips, near-duplicates, ordered groups and stated splits."""
    write_json(target / CLIPS, [asdict(clip) for clip in result.accepted])
    write_json(target / NEAR_DUPLICATES, result.near_duplicates)
    write_json(target / STATED_SPLITS, result.splits)
    write_index(target / ORDER, result.ordered)


def log_result(result: ValidationResult) -> None:
    """Log the rejected clips and all warnings."""
    if result.rejected:
        listed = _listed(result.rejected)
        log.warning("%d clips rejected of a table of %d rows: %s", len(listed), result.clips, shorten(listed))
    if result.warned:
        log.warning("%d warnings about clips that are used: %s", len(result.warned), shorten(_listed(result.warned)))
    for warning in result.warnings:
        log.warning("%s", warning)


def _listed(rejections: list[Rejection]) -> list[str]:
    rows = [ORDER if one["row"] is None else row_label(one["row"], one["reason"]) for one in rejections]
    return [
        f"{one['audio_file']}{f' ({row})' if row else ''}: {one['reason'].rstrip('.')}"
        for one, row in zip(rejections, rows, strict=True)
    ]


def read_accepted(folder: Path) -> list[Clip]:
    """Read the accepted clips that `run_gate` wrote; DataError if the file is missing."""
    source = folder / CLIPS
    if not source.is_file():
        raise DataError(f"{folder}: no {CLIPS}, so the validation did not finish. Run it again.")
    return [Clip(**{**value, "raters": tuple(value["raters"])}) for value in read_json(source)]


def read_near_duplicates(folder: Path) -> list[tuple[str, str]]:
    """Read the pairs of near-duplicates, by name; empty if `run_gate` wrote no file."""
    source = folder / NEAR_DUPLICATES
    return [(first, later) for first, later in read_json(source)] if source.is_file() else []


def read_ordered(folder: Path) -> list[list[Clip]]:
    """Read the accepted unscored groups, each best first; empty if `run_gate` wrote no file."""
    return read_index(folder / ORDER) if (folder / ORDER).is_file() else []


def read_stated_splits(folder: Path) -> dict[str, str]:
    """Read the splits that the table states, by audio_file; empty if `run_gate` wrote no file."""
    splits: dict[str, str] = read_json(folder / STATED_SPLITS) if (folder / STATED_SPLITS).is_file() else {}
    return splits


def validation_settings(config: "Config") -> ValidationSettings:
    """Build the gate's settings from the configuration; UsageError if it sets the severity of an unknown rule."""
    section = config.validation.model_dump(exclude={"allowed_sources"})
    limits = {name: section.pop(name) for name in AudioLimits.__dataclass_fields__ if name in section}
    return ValidationSettings(
        **section,
        sources=tuple(config.validation.allowed_sources or ()),
        limits=AudioLimits(**limits),
        column_map=config.data.column_map or None,
        singer_from=config.data.singer_from,
    )
